"""Unified Embedding for a whole model, from one line: rows, width, and lookups by feature; and what to expect of it.

Legend: M rows of the shared table, w their width, N_f values of feature f, c_f its lookups.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from embank.compression.methods.unified import Unified, UnifiedConfig, fixed_nbytes, placement_of, shape_of
from embank.tables import ConfigError, TableSpec, build_method
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from embank.tables.specs import Pooling
from embank.tables.wording import human_bytes, nearest_or_all

CONCENTRATED = 0.4
"""Above this share of collisions within features, sharing protects little: published vocabularies have .09 (Criteo,
gains grow as the table shrinks), .36 (MovieLens-1M) and .49 (Avazu, nearly all of it from one feature)."""


def unified_specs(
    *,
    rows: int,
    width: int,
    lookups: Mapping[str, int],
    num_embeddings: Mapping[str, int] | None = None,
    embedding_dim: int | None = None,
    exact: Collection[str] = (),
    private: Mapping[str, int] | None = None,
    exact_below: int = 100,
    table: str = "shared",
    num_tables: int = 1,
    pooling: Pooling = "sum",
) -> list[TableSpec]:
    """One shared table for some features: `unified_specs(rows=100_000, width=8, lookups={"user": 4, "item": 2, "genre":
    1})`.

    Args:
        rows: M, of the shared table.
        width: w.
        lookups: for each feature the number of its lookups, whose rows lie side by side.
        num_embeddings: by feature, for those that have a vocabulary; the ids of the others are hashes of tokens, see
            `embank.tables.ids.token_hash`.
        embedding_dim: of every feature, by a learned projection where it is not lookups * width; None takes lookups *
            width.
        exact: features that get plain tables, whatever their size.
        private: by feature, rows of a hashed table of its own.
        exact_below: features with a vocabulary of fewer ids get plain tables.
        table: name of the shared table.
        num_tables: tables of `rows` rows each that it consists of. Lookups are dealt to them in turn, feature after
            feature, so that their numbers of lookups differ by at most 1; a feature that is added moves those that come
            after it.
        pooling: of bags.

    Returns:
        A spec for each feature in the order of `lookups`, for a `TableCollection`.

    Raises:
        ConfigError: a feature that is named elsewhere but has no lookups, or is both exact and private.

    Example:
        >>> specs = unified_specs(rows=1000, width=8, lookups={"user": 2, "item": 1}, num_embeddings={"item": 500})
        >>> [(spec.name, spec.num_embeddings, spec.embedding_dim) for spec in specs]
        [('user', 9223372036854775808, 16), ('item', 500, 8)]
        >>> TableCollection(specs).nbytes("serving")
        32024
    """
    vocabularies, private = num_embeddings or {}, private or {}
    for argument, names in (("num_embeddings", vocabularies), ("exact", exact), ("private", private)):
        for name in names:
            if name not in lookups:
                raise ConfigError(
                    f"'{argument}' names feature '{name}', which has no lookups; "
                    f"{nearest_or_all(name, lookups, label='they are given for')}"
                )
    for name in exact:
        if name in private:
            raise ConfigError(f"feature '{name}' is both exact and private; keep one of them")
    specs = []
    dealt = 0
    for name, count in lookups.items():
        options = UnifiedConfig(
            table=table,
            rows=private.get(name, rows),
            width=width,
            lookups=count,
            placement="exact" if name in exact else "private" if name in private else "auto",
            exact_below=exact_below,
            num_tables=num_tables,
            first_table=dealt % num_tables if num_tables > 1 else None,
        )
        specs.append(
            TableSpec(
                name=name,
                num_embeddings=vocabularies.get(name, NUM_TOKEN_IDS),
                embedding_dim=embedding_dim or width * count,
                feature_names=[name],
                pooling=pooling,
                method="unified",
                options=options,
            )
        )
        is_shared = placement_of(specs[-1], options) == "shared"
        dealt += shape_of(specs[-1], options)[1] if is_shared else 0
    return specs


@dataclass(frozen=True, kw_only=True)
class FeatureAdvice:
    """What to expect of one table.

    Args:
        name, placement: of the table.
        num_values: N_f; None where neither a vocabulary nor an estimate was given.
        lookups: c_f, rows that are read for one id.
        intra: expected share of its values that share a row with another of its values *in the same lookup*: they are
            merged there for good, since the same weights read both.
        merged: expected share of its values that share their rows in *all* lookups with one other value: equal for the
            model.
        inter: expected share of its values that share the row of a lookup with something else: a value of another
            table, or one in another lookup. A model can learn to read these apart.
    """

    name: str
    placement: str
    num_values: int | None
    lookups: int
    intra: float | None
    merged: float | None
    inter: float | None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to expect of a collection before it is trained. `str` gives it as a table.

    Args:
        features: one per table.
        serving_nbytes: bytes of all tables in their inference form, shared rows counted once.
        lookups: rows that are read for an example of one id per feature.
        concentration: by shared table, sum_f (N_f / N)**2: the part of its colliding pairs, per lookup, that is within
            features. Separate tables have no other pairs.
        warnings: what had better be changed.
    """

    features: Sequence[FeatureAdvice]
    serving_nbytes: int
    lookups: int
    concentration: Mapping[str, float]
    warnings: Sequence[str]

    def __str__(self) -> str:
        header = ("table", "placement", "values", "lookups", "intra", "merged", "inter")
        lines = [header, *(_cells(feature) for feature in self.features)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
        shown = [
            "  ".join(
                cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        total = f"{human_bytes(self.serving_nbytes)} serving, {self.lookups} lookups per example"
        shares = [
            f"{name}: {share:.0%} of colliding pairs are within features" for name, share in self.concentration.items()
        ]
        return "\n".join(
            [*(line.rstrip() for line in shown), total, *shares, *(f"warning: {w}" for w in self.warnings)]
        )


def _cells(feature: FeatureAdvice) -> tuple[str, ...]:
    values = "?" if feature.num_values is None else f"{feature.num_values:,}"
    rates = ("?" if rate is None else f"{rate:.2%}" for rate in (feature.intra, feature.merged, feature.inter))
    return (feature.name, feature.placement, values, f"{feature.lookups}", *rates)


def advise(specs: Sequence[TableSpec], *, num_values: Mapping[str, int] | None = None) -> Advice:
    """Bytes, lookups and expected collisions of tables of method 'unified', in closed form.

    With one hash per lookup, a value escapes one particular other value with probability 1 - 1/M; the rates follow from
    the number of those that it must escape. The shared table's expected colliding pairs, N**2 / 2M, are as many as
    those of the best split into separate tables (rows in proportion to values), but there all of them merge values of
    one feature.

    Args:
        specs: tables of method 'unified', of their final size.
        num_values: by table, distinct values that are expected, for tables without a vocabulary.

    Raises:
        ConfigError: a table of another method, or one whose size is not decided.

    Example:
        >>> specs = unified_specs(rows=1000, width=8, lookups={"user": 2, "item": 1}, num_embeddings={"item": 500})
        >>> print(advise(specs, num_values={"user": 2000}))
        table  placement  values  lookups   intra  merged   inter
        user   shared      2,000        2  86.47%   0.20%  91.80%
        item   shared        500        1  39.30%  39.30%  98.17%
        31.3 KiB serving, 3 lookups per example
        unified/shared/8: 68% of colliding pairs are within features
        warning: 68% of the colliding pairs in 'unified/shared/8' are within features, mostly of 'user': sharing
        protects it little. Give it private rows
    """
    estimates = num_values or {}
    methods = []
    for spec in specs:
        method = build_method(spec)
        if not isinstance(method, Unified):
            raise ConfigError(
                f"table '{spec.name}' has method '{spec.method}'; advise takes tables of method 'unified'"
            )
        methods.append(method)
    values = {m.spec.name: _num_values(m.spec, estimates) for m in methods}
    hashed = [method for method in methods if method.placement != "exact"]
    physical = {table.name: table for method in methods for table in method.physical}
    tables = {name: found for name in physical if (found := [m for m in hashed if _lookups_of(m, name)])}
    features = [_feature(method, tables, values) for method in methods]
    rows_nbytes = sum(4 * table.num_embeddings * table.embedding_dim for table in physical.values())
    concentration = {
        name: share
        for name, members in tables.items()
        if members[0].placement == "shared" and (share := _concentration(members, values)) is not None
    }
    warnings = [
        f"{share:.0%} of the colliding pairs in '{name}' are within features, mostly of "
        f"'{max(tables[name], key=lambda m: values[m.spec.name] or 0).spec.name}': sharing protects it little. Give it "
        "private rows"
        for name, share in concentration.items()
        if share > CONCENTRATED
    ]
    return Advice(
        features=features,
        serving_nbytes=rows_nbytes + sum(fixed_nbytes(method.spec) for method in hashed),
        lookups=sum(len(method.physical) * len(method.spec.feature_names) for method in methods),
        concentration=concentration,
        warnings=warnings,
    )


def _num_values(spec: TableSpec, estimates: Mapping[str, int]) -> int | None:
    if spec.name in estimates:
        return estimates[spec.name]
    return None if spec.num_embeddings >= NUM_TOKEN_IDS else spec.num_embeddings


def _lookups_of(method: Unified, table: str) -> int:
    """How many of a method's lookups read a physical table."""
    return sum(own.name == table for own in method.physical)


def _feature(
    method: Unified, tables: Mapping[str, Sequence[Unified]], values: Mapping[str, int | None]
) -> FeatureAdvice:
    """Rates of one table among those that read the same rows, which `tables` has by the rows' name."""
    num, lookups = values[method.spec.name], len(method.physical)
    intra = merged = inter = None
    if method.placement == "exact":
        intra = merged = inter = 0.0
    elif num is not None:
        same = 1 / method.num_rows
        intra = _hit(same, num - 1)
        merged = _hit(same**lookups, num - 1)
        read = [table.name for table in method.physical]
        if all(values[m.spec.name] is not None for table in read for m in tables[table]):
            loads = [sum(_lookups_of(m, table) * (values[m.spec.name] or 0) for m in tables[table]) for table in read]
            inter = sum(_hit(same, load - num) for load in loads) / lookups
    return FeatureAdvice(
        name=method.spec.name,
        placement=method.placement,
        num_values=num,
        lookups=lookups,
        intra=intra,
        merged=merged,
        inter=inter,
    )


def _hit(probability: float, trials: int) -> float:
    """1 - (1 - p)**n, exact for small p."""
    return 1.0 if probability == 1 and trials else -math.expm1(trials * math.log1p(-probability)) if trials else 0.0


def _concentration(members: Sequence[Unified], values: Mapping[str, int | None]) -> float | None:
    loads = [values[method.spec.name] for method in members]
    known = [load for load in loads if load is not None]
    if len(known) < len(loads) or len(known) < 2:
        return None
    return sum(load**2 for load in known) / sum(known) ** 2
