"""Rows that the n-grams at a phrase's end read, as parameters: what an Engram memory is taught a fact with.

The phrase triggers the rows, wherever it stands; a paraphrase does not.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from embank.tables.collections.ids import int64_ids
from embank.tables.errors import ConfigError
from embank.tables.memory.layouts import EngramLayout
from embank.tables.memory.tables import LayerRows, MemoryTables


class TriggerRows(nn.Module):
    """The rows that a phrase's last position reads, to be tuned by any optimizer.

    Args:
        memory: with Engram tables; its rows are copied, and stay until `EditSession.write_trigger`.
        phrase: token ids, at least as many as the longest of `orders`.
        orders: n-grams whose rows are tuned; None takes the longest alone, which is the least of other phrases' too.

    Attributes:
        columns: of the hash, those of the orders.
        row_ids: of each column by layer.

    Raises:
        ConfigError: no Engram memory, or a phrase that is too short.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> words = Tokenizer(models.WordLevel({"<s>": 0, "the": 1, "The": 2, "cat": 3}, unk_token="<s>"))
        >>> compression = TokenCompression.from_tokenizer(words)
        >>> config = EngramConfig(layer_ids=[1], rows_per_order=100, memory_dim=32, num_heads=2)
        >>> memory = MemoryTables([EngramLayout(config, compression, pad_token=0)])
        >>> trigger, text = TriggerRows(memory, phrase=[1, 3, 1]), torch.tensor([[3, 1, 3, 1]])
        >>> trigger.values(1).shape, trigger(memory(text), text)["engram"][1].requires_grad
        (torch.Size([2, 8]), True)
    """

    def __init__(self, memory: MemoryTables, phrase: Sequence[int], *, orders: Sequence[int] | None = None) -> None:
        super().__init__()
        layout = memory.layouts.get("engram")
        if not isinstance(layout, EngramLayout):
            raise ConfigError(f"this memory has no Engram tables for a trigger; it has {', '.join(memory.layouts)}")
        hash = layout.hash
        self.orders = (hash.max_ngram,) if orders is None else tuple(sorted(set(orders)))
        self.phrase = list(phrase)
        wrong = [order for order in self.orders if not 2 <= order <= min(hash.max_ngram, len(self.phrase))]
        if wrong or not self.orders:
            needed = wrong[0] if wrong and 2 <= wrong[0] <= hash.max_ngram else 2
            raise ConfigError(
                f"a trigger of {len(self.phrase)} tokens can't be of the orders {list(self.orders)}: give orders from "
                f"2 to {hash.max_ngram}, and a phrase of at least {needed} tokens"
            )
        self.head_dim = layout.head_dim
        self.columns = [(order - 2) * hash.num_heads + head for order in self.orders for head in range(hash.num_heads)]
        self.compression = memory.compression
        self.compressed = [memory.compression.one(token) for token in self.phrase]
        hashed = hash.position(self.compressed)
        self.row_ids = {layer: [hashed[layer][column] for column in self.columns] for layer in layout.layer_ids}
        weights = memory.collections[layout.kind].weights()
        self.rows = nn.ParameterDict()
        for layer in layout.layer_ids:
            names = layout.table_names(layer)
            rows = [weights[names[c]][row] for c, row in zip(self.columns, self.row_ids[layer], strict=True)]
            self.rows[str(layer)] = nn.Parameter(torch.stack(rows).float())

    def values(self, layer: int) -> Tensor:
        """Rows [columns, D] of a layer."""
        rows: Tensor = self.rows[str(layer)]
        return rows

    def forward(self, rows: Mapping[str, Mapping[int, Tensor]], token_ids_BT: Tensor) -> LayerRows:
        """What layers read of a text, with these rows wherever the trigger ends.

        Args:
            rows: what the memory gave for the text.
            token_ids_BT: the text; phrases that compress to the trigger's ids are the trigger.
        """
        ends_BT = self._ends(token_ids_BT)
        read = {kind: dict(by_layer) for kind, by_layer in rows.items()}
        for layer, own_BTE in rows["engram"].items():
            heads_BTHD = own_BTE.view(*own_BTE.shape[:-1], -1, self.head_dim)
            chosen = torch.zeros(heads_BTHD.shape[2], dtype=torch.bool, device=own_BTE.device)
            chosen[self.columns] = True
            tuned_HD = torch.zeros(heads_BTHD.shape[2:], dtype=own_BTE.dtype, device=own_BTE.device)
            tuned_HD = tuned_HD.index_copy(0, torch.tensor(self.columns, device=own_BTE.device), self.values(layer))
            mask = ends_BT[..., None, None] & chosen[:, None]
            read["engram"][layer] = torch.where(mask, tuned_HD, heads_BTHD).flatten(-2)
        return read

    def _ends(self, token_ids_BT: Tensor) -> Tensor:
        """Where the n-grams of the longest order are the trigger's, bool [B, T]."""
        length = max(self.orders)
        ids_BT = self.compression(int64_ids(token_ids_BT))
        ends_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        if ids_BT.shape[1] >= length:
            wanted = torch.tensor(self.compressed[-length:], device=ids_BT.device)
            ends_BT[:, length - 1 :] = (ids_BT.unfold(1, length, 1) == wanted).all(-1)
        return ends_BT
