"""Fits of merged blocks: means, once it is known which blocks are alike."""

from collections.abc import Sequence
from typing import Any

from embank.compression.fitting.means import Means
from embank.tables import CurrentRows, Fitted, Wanted


class MergedBlocks(Means):
    """Of `dedup`: before blocks are merged, rows are the vectors, and merging goes by the squared difference of blocks:
    first those that are equal, then as far as a budget asks for it. Afterwards each row is the weighted mean of those
    that it stands for.

    Example:
        >>> options = method_class("dedup").Config(rows_per_block=1)
        >>> table = build_table(method="dedup", num_embeddings=40, embedding_dim=8, budget=0.5, options=options)
        >>> table.fit(torch.randn(8, 8)[torch.arange(40) % 8]).error < 1e-6  # eight different rows
        True
    """

    def guide(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        fitted = self.fit(methods, wanted, rows, seed=seed)
        names = [method.spec.name for method in methods]
        spreads = [float(own.vectors_KD.double().square().mean().sqrt()) for own in wanted]
        return Fitted(
            rows=fitted.rows, hints={name: {"spread": spread} for name, spread in zip(names, spreads, strict=True)}
        )
