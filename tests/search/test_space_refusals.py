"""What spaces refuse by name: codecs that there are not, and budgets of no bytes."""

from collections.abc import Mapping

import pytest

from embank.compression.budget.coded import refuse_unknown_nbytes
from embank.search.spaces import Genes, Group, Parameter, Space, Value
from embank.tables import BudgetError, ConfigError, TableSpec


class ByBudget(Space):
    """Candidates of as many bytes as the budget allows, so that no floor refuses one."""

    def __init__(self) -> None:
        super().__init__([Group(name="", parameters=(Parameter(name="lr", values=(1, 2)),))], plain_nbytes=2000)

    def nbytes_of(self, genes: Genes) -> int:
        return 0

    def specs(self, candidate: Mapping[str, Value]) -> list[TableSpec]:
        return []

    def floor(self) -> Genes:
        return ((0,),)

    def ceiling(self) -> Genes:
        return ((1,),)


def test_a_codec_that_there_is_not_is_refused_as_that() -> None:
    with pytest.raises(ConfigError, match="there is no codec 'int5'; did you mean 'int"):
        refuse_unknown_nbytes("int5", where="the space")
    with pytest.raises(ConfigError, match="the space has codec 'dedup' and a budget, but how many bytes"):
        refuse_unknown_nbytes("dedup", where="the space")
    refuse_unknown_nbytes("int4", where="the space")


def test_a_budget_of_no_bytes_is_refused() -> None:
    """`nbytes / allowed` of a trial's constraint would divide by 0."""
    with pytest.raises(
        BudgetError, match="the budget is 0.0001, less than one of the plain tables' 2,000 bytes.*0.0005"
    ):
        ByBudget().allowed_nbytes(0.0001)
    assert ByBudget().allowed_nbytes(0.0005) == 1
