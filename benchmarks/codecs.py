"""What codecs keep of a trained run: its largest table's rows, and its AUC on the test split.

    python benchmarks/codecs.py RUN DATA > table.md

Where a table is chosen, choose by validation (`embank export --codec auto`); this only tells.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from embank.ctr_models import CTRModel
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.evaluate import evaluate
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_model
from embank.tables import TableCollection, encode, fidelity, named_codec, pack_collection, registered_codecs

MORE = ("binary1", "pca8+int4", "lowrank8+int4", "dedup40+int4")
HEAD = ("codec", "share of the largest table", "lost", "cosine", "recall@10", "share of all", "AUC, 1e-4")


def lines(run: Path, data: Path, codecs: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A line of the table for each codec."""
    with best_model(RunFolder(run), schema=Schema.load(data), data=data) as (model, _):
        assert isinstance(model.tables, TableCollection)
        largest = max(model.tables.weights().values(), key=lambda rows: rows.numel())
        rows_RD = largest.contiguous()
        plain = pack_collection(model.tables)
        auc = evaluate(CTRModel(plain, model.network), data, "test")["auc"]
        for codec in codecs:
            found = fidelity(rows_RD, encode(rows_RD, codec=codec))
            packed = pack_collection(model.tables, codec=codec)
            change = evaluate(CTRModel(packed, model.network), data, "test")["auc"] - auc
            yield (
                f"`{codec}`",
                f"{found.share:.3f}",
                f"{found.rmse / float(rows_RD.square().mean().sqrt()):.3f}",
                f"{found.cosine:.4f}",
                f"{found.recall:.3f}",
                f"{packed.nbytes() / plain.nbytes():.3f}",
                f"{change * 1e4:+.0f}",
            )


if __name__ == "__main__":
    own = [codec for codec in registered_codecs() if named_codec(codec).takes_rows]
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for cells in lines(Path(sys.argv[1]), Path(sys.argv[2]), [*own, *MORE]):
        print(f"| {' | '.join(cells)} |")
