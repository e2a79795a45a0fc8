"""Fits of merged blocks: means, once it is known which blocks are alike."""

from collections.abc import Sequence
from typing import Any

from embank.compression.fitting.means import Means
from embank.compression.fitting.normal import sum_by
from embank.tables import CurrentRows, Fitted, Wanted

_LEAST = 1e-9
"""Weight of a block without a vector."""


class MergedBlocks(Means):
    """Of `dedup`: before blocks are merged, rows are the vectors, and merging goes by what it adds to the weighted
    squared error: first blocks that are equal, then as far as a budget asks for it. Afterwards each row is the weighted
    mean of those that it stands for.

    Example:
        >>> options = method_class("dedup").Config(rows_per_block=1)
        >>> table = build_table(method="dedup", num_embeddings=40, embedding_dim=8, budget=0.5, options=options)
        >>> table.fit(torch.randn(8, 8)[torch.arange(40) % 8]).error < 1e-6  # eight different rows
        True
    """

    def guide(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        fitted = self.fit(methods, wanted, rows, seed=seed)
        hints = {}
        for method, own in zip(methods, wanted, strict=True):
            blocks_K = own.ids_K // method.rows_per_block
            weights_B = sum_by(blocks_K, own.weights_K.double(), num=method.num_blocks).clamp(min=_LEAST)
            mean_square = float(own.vectors_KD.double().square().mean())
            hints[method.spec.name] = {"block_weights": weights_B / (mean_square or 1.0)}
        return Fitted(rows=fitted.rows, hints=hints)
