"""The method protocol: how a logical table is stored. And the registry in which methods announce themselves.

A method is three pure steps around rows that it does not own:

    ids --address--> physical row ids --(rows)--> physical rows --combine--> logical rows --(pool)--> features

`address` runs early (data loader, prefetch thread); the rows live in a `RowStore`, sharded and updated there; `combine`
runs in the forward pass and may hold small dense parameters. Pooling comes after `combine`, unless the method is linear
in its rows.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

from torch import Tensor, nn

from embank.tables.errors import ConfigError
from embank.tables.specs import PhysicalTable, TableSpec

ENTRY_POINTS = "embank.methods"


class PackedTable(nn.Module, ABC):
    """The inference form of a logical table: what is served, counted in `nbytes` and written to a bundle."""

    @abstractmethod
    def lookup(self, ids_N: Tensor) -> Tensor:
        """Logical rows [N, D] for ids int64 [N]; ids out of range are the caller's to refuse."""

    def nbytes(self) -> int:
        """Bytes of everything that is held: parameters, buffers, hash constants."""
        held = [*self.parameters(), *self.buffers()]
        return sum(t.numel() * t.element_size() for t in held)


class Method(nn.Module, ABC):
    """How one logical table is stored.

    Subclasses set `physical` in `__init__`; `lookups` says, for each tensor that `address` returns, which physical table
    it indexes (by position); by default each table once, in order.

    Attributes:
        Config: the frozen dataclass of the method's own options.
        linear: `combine` is the identity on the row of its single lookup, so a bag's rows may be pooled before it and
            the pooling is fused into the lookup kernel.
    """

    Config: ClassVar[type]
    linear: ClassVar[bool] = False
    physical: tuple[PhysicalTable, ...]

    def __init__(self, spec: TableSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def lookups(self) -> tuple[int, ...]:
        """For each tensor of `address`, the index of its table in `physical`."""
        return tuple(range(len(self.physical)))

    @abstractmethod
    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        """Physical row ids, one int64 [N] per lookup: a pure function of the ids."""

    @abstractmethod
    def combine(self, rows: tuple[Tensor, ...]) -> Tensor:
        """Logical rows [N, D] from physical rows, one [N, width] per lookup. Differentiable."""

    @abstractmethod
    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        """The inference form, from the rows [R, width] of each physical table by name.

        It may share memory with the rows that it is given: pass copies if they go on being trained.
        """

    def options(self) -> Any:
        """The spec's options, or this method's defaults.

        Raises:
            ConfigError: the options are another method's.
        """
        options = self.spec.options if self.spec.options is not None else self.Config()
        if not isinstance(options, self.Config):
            raise ConfigError(
                f"table '{self.spec.name}' has method '{self.spec.method}' but options of type {type(options).__name__}; "
                f"give {self.Config.__module__}.{self.Config.__qualname__}"
            )
        return options


_LOCAL: dict[str, type[Method]] = {}


def register_method(name: str, method: type[Method]) -> None:
    """Adds a method of this process, for notebooks and trials; a package announces its methods by an entry point.

    Raises:
        ConfigError: the name is taken by another class.
    """
    taken = _LOCAL.get(name) or _installed().get(name)
    if taken is not None and taken is not method:
        raise ConfigError(f"method '{name}' is registered already ({taken}); choose another name")
    _LOCAL[name] = method


@cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)}


def registered_methods() -> list[str]:
    """Names of all methods: those of installed packages (not yet imported) and those of this process."""
    return sorted({*_installed(), *_LOCAL})


def method_class(name: str) -> type[Method]:
    """The class of a registered method.

    Raises:
        ConfigError: nothing of this name is registered; the message has the nearest one.
    """
    if name in _LOCAL:
        return _LOCAL[name]
    if name not in _installed():
        known = registered_methods()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known methods: {', '.join(known)}"
        raise ConfigError(f"there is no method '{name}'; {hint}")
    loaded = _installed()[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise ConfigError(f"method '{name}' ({_installed()[name].value}) is not a subclass of embank.tables.Method")
    return loaded


def build_method(spec: TableSpec) -> Method:
    """The method of a spec, ready to address and combine.

    Raises:
        ConfigError: unknown method or options of another method.
        BudgetError: the budget is below the method's floor.
    """
    return method_class(spec.method)(spec)
