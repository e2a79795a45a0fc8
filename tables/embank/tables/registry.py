"""Where classes announce themselves by name: by an entry point of their package, or in this process."""

from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from embank.tables.errors import ConfigError
from embank.tables.libraries import missing_library
from embank.tables.wording import nearest_or_all

Kind = TypeVar("Kind")


class Registry(Generic[Kind]):
    """Names and classes of one kind. Those of installed packages are not imported before they are asked for.

    Args:
        kind: what the classes are called in messages.
        base: what each must be a subclass of.
        group: of the entry points.
    """

    def __init__(self, kind: str, base: type[Kind], *, group: str) -> None:
        self.kind, self.base, self.group = kind, base, group
        self.local: dict[str, type[Kind]] = {}

    @cached_property
    def installed(self) -> dict[str, EntryPoint]:
        """Entry points by name."""
        return {point.name: point for point in sorted(entry_points(group=self.group), key=lambda point: point.name)}

    def names(self) -> list[str]:
        """Of all classes, in order."""
        return sorted({*self.installed, *self.local})

    def add(self, name: str, cls: type[Kind]) -> None:
        """Adds a class of this process.

        Raises:
            ConfigError: it is no such class, or the name is none or is taken by another one.
        """
        if not (isinstance(name, str) and name):
            raise ConfigError(f"{name!r} is no name of a {self.kind}; give a text")
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise ConfigError(f"{self.kind} '{name}' is to be {_place_of(cls)}, which is no subclass of {self._base}")
        taken = self.local.get(name) or self.installed.get(name)
        if taken is not None and taken is not cls:
            raise ConfigError(f"{self.kind} '{name}' is registered already ({_place_of(taken)}); choose another name")
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise ConfigError(
                f"{self.kind} '{name}' ({_place_of(cls)}) does not define {', '.join(missing)}; define it"
            )
        self.local[name] = cls

    def find(self, name: str) -> type[Kind]:
        """The class of a name.

        Raises:
            ConfigError: nothing of this name is registered (the message has the nearest one), or its package can't be
                imported.
        """
        if name in self.local:
            return self.local[name]
        if name not in self.installed:
            known = nearest_or_all(name, self.names(), label=f"known {self.kind}s")
            raise ConfigError(f"there is no {self.kind} '{name}'; {known}")
        point = self.installed[name]
        try:
            loaded = point.load()
        except (ImportError, AttributeError) as error:
            if isinstance(error, ImportError) and missing_library(error) is not None:
                raise  # a library of ours, which its message tells how to install
            package = f" of package '{point.dist.name}'" if point.dist is not None else ""
            raise ConfigError(
                f"{self.kind} '{name}' ({point.value}{package}) can't be imported: {error}; mend or remove the package"
            ) from error
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise ConfigError(f"{self.kind} '{name}' ({point.value}) is not a subclass of {self._base}")
        return loaded

    def name_of(self, cls: type) -> str | None:
        """The name of a class; None if it is not registered."""
        local = next((name for name, own in self.local.items() if own is cls), None)
        return local or next((name for name in self.installed if self._is_place_of(name, cls)), None)

    def _is_place_of(self, name: str, cls: type) -> bool:
        """Whether an installed name is of a class. A package that can't be imported has none."""
        try:
            return self.find(name) is cls
        except ConfigError:
            return False

    @property
    def _base(self) -> str:
        return f"embank.tables.{self.base.__name__}"


def _place_of(found: Any) -> str:
    """Where a class comes from, as entry points write it."""
    if isinstance(found, EntryPoint):
        return found.value
    return f"{found.__module__}:{found.__qualname__}" if isinstance(found, type) else repr(found)
