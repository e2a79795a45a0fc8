"""Rows that others have trained, in place of a collection's own: `Tables.import_rows`.

Everything is checked and computed before anything is written, so that a refusal changes nothing.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from embank.tables.collections.given import Found, GivenRows, find
from embank.tables.collections.held_rows import HeldRows, by_class
from embank.tables.collections.state import WIDER_ROWS, refuse_beyond
from embank.tables.errors import ConfigError
from embank.tables.ids.vocabulary import Vocabulary
from embank.tables.method.base import Method, physical_tables
from embank.tables.method.fitting import Fitted, NewRows, Wanted
from embank.tables.method.modes import evaluating
from embank.tables.method.schedule import is_last_stage
from embank.tables.wording import listing, nearest_or_all

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables

_NUMBERS_PER_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ImportedRows:
    """What became of given vectors.

    Args:
        table: the table's name.
        taken: ids that got a vector.
        missing: ids of the table without one; None where it has no vocabulary, so that nobody knows its ids.
        surplus: vectors whose id or token the table does not have.
        duplicates: vectors equal to an earlier one of the same id.
        error: what the table looks up now, against the vectors: the norm of the difference over the norm of the vectors
            (Frobenius). 0 for exactly the same.
        weighted_error: the same with each id's square times its weight, which is what a fit makes small.
        cosine: mean cosine between what is looked up and the vector; vectors of zeros are left out.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=4, embedding_dim=2, feature_names=["item"])
        >>> report = TableCollection([spec]).import_rows("item", torch.tensor([3, 9]), torch.ones(2, 2))
        >>> report.taken, report.missing, report.surplus, report.error
        (1, 3, 1, 0.0)
    """

    table: str
    taken: int
    missing: int | None
    surplus: int
    duplicates: int
    error: float
    weighted_error: float
    cosine: float


def import_rows(
    self: "Tables",
    table: str,
    ids_or_tokens: Any,
    vectors: Any,
    *,
    vocabulary: Vocabulary | None = None,
    weights: Any = None,
) -> ImportedRows:
    """Takes vectors that others have trained for the rows of a table, or fits the table's method to them.

    A plain table takes them as they are; ids without a vector keep what they have. A method that has fewer numbers is
    fitted: the sum of squared differences, each id's times its weight, is made small (see the docs page on fitting).
    The optimizer's state of the rows that change begins anew, since it is that of other values. Training goes on from
    there.

    A method that trains in several stages is fitted in the stage that it is in; `fit_tables` takes it to its last one.

    Args:
        table: name of a logical table.
        ids_or_tokens: int64 [K], ids of the table, or K tokens. Those that it does not have are counted.
        vectors: [K, D], a tensor or a NumPy array.
        vocabulary: what finds the ids of tokens. A table without a vocabulary hashes its tokens.
        weights: [K], 0 or more: how much each id counts where ids share numbers, such as its count in training; None
            for equally much.

    Returns:
        What was taken, what was missing and left over, and how near the table is to the vectors now.

    Raises:
        ConfigError: no such table, shapes or types that don't fit it, tokens without a vocabulary, a method that can't
            be fitted, rows that another table shares (give both at once to `fit_tables`), rows too large for the tier's
            type. Nothing has changed.
        DataError: numbers that are not finite, two vectors that differ for one id, none for an id of the table. Nothing
            has changed.

    Where rows are sharded, all processes call it with the same arguments, and each keeps what it holds.
    """
    given = GivenRows(ids=ids_or_tokens, vectors=vectors, vocabulary=vocabulary, weights=weights)
    return import_all(self, {table: given})[table]


@torch.no_grad()
def import_all(tables: "Tables", given: Mapping[str, GivenRows], *, guides: bool = False) -> dict[str, ImportedRows]:
    """`import_rows` for several tables at once, which may share rows.

    Args:
        tables: between two steps.
        given: by table.
        guides: tables that are not in their last stage are prepared for `advance` only, see `Fitting.guide`.
    """
    found = find_all(tables, given)
    fits = []
    rows = HeldRows(tables)
    with evaluating(tables.methods):
        for names in _sharing(tables, list(given)):
            methods = [_on_host(tables, name) for name in names]
            wanted = [found[name].wanted for name in names]
            fitting = methods[0].traits.fitting
            make = fitting.guide if guides and not is_last_stage(methods[0]) else fitting.fit
            fits.append(make(methods, wanted, rows, seed=tables.seed))
    with tables.processes.together():  # what another machine has fitted may be a little larger
        for fitted in fits:
            for physical, new in fitted.rows.items():
                _refuse_too_large(tables, physical, new.values_Uw)
    for fitted in fits:
        _write(tables, fitted)
    return {name: _report(tables, name, own) for name, own in found.items()}


def refuse_too_large_vectors(tables: "Tables", found: Mapping[str, Found]) -> None:
    """Raises ConfigError where vectors are a table's rows as they are, and too large for the type of its tier. How
    large the rows of other tables get, only their fit tells."""
    for name, own in found.items():
        method = _method(tables, name)
        if method.traits.is_plain:
            _refuse_too_large(tables, method.physical[0].name, own.wanted.vectors_KD)


def _refuse_too_large(tables: "Tables", physical: str, rows: Tensor) -> None:
    refuse_beyond(rows, tables.tier.torch_dtype, what=f"rows of table '{physical}'", cure=WIDER_ROWS)


def find_all(tables: "Tables", given: Mapping[str, GivenRows]) -> dict[str, Found]:
    """Given rows, checked and found in their tables.

    Raises:
        ConfigError: no such table, no `GivenRows`, or what `find` refuses.
    """
    specs = {spec.name: spec for spec in tables.specs}
    for name, own in given.items():
        if not isinstance(name, str):
            raise ConfigError(f"{name!r} is no name of a table; give one of {listing(specs)}")
        if not isinstance(own, GivenRows):
            raise ConfigError(
                f"what is given for table '{name}' is {type(own).__name__}; give GivenRows(ids=..., vectors=...)"
            )
        if name not in specs:
            raise ConfigError(f"there is no table '{name}'; {nearest_or_all(name, specs, label='there are')}")
    return {name: find(specs[name], own) for name, own in given.items()}


def _sharing(tables: "Tables", names: Sequence[str]) -> list[list[str]]:
    """The tables, those together that share physical ones.

    Raises:
        ConfigError: one shares rows with a table that is not among them.
    """
    readers: dict[str, list[str]] = {}
    for method in tables.built_methods():
        for physical in physical_tables(method):
            readers.setdefault(physical.name, []).append(method.spec.name)
    groups: list[list[str]] = [[name] for name in names]
    for physical_name, reading in readers.items():
        asked = [name for name in reading if name in names]
        if not asked or len(reading) == 1:
            continue
        if len(asked) < len(reading):
            other = next(name for name in reading if name not in names)
            raise ConfigError(
                f"table '{asked[0]}' shares the rows '{physical_name}' with table '{other}', whose values they would "
                "change too; give the vectors of both at once: embank.tables.fit_tables"
            )
        joined = [group for group in groups if set(group) & set(reading)]
        groups = [group for group in groups if group not in joined] + [[name for group in joined for name in group]]
    return groups


def _method(tables: "Tables", name: str) -> Method:
    return next(method for method in tables.built_methods() if method.spec.name == name)


def _on_host(tables: "Tables", name: str) -> Method:
    method = _method(tables, name)
    return deepcopy(method).cpu() if tables.tier.on_gpu else method


def _write(tables: "Tables", fitted: Fitted) -> None:
    """Puts what was fitted where it is held, and lets the optimizer begin anew with it."""
    processes = tables.processes

    def agreed(values: Tensor) -> Tensor:
        """The first process's values: another machine may round otherwise."""
        return processes.sum(values if processes.is_first else torch.zeros_like(values))

    with HeldRows(tables) as held:
        for name, new in fitted.rows.items():
            values_Uw = agreed(new.values_Uw)
            if name in held.stores:
                _put(held, name, NewRows(numbers_U=new.numbers_U, values_Uw=values_Uw))
    for name, dense in fitted.dense.items():
        method = _method(tables, name)
        state = method.state_dict()
        state |= {key: agreed(value.to(state[key].dtype)) for key, value in dense.items()}
        method.load_state_dict(state)
    for name, hints in fitted.hints.items():
        vars(_method(tables, name)).update(hints)


