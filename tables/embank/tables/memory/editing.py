"""`EditSession`: changes of single rows that can be taken back, and shipped.

A STEM row is what a token's layer reads wherever the token stands; an Engram row what an n-gram reads. Writing one
changes every use of it, other phrases with the token and other n-grams of the row's hash included. For an edit of one
text alone see `PositionEdit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embank.tables.collections.state import WIDER_ROWS, refuse_beyond
from embank.tables.errors import ConfigError
from embank.tables.memory.layouts import EngramLayout, StemLayout
from embank.tables.memory.position_edits import Strategy, readings
from embank.tables.memory.tables import MemoryTables
from embank.tables.memory.trigger_rows import TriggerRows


@dataclass(frozen=True)
class RowChange:
    """Rows of one table before and after an edit.

    Args:
        kind, table: whose they are.
        rows_U: their numbers, each once.
        old_UD, new_UD: their values.
    """

    kind: str
    table: str
    rows_U: Tensor
    old_UD: Tensor
    new_UD: Tensor


@dataclass(frozen=True)
class Edit:
    """What one call changed.

    Args:
        name: says what it is for.
        changes: by table.
    """

    name: str
    changes: tuple[RowChange, ...]

    @property
    def num_rows(self) -> int:
        """Rows that it wrote."""
        return sum(len(change.rows_U) for change in self.changes)


class EditSession:
    """Edits of a memory's rows, with a log that takes them back bit for bit.

    Optimizer state stays as it is; rows are edited, not trained.

    Args:
        memory: whose rows are written, all of them in this process.

    Attributes:
        log: edits that stand, in order.

    Raises:
        ConfigError: rows that are spread over processes, or that a method computes.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> words = Tokenizer(models.WordLevel({"<s>": 0, "the": 1, "The": 2, "cat": 3}, unk_token="<s>"))
        >>> compression = TokenCompression.from_tokenizer(words)
        >>> memory = MemoryTables([StemLayout(StemConfig(layer_ids=[1], ffn_dim=64), compression)])
        >>> edits = EditSession(memory)
        >>> edits.swap(source=[3], target=[1]).num_rows
        1
        >>> edits.undo().name
        '[3] reads [1]'
    """

    def __init__(self, memory: MemoryTables) -> None:
        for collection in memory.collections.values():
            if collection.sharding is not None:
                raise ConfigError(
                    "the rows are spread over processes and can't be edited here; save the memory and load it into one"
                )
            for method in collection.built_methods():
                if not method.traits.is_plain:
                    raise ConfigError(
                        f"table '{method.spec.name}' has method '{method.spec.method}', whose rows are not one token's "
                        "each; only plain tables can be edited"
                    )
        self.memory = memory
        self.log: list[Edit] = []

    def swap(
        self, source: Sequence[int], target: Sequence[int], *, strategy: Strategy = "copy", name: str = ""
    ) -> Edit:
        """Gives the tokens of a phrase the STEM rows of another phrase's, for all texts.

        Args:
            source, target: token ids, with the space before them as texts have it.
            strategy: for phrases of unequal length, see `readings`.
            name: says what it is for; by default the tokens.

        Returns:
            What was written; a phrase swapped with itself changes nothing.

        Raises:
            ConfigError: there is no STEM memory, a token outside the tokenizer, or one that would have to read two
                things.
        """
        layout = self._stem()
        wanted: dict[int, tuple[int, ...]] = {}
        for token, read in zip(source, readings(source, target, strategy), strict=True):
            if wanted.setdefault(token, read) != read:
                raise ConfigError(
                    f"token {token} stands twice in the phrase and would have to read {list(wanted[token])} and "
                    f"{list(read)}; edit it at its positions (PositionEdit), or use the strategy 'average'"
                )
        for token in (*wanted, *target):
            self.memory.compression.one(token)
        weights = self.memory.collections[layout.kind].weights()
        rows_U = torch.tensor(list(wanted), dtype=torch.int64)
        changes = []
        for layer in layout.layer_ids:
            rows_RD = weights[layout.table_name(layer)]
            new_UD = torch.stack([_mean(rows_RD, read) for read in wanted.values()])
            changes.append(self.planned(layout.kind, layout.table_name(layer), rows_U, new_UD))
        return self.write_all(changes, name=name or f"{list(source)} reads {list(target)}")

    def write_trigger(self, trigger: TriggerRows, *, name: str = "") -> Edit:
        """Writes the Engram rows that were found for a trigger, for all texts.

        Args:
            trigger: tuned rows.
            name: says what it is for; by default the tokens.
        """
        layout = self._engram()
        changes = []
        for layer in layout.layer_ids:
            new_CD = trigger.values(layer).detach()
            for column, row, new_D in zip(trigger.columns, trigger.row_ids[layer], new_CD, strict=True):
                table = layout.table_names(layer)[column]
                changes.append(self.planned(layout.kind, table, torch.tensor([row]), new_D[None]))
        return self.write_all(changes, name=name or f"trigger {trigger.phrase}")

    def write(self, kind: str, table: str, rows_U: Tensor, new_UD: Tensor, *, name: str = "") -> Edit:
        """Writes rows of one table.

        Raises:
            ConfigError: no such table, rows outside it or named twice, or values of another shape, not finite, or too
                large for the type that rows are held in.
        """
        return self.write_all([self.planned(kind, table, rows_U, new_UD)], name=name or f"rows of {table}")

    def undo(self) -> Edit:
        """Takes the last edit back, bit for bit.

        Raises:
            ConfigError: there is none.
        """
        if not self.log:
            raise ConfigError("there is no edit to take back")
        edit = self.log.pop()
        for change in reversed(edit.changes):
            self._put(change.kind, change.table, change.rows_U, change.old_UD)
        return edit

    def undo_all(self) -> None:
        """Takes all edits back, the last one first."""
        while self.log:
            self.undo()

    def net_changes(self) -> list[RowChange]:
        """What all edits together have changed, by table: values before the first and after the last."""
        first: dict[tuple[str, str], dict[int, Tensor]] = {}
        last: dict[tuple[str, str], dict[int, Tensor]] = {}
        for change in (change for edit in self.log for change in edit.changes):
            key = (change.kind, change.table)
            for row, old_D, new_D in zip(change.rows_U.tolist(), change.old_UD, change.new_UD, strict=True):
                first.setdefault(key, {}).setdefault(row, old_D)
                last.setdefault(key, {})[row] = new_D
        return [
            RowChange(
                kind,
                table,
                torch.tensor(sorted(rows)),
                torch.stack([first[kind, table][row] for row in sorted(rows)]),
                torch.stack([rows[row] for row in sorted(rows)]),
            )
            for (kind, table), rows in last.items()
        ]

    def _stem(self) -> StemLayout:
        layout = self.memory.layouts.get("stem")
        if not isinstance(layout, StemLayout):
            raise ConfigError(f"this memory has no STEM rows to swap; it has {', '.join(self.memory.layouts)}")
        return layout

    def _engram(self) -> EngramLayout:
        layout = self.memory.layouts.get("engram")
        if not isinstance(layout, EngramLayout):
            raise ConfigError(f"this memory has no Engram rows to write; it has {', '.join(self.memory.layouts)}")
        return layout

    def planned(self, kind: str, table: str, rows_U: Tensor, new_UD: Tensor) -> RowChange:
        """The change that `write` would make; nothing is written.

        Raises:
            ConfigError: see `write`.
        """
        collection = self.memory.collections.get(kind)
        rows_RD = None if collection is None else collection.weights().get(table)
        if rows_RD is None:
            raise ConfigError(f"there is no table '{table}' of kind '{kind}' in this memory")
        if new_UD.shape != (len(rows_U), rows_RD.shape[1]):
            raise ConfigError(
                f"{len(rows_U)} rows of table '{table}' can't become {tuple(new_UD.shape)}; each has "
                f"{rows_RD.shape[1]} numbers"
            )
        outside = (rows_U < 0) | (rows_U >= len(rows_RD))
        if bool(outside.any()) or len(torch.unique(rows_U)) < len(rows_U):
            raise ConfigError(
                f"the rows {rows_U.tolist()[:8]} of table '{table}' lie outside its {len(rows_RD):,} rows, or one is "
                "named twice"
            )
        if not bool(new_UD.isfinite().all()):
            raise ConfigError(f"the new rows of table '{table}' are not finite")
        refuse_beyond(new_UD, rows_RD.dtype, what=f"the new rows of table '{table}'", cure=WIDER_ROWS)
        return RowChange(kind, table, rows_U, rows_RD[rows_U].clone(), new_UD.to(rows_RD).clone())

    def write_all(self, changes: Sequence[RowChange], *, name: str) -> Edit:
        """Writes several planned changes as one edit."""
        edit = Edit(name, tuple(changes))
        for change in edit.changes:
            self._put(change.kind, change.table, change.rows_U, change.new_UD)
        self.log.append(edit)
        return edit

    @torch.no_grad()
    def _put(self, kind: str, table: str, rows_U: Tensor, values_UD: Tensor) -> None:
        collection = self.memory.collections[kind]
        with collection.writing():
            collection.weights()[table][rows_U] = values_UD


def _mean(rows_RD: Tensor, read: tuple[int, ...]) -> Tensor:
    """The row of one token as it is, the mean of several, or zeros."""
    if len(read) == 1:
        return rows_RD[read[0]].clone()
    return rows_RD[list(read)].mean(0) if read else torch.zeros_like(rows_RD[0])
