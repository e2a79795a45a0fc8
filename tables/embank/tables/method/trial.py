"""A new method is tried on some of its ids before anything is trained: what an author gets wrong is said where it is
made, with the table's name, and not by a kernel in the middle of a training, or by nobody."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from embank.tables.errors import ConfigError, EmbankError
from embank.tables.method.base import Combined, Method, combination
from embank.tables.method.modes import evaluating
from embank.tables.rows.physical import PhysicalTable
from embank.tables.specs import TableSpec

_INTEGERS = (torch.int64, torch.int32)


def some_ids(num_embeddings: int) -> list[int]:
    """The first and the last id, and some between them.

    Example:
        >>> some_ids(4), some_ids(2**63)[-1] == 2**63 - 1
        ([0, 1, 2, 3], True)
    """
    last = num_embeddings - 1
    return sorted({min(i, last) for i in range(8)} | {i * last // 31 for i in range(32)})


def refuse_no_method(cls: type[Method], spec: TableSpec) -> None:
    """Raises ConfigError where a class of methods can't be made as all of them are."""
    if not isinstance(getattr(cls, "Config", None), type):
        raise ConfigError(
            f"{_who(spec)} has no Config; give the class one, decorated with embank.tables.option_class, with or "
            "without fields"
        )
    parameters = inspect.signature(cls).parameters.values()
    if not any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ConfigError(f"{_who(spec)} is made without a seed; define __init__(self, spec, *, seed=0)")


def refuse_unsound(method: Method, spec: TableSpec) -> None:
    """Tries a method on some ids, in evaluation mode and over rows of zeros. None of its state moves.

    Args:
        method: as its constructor left it.
        spec: of its table.

    Raises:
        ConfigError: what is wrong, with the value, and how to mend it.
    """
    who = _who(spec)
    if not isinstance(vars(method).get("_modules"), dict):
        raise ConfigError(f"{who} does not call super().__init__(spec, seed=seed) first in its __init__; let it")
    _refuse_physical(method.physical, who)
    if method.traits.is_plain:
        _refuse_not_plain(method.physical, spec, who)
    ids = some_ids(spec.num_embeddings)
    with evaluating(method), torch.autocast("cpu", enabled=False):
        for some in (ids, []):
            _try(method, torch.tensor(some, dtype=torch.int64), spec.embedding_dim, who)


def _who(spec: TableSpec) -> str:
    return f"table '{spec.name}': method '{spec.method}'"


def _refuse_physical(physical: Any, who: str) -> None:
    if not isinstance(physical, Sequence) or not all(isinstance(table, PhysicalTable) for table in physical):
        raise ConfigError(f"{who} has `physical` {physical!r}; give a tuple of PhysicalTable, one for each lookup")
    for table in physical:
        if table.num_embeddings < 1 or table.embedding_dim < 1:
            raise ConfigError(
                f"{who} declares the physical table '{table.name}' of {table.num_embeddings} rows x "
                f"{table.embedding_dim}; it needs at least one of each"
            )


def _refuse_not_plain(physical: Sequence[PhysicalTable], spec: TableSpec, who: str) -> None:
    shapes = [(table.name, table.num_embeddings, table.embedding_dim) for table in physical]
    if shapes != [(spec.name, spec.num_embeddings, spec.embedding_dim)]:
        raise ConfigError(
            f"{who} says that it is plain, but has the physical tables {shapes}, not one '{spec.name}' of "
            f"{spec.num_embeddings} rows x {spec.embedding_dim}; leave traits.is_plain out"
        )


def _try(method: Method, ids_N: Tensor, dim: int, who: str) -> None:
    given = ids_N.clone()
    with _step("address", ids_N, who):
        addressed = method.address(ids_N)
    _refuse_addressed(addressed, method.physical, given, who)
    with _step("side", ids_N, who):
        side = method.side(ids_N)
    if not (side is None or (isinstance(side, Tensor) and side.dim() and len(side) == len(given))):
        raise ConfigError(f"{who}: side gives {_shown(side)} for {len(given)} ids; give None or a tensor [N, ...]")
    if not torch.equal(ids_N, given):
        raise ConfigError(f"{who}: address or side writes into the ids that it is given; both must be pure")
    rows = tuple(torch.zeros(len(given), table.embedding_dim) for table in method.physical)
    with _step("combine", ids_N, who):
        combined = method.combine(rows, side)
    if isinstance(combined, Combined):
        raise ConfigError(
            f"{who}: combine adds to the loss in evaluation; return Combined(rows, loss) only `if self.training`, else "
            "the rows"
        )
    _refuse_other_rows(combined, len(given), dim, who)
    if combination(method) != "freely":
        _refuse_not_linear(method, rows, side, who)


