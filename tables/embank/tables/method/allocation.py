"""How the serving bytes of a collection are shared between the tables of one method."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from embank.tables.errors import BudgetError
from embank.tables.specs import TableSpec


class Allocation:
    """The plain rule: every table gets the same share of its plain bytes.

    A method with a better rule (dims by popularity, ranks by size) has a subclass.

    Attributes:
        takes_budget: the method can be made smaller than the plain table; a sweep over budgets trains it once
            otherwise.

    Example:
        >>> specs = [
        ...     TableSpec(name=n, num_embeddings=size, embedding_dim=4, feature_names=[n])
        ...     for n, size in {"user": 300, "item": 100}.items()
        ... ]
        >>> [(spec.name, spec.budget) for spec in Allocation().share(specs, 1600)]
        [('user', 0.25), ('item', 0.25)]
    """

    takes_budget: ClassVar[bool] = True

    def share(self, specs: Sequence[TableSpec], nbytes: int) -> list[TableSpec]:
        """Specs with options or budgets of their own, whose serving bytes together stay within some bytes.

        Args:
            specs: the tables of a collection that are stored by the method.
            nbytes: serving bytes for all of them.

        Raises:
            BudgetError: it can't be done; states the floor.
        """
        plain = sum(spec.plain_nbytes for spec in specs)
        if nbytes < 1:
            what = f"1 table of method '{specs[0].method}' ('{specs[0].name}') was given {nbytes} bytes; its"
            if len(specs) > 1:
                what = f"{len(specs)} tables of method '{specs[0].method}' were given {nbytes} bytes; their"
            raise BudgetError(
                f"{what} floor is at least 1 byte, budget {1 / plain:.6g}. Raise the budget, or choose method 'full'"
            )
        return [replace(spec, budget=min(1.0, nbytes / plain)) for spec in specs]


class WholeTables(Allocation):
    """Of a method that has one size.

    Example:
        >>> method_class("full").traits.allocation.takes_budget
        False
    """

    takes_budget: ClassVar[bool] = False
