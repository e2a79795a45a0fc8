"""Which method stores each table, how large, with which of its options, and in which codec."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from embank.compression.budget.layout import PLAIN, CodecNbytes, Layout, layout_of
from embank.compression.budget.solver import at_floor
from embank.search.spaces.options import OptionChoices, choices_of
from embank.search.spaces.parameter import Candidate, Group, Parameter, Value
from embank.search.spaces.tables import TableSpace
from embank.tables import BudgetError, ConfigError, TableSpec, build_method, method_class

SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Budgets of a table that a search tries."""


class MethodSpace(TableSpace):
    """Which method stores each table.

    Args:
        specs: the plain tables.
        methods: names of registered methods. A method that a table can't be stored by (it refuses the table's sizes, or
            wants counts) is left out for that table.
        shares: budgets of a table, serving bytes / plain bytes, for the methods that take one. A share below a method's
            floor stands for the floor.
        codecs: bytes of a coded matrix, by codec.
        extra: parameters without bytes, such as learning rates.

    A candidate's parameters are `method.TABLE`; for methods that take a budget `share.TABLE`; `METHOD.OPTION.TABLE` for
    the options whose choices the method's `Config` declares (see `embank.search.spaces.options`), which take the place
    of the budget where they decide the size; and with several codecs `codec.TABLE`.

    Bytes are those of the packed form, known from its shapes. Where training decides them (`is_exact` is False) they
    are what the table's budget allows, which is never less.

    >>> tables = [TableSpec(name=n, num_embeddings=1000, embedding_dim=8, feature_names=[n]) for n in ("a", "b")]
    >>> space = MethodSpace(tables, methods=["full", "hash"], shares=[0.25, 0.5])
    >>> candidate = {"method.a": "full", "method.b": "hash", "share.b": 0.5}
    >>> space.nbytes(candidate), space.specs(candidate)[1].method, space.size
    (47976, 'hash', 9)
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        methods: Sequence[str],
        shares: Sequence[float] = SHARES,
        codecs: Mapping[str, CodecNbytes] = PLAIN,
        extra: Sequence[Parameter] = (),
    ) -> None:
        for method in methods:
            method_class(method)  # an unknown one is refused by name
        if not methods or not codecs:
            raise ConfigError("a space of methods needs at least one method and one codec")
        self.codecs = codecs
        self.shares = tuple(sorted(shares))
        self._layouts: dict[tuple[Any, ...], Layout] = {}
        groups = [self._group(spec, methods) for spec in specs]
        if extra:
            groups.append(Group(name="", parameters=tuple(extra)))
        super().__init__(specs, groups)

    def codec(self, table: str, candidate: Mapping[str, Value]) -> str:
        """The codec of a table."""
        return str(candidate.get(f"codec.{table}", next(iter(self.codecs))))

    def is_exact(self, candidate: Mapping[str, Value]) -> bool:
        """Whether the candidate's bytes are exact, not a bound."""
        return all(self._layout(spec).is_exact for spec in self.specs(candidate))

    def form(self, spec: TableSpec, values: Candidate) -> TableSpec:
        name, method = spec.name, str(values[f"method.{spec.name}"])
        cls = method_class(method)
        options = {
            choices.option: values[f"{method}.{choices.option}.{name}"] for choices in self.choices(spec, method)
        }
        share = values.get(f"share.{name}")
        made = replace(
            spec,
            method=method,
            options=cls.Config(**options) if options else None,
            budget=None if share is None else float(share),
        )
        return made if share is None or _builds(made) else at_floor(replace(made, budget=1.0))[0]

    def form_nbytes(self, spec: TableSpec, values: Candidate) -> int:
        codec = self.codec(spec.name, values)
        return self._layout(self.form(spec, values)).nbytes(self.codecs[codec])

    def _layout(self, spec: TableSpec) -> Layout:
        key = (spec.name, spec.method, spec.budget, spec.options)
        if key not in self._layouts:
            self._layouts[key] = layout_of(spec)
        return self._layouts[key]

    def _group(self, spec: TableSpec, methods: Sequence[str]) -> Group:
        """The parameters of one table."""
        name = spec.name
        usable = [method for method in methods if self.takes(spec, method)]
        if not usable:
            raise ConfigError(
                f"table '{name}' ({spec.num_embeddings:,} ids, dim {spec.embedding_dim}) can be stored by none of the "
                f"methods {', '.join(methods)}; add 'full'"
            )
        parameters = [Parameter(name=f"method.{name}", values=tuple(usable), is_ordered=False)]
        sized = [method for method in usable if by_share(spec, method)]
        if sized:
            when = (f"method.{name}", tuple(sized))
            least: dict[Value, int] = {method: self._least(spec, method) for method in sized}
            parameters.append(Parameter(name=f"share.{name}", values=self.shares, when=when, least=least))
        for method in usable:
            parameters += [
                Parameter(
                    name=f"{method}.{choices.option}.{name}",
                    values=choices.values,
                    is_ordered=choices.is_ordered,
                    when=(f"method.{name}", (method,)),
                )
                for choices in self.choices(spec, method)
            ]
        if len(self.codecs) > 1:
            parameters.append(Parameter(name=f"codec.{name}", values=tuple(self.codecs), is_ordered=False))
        return Group(name=name, parameters=tuple(parameters))

    def takes(self, spec: TableSpec, method: str) -> bool:
        """Whether a table can be stored by a method at all."""
        try:
            build_method(replace(spec, method=method, options=None, budget=1.0 if by_share(spec, method) else None))
        except (BudgetError, ConfigError):
            return False
        return True

    def choices(self, spec: TableSpec, method: str) -> list[OptionChoices]:
        """What is tried of a method's options for a table."""
        return choices_of(method_class(method).Config, spec)

    def _least(self, spec: TableSpec, method: str) -> int:
        """The index of the largest share that the method can't keep, which stands for its floor; 0 if it keeps all."""
        for index, share in enumerate(self.shares):
            if _builds(replace(spec, method=method, budget=share)):
                return max(0, index - 1)
        return len(self.shares) - 1


def by_share(spec: TableSpec, method: str) -> bool:
    """Whether a budget decides the size of a table."""
    cls = method_class(method)
    return cls.traits.allocation.takes_budget and not any(choices.sets_size for choices in choices_of(cls.Config, spec))


def _builds(spec: TableSpec) -> bool:
    try:
        build_method(spec)
    except BudgetError:
        return False
    return True
