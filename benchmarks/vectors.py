"""What codecs keep of the neighbours of vectors, at equal bytes: sentence embeddings, and rows of trained tables.

    python benchmarks/vectors.py wiki.npy runs/movielens/bundle:item_id runs/criteo/bundle > vectors.md

A source is a file of vectors, or a bundle of fp32 tables and the name of one, by default its largest. Queries are
vectors of the source, drawn with seed 0, as `embank compress` draws them; recall is that of the test queries.

The claim under trial: Huerga-Pérez et al., "Optimization of embeddings storage for RAG systems using quantization and
dimensionality reduction techniques" (arXiv:2505.00105), half as many principal components in 8-bit floats, an eighth of
the bytes, against 8-bit whole numbers, a quarter.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from embank.pipelines.reporting import Reporter
from embank.pipelines.vectors.files import open_vectors
from embank.pipelines.vectors.matrix import as_matrix
from embank.pipelines.vectors.neighbours import recall_at
from embank.pipelines.vectors.trials import Comparison
from embank.tables import load_bundle

HEAD = ("codec", "share", "axes", "lost", "cosine", "recall@1", "recall@10", "recall@100", "recall@10, inner product")


def codecs(dim: int) -> list[str]:
    """What is compared, about a quarter of the bytes first, then an eighth, a sixteenth, a thirty-second."""
    half, quarter, eighth = max(1, dim // 2), max(1, dim // 4), max(1, dim // 8)
    return [
        *("fp16", "int8", "fp8_e4m3", "fp8_e5m2", "int6"),
        *(
            f"pca{max(1, dim * 3 // 4)}+fp8_e4m3",
            f"pca{half}+int8",
            f"pca{half}+fp8_e4m3",
            "int4",
            f"pq{dim}",
            f"opq{dim}",
        ),
        *("int3", f"pca{half}+int4", f"pca{quarter}+fp8_e4m3", "int2", f"pq{half}", f"opq{half}", "binary"),
        *(f"pca{quarter}+int4", f"pca{eighth}+fp8_e4m3", f"pq{quarter}", f"opq{quarter}", "binary1"),
    ]


def rows_of(source: str, scratch: Path) -> tuple[str, Tensor]:
    """What a source holds, and its vectors."""
    path, _, table = source.partition(":")
    if Path(path).is_file():
        return Path(path).name, as_matrix(open_vectors(path), scratch / "rows", reporter=Reporter())
    packed = load_bundle(path).packed_tables()
    by_name = {spec.name: (spec, pack) for spec, pack in packed if spec.embedding_dim > 1}
    spec, pack = by_name[table] if table else max(by_name.values(), key=lambda pair: pair[0].num_embeddings)
    return f"table {spec.name} of {path}", pack.lookup(torch.arange(spec.num_embeddings))


@torch.no_grad()
def lines(rows_RD: Tensor, chosen: list[str], scratch: Path, *, num_queries: int) -> Iterator[tuple[str, ...]]:
    """A line of the table for each codec. The column "axes" is the share that does not grow with the rows: axes,
    rotations, codebooks."""
    comparison = Comparison(rows_RD, num_queries=num_queries, seed=0, reporter=Reporter())
    for codec in chosen:
        trials, _ = comparison.tried([codec], scratch, num_rows=len(rows_RD))
        trial, coded = trials[codec], comparison.coded.pop(codec)
        fixed = sum(
            buffer.numel() * buffer.element_size()
            for name, buffer in coded.named_buffers()
            if name.endswith(("directions", "origin", "rotation", "centroids", "scale"))
        )
        recalls = [recall_at(trial.test, "cosine", depth) or 0.0 for depth in (1, 10, 100)]
        print(f"{codec}: {trial.share:.4f}, {recalls[1]:.4f}, {trial.seconds} s", file=sys.stderr, flush=True)
        yield (
            f"`{codec}`",
            f"{trial.share:.4f}",
            f"{fixed / (4 * rows_RD.numel()):.4f}",
            f"{trial.lost:.4f}",
            f"{trial.cosine:.4f}",
            *(f"{recall:.3f}" for recall in recalls),
            f"{recall_at(trial.test, 'inner_product') or 0.0:.3f}",
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="FILE, or BUNDLE[:TABLE]")
    parser.add_argument("--codecs", help="by commas, in place of all")
    parser.add_argument("--queries", type=int, default=512, help="for validation, and as many for test")
    asked = parser.parse_args()
    for source in asked.sources:
        with tempfile.TemporaryDirectory() as folder:
            title, rows = rows_of(source, Path(folder))
            dim = rows.shape[1]
            print(f"\n## {title}: {len(rows):,} vectors of {dim}\n", flush=True)
            print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
            names = asked.codecs.split(",") if asked.codecs else list(dict.fromkeys(codecs(dim)))
            for cells in lines(rows, names, Path(folder), num_queries=asked.queries):
                print(f"| {' | '.join(cells)} |", flush=True)