def _put(held: HeldRows, name: str, new: NewRows) -> None:
    target, shard = held[name], held.shards[name]
    here, local = shard.local_rows(new.numbers_U)
    columns = slice(shard.first_column, shard.first_column + shard.num_columns)
    target[local.to(target.device)] = new.values_Uw[here, columns].to(target)
    for state in held.stores[name].optimizer_state()[name].values():
        state[local.to(state.device)] = 0


def _report(tables: "Tables", name: str, found: Found) -> ImportedRows:
    spec, wanted = _method(tables, name).spec, found.wanted
    difference = differences(tables, name, wanted)
    return ImportedRows(
        table=name,
        taken=len(wanted.ids_K),
        missing=spec.num_embeddings - len(wanted.ids_K) if spec.has_vocabulary else None,
        surplus=found.surplus,
        duplicates=found.duplicates,
        error=difference.error,
        weighted_error=difference.weighted_error,
        cosine=difference.cosine,
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far a table is from vectors; see `ImportedRows`.

    Args:
        weighted_square: the sum of squared differences, each id's times its weight.
    """

    error: float
    weighted_error: float
    weighted_square: float
    cosine: float


@torch.no_grad()
def differences(tables: "Tables", name: str, wanted: Wanted) -> Difference:
    """Compares what a table looks up, settled, to what is wanted. All processes call it together."""
    method = _method(tables, name)
    rows = _settled(tables, method)
    width = max([method.spec.embedding_dim, sum(table.embedding_dim for table in method.physical)])
    size = max(1, _NUMBERS_PER_CHUNK // width)
    total = torch.zeros(6, dtype=torch.float64)
    device = tables.device
    with evaluating(method):
        for start in range(0, len(wanted.ids_K), size):
            ids_k, vectors_kD = wanted.ids_K[start : start + size], wanted.vectors_KD[start : start + size].double()
            weights_k = wanted.weights_K[start : start + size].double()
            side = method.side(ids_k)
            addressed = zip(method.physical, method.address(ids_k), strict=True)
            looked_up = tuple(rows.gathered(table.name, row_k).to(device) for table, row_k in addressed)
            combined = method.combine(looked_up, None if side is None else side.to(device))
            assert isinstance(combined, Tensor)
            total += _sums(combined.cpu().double(), vectors_kD, weights_k)
    square, norm, weighted, weighted_norm, cosine, num = total.tolist()
    return Difference(
        error=_ratio(square, norm),
        weighted_error=_ratio(weighted, weighted_norm),
        weighted_square=weighted,
        cosine=cosine / num if num else 1.0,
    )


def _sums(found_kD: Tensor, vectors_kD: Tensor, weights_k: Tensor) -> Tensor:
    square_k, norm_k = (found_kD - vectors_kD).square().sum(1), vectors_kD.square().sum(1)
    is_row_k = norm_k > 0
    cosine_k = torch.nn.functional.cosine_similarity(found_kD[is_row_k], vectors_kD[is_row_k], dim=1, eps=1e-30)
    parts = (square_k, norm_k, square_k * weights_k, norm_k * weights_k, cosine_k, is_row_k.double())
    return torch.stack([part.sum() for part in parts])


def _ratio(square: float, norm: float) -> float:
    return float((square / norm) ** 0.5) if norm else float(square > 0)


def _settled(tables: "Tables", method: Method) -> HeldRows:
    """The rows as they would be served; copies where that changes them."""
    schedule = method.traits.schedule
    if not (schedule.settles and is_last_stage(method)):
        return HeldRows(tables)
    methods = by_class(tables)[type(method)]
    rows = HeldRows(tables, copied=[table.name for each in methods for table in each.physical])
    schedule.settle(methods, rows)
    return rows
