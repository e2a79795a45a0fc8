"""Position-scoped edits: at some positions of a text the memory reads other tokens than those that stand there.

Nothing is written to the tables, and the text and its embeddings stay; only what memory layers read is exchanged.
Source: STEM (arXiv 2601.10639) names the strategies for phrases of unequal length; the conventions here are our own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from embank.tables.collections.ids import int64_ids
from embank.tables.errors import ConfigError, DataError
from embank.tables.memory.tables import LayerRows, MemoryTables

Strategy = Literal["pad_left", "pad_right", "copy", "subset", "average"]
Reading = tuple[int, ...]
"""Tokens whose rows a position reads the mean of; none for a row of zeros."""


def readings(source: Sequence[int], target: Sequence[int], strategy: Strategy = "copy") -> list[Reading]:
    """What each token of a source phrase reads.

    Args:
        source: token ids of the phrase that stands in the text.
        target: token ids of the phrase that is read in its place.
        strategy: what becomes of phrases of unequal length. "copy": the i-th token reads the target's i-th, those that
            are over its last. "pad_left", "pad_right": the target's tokens stand at the right, or at the left, and
            tokens that are over read zeros. "subset": a source that is too short reads the target's last tokens.
            "average": every token reads the mean of the target's rows.

    Raises:
        ConfigError: an empty phrase, or a strategy for the other way round.

    Example:
        >>> readings([1, 2, 3], [8, 9]), readings([1, 2, 3], [8, 9], "pad_left"), readings([1], [8, 9], "subset")
        ([(8,), (9,), (9,)], [(), (8,), (9,)], [(9,)])
    """
    if not source or not target:
        raise ConfigError("a phrase without tokens can't be edited, or read in place of another; give both phrases")
    if strategy not in get_args(Strategy):
        raise ConfigError(f"there is no strategy '{strategy}' for edits; use one of {', '.join(get_args(Strategy))}")
    if strategy == "average":
        return [tuple(target)] * len(source)
    missing = len(source) - len(target)
    if missing < 0 and strategy != "subset":
        raise ConfigError(
            f"the source has {len(source)} tokens and the target {len(target)}; for a longer target use the strategy "
            "'subset' or 'average'"
        )
    if missing <= 0:
        return [(token,) for token in target[len(target) - len(source) :]]
    own: list[Reading] = [(token,) for token in target]
    nothing: list[Reading] = [()] * missing
    match strategy:
        case "pad_left":
            return nothing + own
        case "pad_right":
            return own + nothing
        case "copy":
            return own + [own[-1]] * missing
        case _:
            raise ConfigError(
                f"the source has {len(source)} tokens and the target {len(target)}; the strategy 'subset' is for a "
                "longer target. Use 'copy', 'pad_left', 'pad_right' or 'average'"
            )


def occurrences(token_ids_BT: Tensor, phrase: Sequence[int]) -> list[tuple[int, int]]:
    """Where a phrase begins in each sequence: pairs of sequence and position, in order. One begins where the last has
    ended.
    """
    found = []
    for b, row in enumerate(int64_ids(token_ids_BT).tolist()):
        t = 0
        while t + len(phrase) <= len(row):
            if row[t : t + len(phrase)] == list(phrase):
                found.append((b, t))
                t += len(phrase)
            else:
                t += 1
    return found


@dataclass(frozen=True)
class PositionEdit:
    """What the memory reads of a text.

    Args:
        token_ids_BT: the text.
        reads: by sequence and position what is read there; elsewhere the text's own token.

    Example:
        >>> edit = PositionEdit.of_phrase(torch.tensor([[7, 1, 2, 7]]), source=[1, 2], target=[8, 9])
        >>> edit.read_ids.tolist(), edit.first_position
        ([[7, 8, 9, 7]], 1)
    """

    token_ids_BT: Tensor
    reads: dict[tuple[int, int], Reading] = field(default_factory=dict)

    @classmethod
    def of_phrase(
        cls, token_ids_BT: Tensor, *, source: Sequence[int], target: Sequence[int], strategy: Strategy = "copy"
    ) -> "PositionEdit":
        """Reads a phrase as another, wherever it stands.

        Raises:
            ConfigError: see `readings`.
            DataError: the phrase does not stand in the text.
        """
        tokens = readings(source, target, strategy)
        found = occurrences(token_ids_BT, source)
        if not found:
            raise DataError(
                f"the phrase of the tokens {list(source)} does not stand in the text; tokenize it in the form that the "
                "text has it, with the space before it"
            )
        return cls(token_ids_BT, {(b, t + i): read for b, t in found for i, read in enumerate(tokens)})

    @property
    def read_ids(self) -> Tensor:
        """The text as the memory reads it; where it reads a mean or zeros, the first token of these, or the text's
        own."""
        read_BT = self.token_ids_BT.clone()
        for (b, t), tokens in self.reads.items():
            if tokens:
                read_BT[b, t] = tokens[0]
        return read_BT

    @property
    def first_position(self) -> int:
        """The first edited position: nothing before it changes."""
        return min((t for _, t in self.reads), default=self.token_ids_BT.shape[1])

    def look_up(self, memory: MemoryTables, *, before_BS: Tensor | None = None) -> LayerRows:
        """What every layer reads; n-grams that reach over edited positions are those of the text as it is read.

        Raises:
            ConfigError: means or zeros, which n-grams do not have, in a memory of n-grams.
        """
        whole = [read for read in self.reads.values() if len(read) != 1]
        if whole and "engram" in memory.layouts:
            raise ConfigError(
                "a mean of rows, or zeros, can't be read as an n-gram; edit an Engram memory with phrases of one "
                "length, or the strategies 'copy' and 'subset'"
            )
        rows = memory(self.read_ids, before_BS=before_BS)
        if not whole:
            return rows
        stem = {layer: read.clone() for layer, read in rows["stem"].items()}
        for (b, t), tokens in self.reads.items():
            if len(tokens) != 1:
                mean = memory(torch.tensor([tokens], dtype=torch.int64))["stem"] if tokens else None
                for layer, read in stem.items():
                    read[b, t] = 0 if mean is None else mean[layer][0].mean(0)
        return {**rows, "stem": stem}
