"""A byte budget for tables that codecs hold once they are trained: the bytes that count are the coded ones.

Methods know nothing of codecs: their sizes follow from a budget in fp32 bytes. So the largest such budget is looked for
whose tables, coded, keep the given one. Bytes are those of the tables' layouts, without rows.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from embank.compression.budget.floors import as_plain, share_text
from embank.compression.budget.layout import layout_of
from embank.compression.budget.solver import share
from embank.tables import BudgetError, ConfigError, TableSpec, build_method, named_codec

_STEPS = 512
_LOWEST = 1 / 16
"""Of the budget: codecs of tiny tables may take more than fp32 does."""


def coded_nbytes(specs: Sequence[TableSpec], codecs: Mapping[str, str]) -> int:
    """Serving bytes of tables under their codecs, without rows; where training decides, as many as budgets allow. Rows
    that several tables share under one codec are counted once.

    Raises:
        BudgetError, ConfigError: what a method refuses; a codec's bytes depend on the rows.

    Example:
        >>> spec = TableSpec(
        ...     name="item", num_embeddings=1000, embedding_dim=16, feature_names=["item"], method="hash", budget=0.5
        ... )
        >>> coded_nbytes([spec], {"item": "fp32"}), coded_nbytes([spec], {"item": "int4"})
        (31944, 4500)
    """
    total, counted = 0, set()
    for spec in specs:
        codec, layout = named_codec(codecs[spec.name]), layout_of(spec)
        total += layout.rest_nbytes
        for (rows, columns), name in zip(layout.matrices, layout.names, strict=True):
            if not name or (name, codec.name) not in counted:
                total += codec.nbytes_of(rows, columns)
            counted.add((name, codec.name))
    return total


def share_coded(
    specs: Sequence[TableSpec], *, budget: float, codecs: Mapping[str, str], plain_below: int = 0
) -> list[TableSpec]:
    """Specs whose coded serving bytes together are at most `budget` of the plain fp32 tables' bytes, see `share`.

    Where all tables fit as plain ones, coded, they are plain.

    Args:
        specs, budget, plain_below: see `share`.
        codecs: of each table.

    Raises:
        BudgetError: all floors together exceed the budget, coded; states the floor.
        ConfigError: what methods refuse, or a codec whose bytes depend on the rows.

    Example:
        >>> specs = [
        ...     TableSpec(name=n, num_embeddings=10_000, embedding_dim=16, feature_names=[n], method="hash")
        ...     for n in ("user", "item")
        ... ]
        >>> plain = share_coded(specs, budget=0.1, codecs={"user": "fp32", "item": "fp32"})
        >>> coded = share_coded(specs, budget=0.1, codecs={"user": "int4", "item": "int4"})
        >>> [round(spec.budget, 2) for spec in plain], [round(spec.budget, 2) for spec in coded]
        ([0.1, 0.1], [0.71, 0.71])
    """
    if {codecs[spec.name] for spec in specs} <= {"fp32"}:
        return share(specs, budget=budget, plain_below=plain_below)
    return _largest(specs, budget=budget, codecs=codecs, form=lambda b: share(specs, budget=b, plain_below=plain_below))


def within_coded(spec: TableSpec, *, codec: str) -> TableSpec:
    """A table of its own budget, the budget being one of coded bytes, see `share_coded`.

    Example:
        >>> spec = TableSpec(
        ...     name="item", num_embeddings=1000, embedding_dim=16, feature_names=["item"], method="hash", budget=0.05
        ... )
        >>> round(within_coded(spec, codec="int4").budget, 2)
        0.35
    """
    if spec.budget is None or codec == "fp32":
        return spec

    def form(budget: float) -> list[TableSpec]:
        build_method(made := replace(spec, budget=budget))
        return [made]

    (made,) = _largest([spec], budget=spec.budget, codecs={spec.name: codec}, form=form)
    return made


def _largest(
    specs: Sequence[TableSpec],
    *,
    budget: float,
    codecs: Mapping[str, str],
    form: Callable[[float], list[TableSpec]],
) -> list[TableSpec]:
    """The form of the largest fp32 budget whose coded bytes keep the budget.

    Args:
        specs: of the tables.
        budget: share of plain bytes, coded.
        codecs: of each table.
        form: the specs under an fp32 budget.
    """
    plain_nbytes = sum(spec.plain_nbytes for spec in specs)
    allowed_nbytes = budget * plain_nbytes

    @cache
    def tried(step: int) -> tuple[list[TableSpec], int] | None:
        """The form and its coded bytes; None below the methods' floors."""
        try:
            made = form(_budget_at(step, budget))
            return made, coded_nbytes(made, codecs)
        except BudgetError:
            return None

    def is_over(step: int) -> bool:
        return (made := tried(step)) is not None and made[1] > allowed_nbytes

    plain = [as_plain(spec) for spec in specs]
    plain_coded_nbytes = coded_nbytes(plain, codecs)
    if plain_coded_nbytes <= allowed_nbytes:
        return plain
    steps = range(_STEPS + 1)
    last = tried(bisect_right(steps, False, key=is_over) - 1) if not is_over(0) else None
    if last is not None:
        return last[0]
    first = bisect_right(steps, False, key=lambda step: tried(step) is not None)
    smallest = tried(first) if first <= _STEPS else None
    floor_nbytes = plain_coded_nbytes if smallest is None else smallest[1]
    raise BudgetError(
        f"the budget of {len(specs)} tables is {budget}, {allowed_nbytes:,.0f} bytes, but coded "
        f"({', '.join(sorted({codecs[spec.name] for spec in specs}))}) their floor is about {floor_nbytes:,} bytes, "
        f"budget {share_text(floor_nbytes, plain_nbytes)}. Raise the budget, or choose a codec of fewer bits"
    )


def _budget_at(step: int, budget: float) -> float:
    """fp32 budgets from a part of the budget up to 1, each larger than the last by the same factor."""
    lowest = budget * _LOWEST
    return min(1.0, lowest * float((1 / lowest) ** (step / _STEPS)))


def refuse_unknown_nbytes(codec: str, *, where: str) -> None:
    """Raises ConfigError for a name that no codec has, and for a codec whose bytes depend on the rows, where a budget
    counts them."""
    named = named_codec(codec)  # in front of the try: a name that no codec has is refused as that
    try:
        named.nbytes_of(1, 1)
    except ConfigError as error:
        raise ConfigError(
            f"{where} has codec '{codec}' and a budget, but how many bytes that takes is only known once rows are "
            "trained; leave the budget out, or choose another codec"
        ) from error
