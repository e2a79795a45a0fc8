"""The plain table: one row per id. The baseline of all others."""

from embank.tables import BudgetError, Method, TableSpec, Traits, WholeTables, option_class, own_table


@option_class
class FullConfig:
    """The plain table has no options."""


class Full(Method):
    """One fp32 row per id.

    Raises:
        BudgetError: a budget below 1, since every row is kept whole.

    Example:
        >>> table = build_table(method="full", num_embeddings=1000, embedding_dim=8)
        >>> table.nbytes("serving") / table.spec.plain_nbytes
        1.0
    """

    Config = FullConfig
    traits = Traits(is_plain=True, allocation=WholeTables())

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        if spec.budget is not None and spec.budget < 1:
            raise BudgetError(
                f"table '{spec.name}': method 'full' keeps every row, its floor is budget 1.0 ({spec.plain_nbytes:,} "
                f"bytes); the budget is {spec.budget}. Raise the budget, or use another method, such as 'hash'"
            )
        self.physical = (own_table(spec),)
