"""What a collection takes and gives when it is served: bytes and packed tables."""

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Literal, cast

from torch import nn

from embank.tables.collections.held_rows import fp32_rows, settled_copies
from embank.tables.errors import ConfigError
from embank.tables.rows.held_bytes import distinct_nbytes

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables
    from embank.tables.serving.codecs.base import Coded
    from embank.tables.serving.table import PackedTable


class Packable(nn.Module):
    """The part of `Tables` that knows what is served."""

    def nbytes(self, kind: Literal["training", "serving", "nominal"]) -> int:
        """Bytes held in training by this process (padding, optimizer state and a kernel's caches and constants
        included; what one batch needs is not, nor is what an optimizer keeps for `dense_parameters`), by the packed
        form, or of this by what the methods' papers count.

        Raises:
            ConfigError: another kind.
        """
        if kind == "training":
            own = cast("Tables", self)
            held = [t for rows in own.row_stores() for t in rows.held_tensors()]
            return distinct_nbytes([*held, *own.methods.parameters(), *own.methods.buffers()])
        if kind not in ("serving", "nominal"):
            raise ConfigError(f"there are no '{kind}' bytes; ask for 'training', 'serving' or 'nominal'")
        packs = self.packs()
        if kind == "nominal":
            return distinct_nbytes([t for pack in packs for t in pack.counted()])
        return distinct_nbytes([t for pack in packs for t in pack.buffers()])

    def packs(self, *, copied: bool = False, codec: str | Mapping[str, str] = "fp32") -> "list[PackedTable]":
        """The inference form of each table as it would be settled, in host memory; where rows are there, it may share
        them unless they are to be copied. The tables themselves stay as they are.

        Args:
            copied: share no memory with the rows.
            codec: what the methods do not code themselves is held by it; a name for all tables, or by table.

        Raises:
            ConfigError: rows are sharded: this process has a part of them; or there is no such codec or table.
        """
        from embank.tables.serving.codecs.registry import codecs_by_table
        from embank.tables.serving.table import pack_table

        own = cast("Tables", self)
        self.refuse_packing_parts()
        rows = {
            name: weight.clone().cpu() if copied else weight.cpu()
            for name, weight in {**fp32_rows(own), **settled_copies(own)}.items()
        }
        methods = list(own.built_methods())
        codecs = codecs_by_table(codec, [method.spec.name for method in methods])
        shared: dict[tuple[str, str], Coded] = {}
        return [
            pack_table(deepcopy(m).cpu() if own.tier.on_gpu else m, rows, codec=codecs[m.spec.name], shared=shared)
            for m in methods
        ]

    def refuse_packing_parts(self) -> None:
        """Raises ConfigError if rows are sharded, so that what is here is not all of them."""
        own = cast("Tables", self)
        if own.sharding is not None:
            raise ConfigError(
                f"the rows of these tables are spread over {own.processes.count} processes, so they can't be packed "
                "here, nor their serving bytes be counted: save_checkpoint on all of them, load_checkpoint in one "
                "process, and pack there"
            )

    @property
    def plain_nbytes(self) -> int:
        """Bytes of the plain fp32 tables, what budgets refer to."""
        return sum(spec.plain_nbytes for spec in cast("Tables", self).specs)
