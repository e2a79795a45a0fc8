"""Where the rows of a collection come to be: off the meta device, on one process or several, under which optimizer."""

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torchrec.optim.fused import FusedOptimizerModule

from embank.tables.collections.fused_optimizer import RowsOptimizer
from embank.tables.collections.parameters import begin_again, settle_optimizer
from embank.tables.collections.spreading import follow_the_group, spread

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables
    from embank.tables.sharding.sharded_rows import Sharding


class Placed(FusedOptimizerModule, nn.Module):  # type: ignore[misc]
    """The part of `Tables` that TorchRec's wrappers know."""

    _FORCE_STATE_DICT_LOAD = True  # `DistributedModelParallel` then loads it as a whole, and refuses what is wrong

    def materialise(self, device: torch.device | str = "cpu") -> None:
        """Gives tables that were made on the meta device rows with their initial values; nothing to do elsewhere.

        `model.to_empty(device=...)` does the same.

        Args:
            device: where the rows are to be.
        """
        tables = cast("Tables", self)
        if tables.tier.is_meta:
            tables.tier = replace(tables.tier, device=str(device))
            tables.tier.refuse_missing_device()
            tables._make()
            if tables.chosen_optimizer is not None:
                tables.chosen_optimizer.refresh()

    def reset_parameters(self) -> None:
        """Gives rows and what methods hold besides their initial values again; the state of the rows' optimizer is that
        of the beginning, too."""
        tables = cast("Tables", self)
        if not tables.tier.is_meta:
            begin_again(tables, tables.rebuilt(tables.specs))

    @property
    def fused_optimizer(self) -> RowsOptimizer:
        """The rows' optimizer as TorchRec has it: a `KeyedOptimizer` whose `param_groups` schedulers may change, and
        whose `step` is the tables' own. `torchrec.optim.CombinedOptimizer` takes it beside a dense one.

        Where torch's default group has several processes, rows are spread over them first (`spread`)."""
        tables = cast("Tables", self)
        settle_optimizer(tables, by_kernels=True)
        if not tables.tier.is_meta:
            follow_the_group(tables)
        if tables.chosen_optimizer is None:
            tables.chosen_optimizer = RowsOptimizer(tables)
        return tables.chosen_optimizer

    def spread(self, *, sharding: "Sharding | None" = None) -> None:
        """Spreads rows that every process holds over all of them, in place: all call it together, before training or in
        it. `DistributedModelParallel` does it to the tables of a model.

        Args:
            sharding: the plan; None makes one for all processes of torch's default group.

        Raises:
            ConfigError: rows are spread already, or left to an optimizer outside of the tables.
        """
        spread(cast("Tables", self), sharding=sharding)
