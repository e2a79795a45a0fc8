"""How a collection is saved and loaded, as a module of a model: `state_dict`, copies, rows of one table."""

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from embank.tables.collections.copying import reduced
from embank.tables.collections.state import identity_tensor, is_plain, load_row_state, row_state, set_rows
from embank.tables.errors import CheckpointError

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables


class Saved(nn.Module):
    """The part of `Tables` that saves and loads."""

    def get_extra_state(self) -> Tensor:
        """What the rows in a `state_dict` belong to."""
        return identity_tensor(cast("Tables", self))

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: `load_state_dict` compares it before it loads rows."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """What `state_dict` calls, here and in a module that the tables are part of."""
        rows = row_state(cast("Tables", self))
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: view for name, view in rows.items()})

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """What `load_state_dict` calls. Rows are copied into place, with `assign` too: they can't be replaced."""
        tables = cast("Tables", self)
        if tables.tier.is_meta:
            self._leave_meta(state_dict, prefix, assign=bool(local_metadata.get("assign_to_params_buffers")))
        loaded = load_row_state(cast("Tables", self), state_dict, prefix=prefix, missing=missing_keys)
        others: list[str] = []
        lacking: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, lacking, others, error_msgs)
        missing_keys += (
            lacking
            if not is_plain(cast("Tables", self))
            else [key for key in lacking if not key.endswith("_extra_state")]
        )
        unexpected_keys += [name for name in others if name not in loaded]

    def _leave_meta(self, state_dict: Any, prefix: str, *, assign: bool) -> None:
        """Values can be loaded where tables are held; with `assign` they say where that is."""
        tables = cast("Tables", self)
        values = [v for name, v in state_dict.items() if name.startswith(prefix) and isinstance(v, Tensor)]
        there = next((value.device for value in values if not value.is_meta), None)
        if there is None:
            return
        if not assign:
            raise CheckpointError(
                "these tables are on the meta device and hold nothing, so that nothing can be loaded into them; call "
                "model.to_empty(device='cpu') first, or load with assign=True"
            )
        tables.materialise(there)

    def __reduce__(self) -> tuple[Any, ...]:
        """What `pickle`, `copy.deepcopy` and `torch.save` of a whole model call.

        Raises:
            ConfigError: rows are files, or spread over processes.
        """
        return reduced(cast("Tables", self))

    def set_rows(self, table: str, rows_RD: Tensor) -> None:
        """Replaces the rows of a physical table; its optimizer state stays.

        Args:
            table: the physical table's name, which for plain tables is the table's own.
            rows_RD: all of its rows, also where rows are sharded: each process takes those that it holds.

        Raises:
            ConfigError: no such table, or rows of another shape; nothing has changed.
        """
        set_rows(cast("Tables", self), table, rows_RD)