def _refuse_not_linear(method: Method, zeros: Sequence[Tensor], side: Tensor | None, who: str) -> None:
    """Raises ConfigError where bags are pooled before `combine`, which gives something else than after it."""
    kind = combination(method)
    if side is not None:
        raise ConfigError(
            f"{who} combines {kind}, so that bags are pooled before combine, and has a side of each id, which combine "
            "would not see; leave traits.combines out"
        )
    first = tuple(torch.arange(rows.numel()).view(rows.shape).sin() for rows in zeros)
    second = tuple(rows.flip(0) for rows in first)
    together = _rows(method.combine(tuple(a + b for a, b in zip(first, second, strict=True)), None))
    apart = [torch.cat(r, dim=1) if kind == "side by side" else _rows(method.combine(r, None)) for r in (first, second)]
    expected = apart[0] + apart[1]
    if together.shape != expected.shape or not torch.allclose(together, expected, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"{who} says that it combines {kind}, but its combine of summed rows is not the sum of the combined rows"
            f"{' as they are' if kind == 'side by side' else ''}; leave traits.combines out"
        )


def _rows(combined: Tensor | Combined) -> Tensor:
    return combined.rows_ND if isinstance(combined, Combined) else combined


@contextmanager
def _step(step: str, ids_N: Tensor, who: str) -> Iterator[None]:
    """For what an author's step raises: says of which table it is. The cause keeps the traceback."""
    try:
        yield
    except EmbankError:
        raise
    except Exception as error:
        ids = f"ids {int(ids_N[0])} to {int(ids_N[-1])}" if len(ids_N) else "no ids, int64 [0]"
        raise ConfigError(f"{who}: {step} fails for {ids}: {type(error).__name__}: {error}") from error


def _refuse_addressed(addressed: Any, physical: Sequence[PhysicalTable], ids_N: Tensor, who: str) -> None:
    """Raises ConfigError unless there is one tensor of row ids for each lookup."""
    num = len(ids_N)
    if not isinstance(addressed, tuple | list) or len(addressed) != len(physical):
        raise ConfigError(
            f"{who}: address gives {_shown(addressed)}, and `physical` names {len(physical)} lookups; give a tuple of "
            "as many tensors of row ids"
        )
    for rows_N, table in zip(addressed, physical, strict=True):
        if not isinstance(rows_N, Tensor) or rows_N.shape != (num,) or rows_N.dtype not in _INTEGERS:
            raise ConfigError(f"{who}: address gives {_shown(rows_N)} for {num} ids; give row ids, int64 [{num}]")
        wrong = (rows_N < 0) | (rows_N >= table.num_embeddings)
        if bool(wrong.any()):
            raise ConfigError(
                f"{who}: address sends id {int(ids_N[wrong][0])} to row {int(rows_N[wrong][0])} of '{table.name}', "
                f"which has rows 0 to {table.num_embeddings - 1}; mend address or num_rows"
            )


def _refuse_other_rows(combined: Any, num: int, dim: int, who: str) -> None:
    """Raises ConfigError unless logical rows are of their table's size."""
    if not isinstance(combined, Tensor) or combined.shape != (num, dim) or combined.dtype != torch.float32:
        raise ConfigError(
            f"{who}: combine gives {_shown(combined)} for {num} ids, but the table has embedding_dim {dim}; give fp32 "
            f"rows [{num}, {dim}]: mend combine, or the width of the physical tables"
        )


def _shown(value: Any) -> str:
    """A value in a message: of a tensor its type and shape."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "nothing (None)" if value is None else f"a {type(value).__name__}"
