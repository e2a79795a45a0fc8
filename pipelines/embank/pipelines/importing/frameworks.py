"""How other frameworks name tables and optimizer state in what they save."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FIRST_ORDER = "first_order/"
_FUXI = r"embedding_layer\.embedding_layer\.embedding_layers\.(?P<name>[^.]+)\.weight$"


@dataclass(frozen=True, kw_only=True)
class Framework:
    """What a framework calls its tables.

    Args:
        name: as `--from` has it.
        title: for messages.
        example: a table's name.
        embeddings: patterns of the names of tables; the group `name` is the table or the feature.
        first_order: those of first-order weights, which are looked at first.
        moments: those of optimizer state of a table of that name.
        ignored: of what is no parameter.
        keeps_order: whether the order of the names is that of the features.
        has_numeric_vectors: whether numbers have vectors [D, 1] under the names of tables.
    """

    name: str
    title: str
    example: str
    embeddings: Sequence[str]
    first_order: Sequence[str] = ()
    moments: Sequence[str] = ()
    ignored: Sequence[str] = ()
    keeps_order: bool
    has_numeric_vectors: bool = False

    def table_of(self, tensor: str) -> tuple[str, str] | None:
        """The name of the table or feature of a tensor, and what our table's name begins with; None of others."""
        for pattern in self.first_order:
            if found := re.search(pattern, tensor):
                return found["name"], _FIRST_ORDER
        for pattern in self.embeddings:
            if found := re.search(pattern, tensor):
                return found["name"], ""
        return None

    def moment_of(self, tensor: str, names: Sequence[str]) -> str | None:
        """The name of the optimizer state of a table's rows among all names; None where there is none."""
        found = self.table_of(tensor)
        if found is None or found[1]:
            return None
        for pattern in self.moments:
            full = re.compile(pattern.format(name=re.escape(found[0])))
            known = [name for name in names if full.search(name)]
            if len(known) == 1:
                return known[0]
        return None

    def is_ignored(self, tensor: str) -> bool:
        """Whether a tensor is no parameter."""
        return any(re.search(pattern, tensor) for pattern in self.ignored)


FRAMEWORKS = {
    "torchrec": Framework(
        name="torchrec",
        title="TorchRec",
        example="embedding_bags.TABLE.weight",
        embeddings=[
            r"(?:^|\.)embedding_bags\.(?P<name>[^.]+)\.weight$",
            r"(?:^|\.)embeddings\.(?P<name>[^.]+)\.weight$",
        ],
        moments=[
            r"(?:^|\.)embedding_bags\.{name}\.weight\.{name}\.momentum1$",
            r"(?:^|\.)embeddings\.{name}\.weight\.{name}\.momentum1$",
            r"(?:^|\.)embedding(?:_bag)?s\.{name}\.weight\.sum$",
        ],
        ignored=[r"\.momentum\d$", r"^optim", r"^opt(?:imizer)?\.", r"\.state\."],
        keeps_order=False,
    ),
    "fuxictr": Framework(
        name="fuxictr",
        title="FuxiCTR",
        example="embedding_layer.embedding_layer.embedding_layers.FEATURE.weight",
        embeddings=[rf"(?:^|\.){_FUXI}"],
        first_order=[rf"(?:^|\.)lr(?:_layer)?\.{_FUXI}"],
        ignored=[r"triu_(?:mask|index)$"],
        keeps_order=True,
        has_numeric_vectors=True,
    ),
    "deepctr": Framework(
        name="deepctr",
        title="DeepCTR-Torch",
        example="embedding_dict.FEATURE.weight",
        embeddings=[r"(?:^|\.)embedding_dict\.(?P<name>[^.]+)\.weight$"],
        first_order=[r"(?:^|\.)linear_model\.embedding_dict\.(?P<name>[^.]+)\.weight$"],
        keeps_order=True,
    ),
}
