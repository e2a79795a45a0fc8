"""How a method makes its rows from vectors that others have trained: what it would look up, it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from embank.tables.errors import ConfigError

if TYPE_CHECKING:
    from embank.tables.method.base import Method


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a table is to look up, checked: a vector for each of some ids.

    Args:
        ids_K: int64, distinct, ascending.
        vectors_KD: fp32.
        weights_K: fp32, above 0, of mean 1: how much each id counts where ids share numbers.

    Example:
        >>> wanted = Wanted(ids_K=torch.tensor([0, 7]), vectors_KD=torch.ones(2, 4), weights_K=torch.ones(2))
    """

    ids_K: Tensor
    vectors_KD: Tensor
    weights_K: Tensor


class CurrentRows(Protocol):
    """The rows as they are before."""

    def gathered(self, table: str, rows_N: Tensor) -> Tensor:
        """Some rows [N, width] of a physical table, fp32, in host memory; every process asks for the same ones."""


@dataclass(frozen=True, kw_only=True)
class NewRows:
    """Some rows of a physical table.

    Args:
        numbers_U: int64, distinct.
        values_Uw: fp32.

    Example:
        >>> new = NewRows(numbers_U=torch.tensor([3]), values_Uw=torch.ones(1, 8))
    """

    numbers_U: Tensor
    values_Uw: Tensor


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit has found.

    Args:
        rows: by physical table; rows that are not named stay.
        dense: by table, values of the method's parameters and buffers by their names in its `state_dict`.
        hints: by table, attributes of the method that its `Schedule.advance` reads.

    Example:
        >>> new = NewRows(numbers_U=torch.tensor([3]), values_Uw=torch.ones(1, 8))
        >>> fitted = Fitted(rows={"item": new})
    """

    rows: Mapping[str, NewRows]
    dense: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    hints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Fitting:
    """The default of a plain table: its rows are the vectors. Any other method says by a subclass how it is fitted.

    It has no state of its own, and changes nothing: what it returns is written by the collection, wherever rows are.

    Example:
        >>> class Doubled(Fitting):  # of a method whose `combine` halves its rows
        ...     def fit(self, methods, wanted, rows, *, seed):
        ...         (method,), (own,) = methods, wanted
        ...         new = NewRows(numbers_U=own.ids_K, values_Uw=2 * own.vectors_KD)
        ...         return Fitted(rows={method.physical[0].name: new})
        >>> traits = Traits(fitting=Doubled())
    """

    def fit(self, methods: "Sequence[Any]", wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        """Rows with which tables look up what is wanted, as nearly as they can in the stage that they are in.

        Nearly means: the least sum of squared differences, each id's times its weight.

        Args:
            methods: one, or all that share physical tables; in host memory and in evaluation mode.
            wanted: for each of them.
            rows: as they are now.
            seed: the collection's.

        Raises:
            ConfigError: the method can't be fitted, and why.
        """
        if not methods[0].traits.is_plain:
            spec = methods[0].spec
            raise ConfigError(
                f"table '{spec.name}': method '{spec.method}' does not say how it is fitted to given rows, so it can't "
                f"take any. Give its traits a `fitting`, or use a method that has one, such as 'full'"
            )
        return OwnRows().fit(methods, wanted, rows, seed=seed)

    def guide(self, methods: "Sequence[Any]", wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        """What a stage before the last one is left with, so that `Schedule.advance` chooses well for what is wanted; by
        default what `fit` gives."""
        return self.fit(methods, wanted, rows, seed=seed)


class OwnRows(Fitting):
    """Of methods that have a row for each id, of the embedding dim: the vectors as they are. What the method itself
    makes of them (codes, pruning) is made when they are looked up or served.

    Example:
        >>> traits = Traits(fitting=OwnRows())
    """

    def fit(self, methods: "Sequence[Method]", wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        pairs = zip(methods, wanted, strict=True)
        return Fitted(
            rows={m.physical[0].name: NewRows(numbers_U=own.ids_K, values_Uw=own.vectors_KD) for m, own in pairs}
        )
