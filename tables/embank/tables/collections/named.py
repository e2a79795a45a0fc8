"""Modules by name: what makes a `state_dict` independent of the order in which tables are listed."""

from collections.abc import Iterator, Mapping
from urllib.parse import unquote

from torch import nn

_TAKEN = frozenset({"training"})
"""What torch assigns to in every module; it refuses where a module has that name."""


def state_name(name: str) -> str:
    """A table's name as one part of a name in a `state_dict`, whose parts are joined by dots."""
    name = name.replace("%", "%25").replace(".", "%2E")
    return f"%{ord(name[0]):02X}{name[1:]}" if name in _TAKEN else name


class NamedModules(nn.Module):
    """Modules in order, whose parameters are named after what they belong to, not after their number.

    `nn.ModuleDict` would refuse names such as "keys" and "user.id", which tables may have.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update({state_name(name): module for name, module in modules.items()})

    def __iter__(self) -> Iterator[nn.Module]:
        return (module for module in self._modules.values() if module is not None)

    def __len__(self) -> int:
        return len(self._modules)

    def keys(self) -> list[str]:
        """The names."""
        return [unquote(name) for name in self._modules]

    def values(self) -> list[nn.Module]:
        """The modules."""
        return list(self)

    def items(self) -> list[tuple[str, nn.Module]]:
        """Both."""
        return list(zip(self.keys(), self.values(), strict=True))

    def __contains__(self, name: str) -> bool:
        return state_name(name) in self._modules

    def __getitem__(self, name: str) -> nn.Module:
        return self.named(name)

    def named(self, name: str) -> nn.Module:
        """The module of that name."""
        module = self._modules[state_name(name)]
        assert module is not None
        return module
