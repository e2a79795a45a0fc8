"""DLRM as an experienced TorchRec user writes it on a CPU: samples/s of a plain training loop (embank's environment).

    python benchmarks/peers/dlrm_torchrec.py --data runs/data/dlrm_1m --threads 2

`torchrec.models.dlrm.DLRM` over a `FusedEmbeddingBagCollection` (FBGEMM, row-wise Adagrad in the backward), Adam on the
dense part, BCE on logits. To the peer's advantage, every batch is built before the clock starts, as TorchRec's Criteo
loader builds it (offsets and key indices filled in), and the loop never reads the loss. With `--own-loader` it reads
the same Parquet files meanwhile, as its users do: an `IterableDataset` over pyarrow in one worker process of a
`DataLoader`. `--compile` compiles the dense part, the interaction and the loss as one graph, `--bf16` runs them under
autocast.
"""

import argparse
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import prepared
import pyarrow.parquet as pq
import speed
import torch
import torchrec
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass
class Batch:
    dense: Tensor  # [B, I]
    sparse: KeyedJaggedTensor
    labels: Tensor  # [B]


def build_batches(schema: dict, args: argparse.Namespace) -> list[Batch]:
    """All batches of the run in memory; every categorical feature holds one id a row."""
    rows = speed.need_rows(next(s["num_rows"] for s in schema["splits"] if s["name"] == "train"), args)
    data = prepared.columns(args.data, "train", max_rows=rows)
    keys = [field["name"] for field in schema["categorical"]]
    ids_FR = torch.from_numpy(np.stack([data[key] for key in keys]).astype(np.int32))  # as its FBGEMM call wants them
    dense_RI = torch.from_numpy(np.stack([data[f["name"]] for f in schema["numeric"]], axis=1).astype(np.float32))
    labels_R = torch.from_numpy(data["label"].astype(np.float32))
    size = args.batch_size
    return [
        Batch(
            dense=dense_RI[start : start + size].contiguous(),
            sparse=single_id_bags(keys, ids_FR[:, start : start + size]),
            labels=labels_R[start : start + size].contiguous(),
        )
        for start in range(0, rows, size)
    ]


class Files(IterableDataset):
    """Batches from the part files, whole row groups in file order, rows of each shuffled."""

    def __init__(self, schema: dict, args: argparse.Namespace) -> None:
        self.keys = [field["name"] for field in schema["categorical"]]
        self.numeric = [field["name"] for field in schema["numeric"]]
        self.paths, self.size, self.seed = sorted((args.data / "train").glob("*.parquet")), args.batch_size, args.seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        rng, size = np.random.default_rng(self.seed), self.size
        names = [*self.keys, *self.numeric, "label"]
        for path in self.paths:
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=names, use_threads=False)
                order = rng.permutation(table.num_rows)
                columns = {name: table.column(name).to_numpy()[order] for name in names}
                ids_FR = np.stack([columns[key] for key in self.keys]).astype(np.int32)
                dense_RI = np.stack([columns[name] for name in self.numeric], axis=1).astype(np.float32)
                labels_R = columns["label"].astype(np.float32)
                for start in range(0, table.num_rows - size + 1, size):
                    stop = start + size
                    found = (dense_RI[start:stop], ids_FR[:, start:stop], labels_R[start:stop])
                    yield tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in found)


def read_batches(schema: dict, args: argparse.Namespace) -> Iterator[Batch]:
    """The same from the files, while the model trains."""
    files = Files(schema, args)
    loader = DataLoader(files, batch_size=None, num_workers=1, prefetch_factor=8)
    for dense, ids_FB, labels in itertools.islice(loader, args.warmup + args.steps):
        yield Batch(dense=dense, sparse=single_id_bags(files.keys, ids_FB), labels=labels)


def single_id_bags(keys: list[str], ids_FB: Tensor) -> KeyedJaggedTensor:
    num_keys, size = ids_FB.shape
    return KeyedJaggedTensor(
        keys=keys,
        values=ids_FB.reshape(-1),
        lengths=torch.ones(num_keys * size, dtype=torch.int32),
        offsets=torch.arange(num_keys * size + 1, dtype=torch.int32),
        stride=size,
        length_per_key=num_keys * [size],
        offset_per_key=[size * key for key in range(num_keys + 1)],
        index_per_key={key: index for index, key in enumerate(keys)},
    )


def build_model(schema: dict, *, table_lr: float) -> DLRM:
    tables = [
        EmbeddingBagConfig(
            name=field["name"],
            num_embeddings=field["num_embeddings"],
            embedding_dim=speed.DIM,
            feature_names=[field["name"]],
        )
        for field in schema["categorical"]
    ]
    fused = FusedEmbeddingBagCollection(tables, optimizer_type=RowWiseAdagrad, optimizer_kwargs={"lr": table_lr})
    return DLRM(
        embedding_bag_collection=fused,
        dense_in_features=len(schema["numeric"]),
        dense_arch_layer_sizes=[*speed.BOTTOM, speed.DIM],
        over_arch_layer_sizes=[*speed.TOP, 1],
    )


def main() -> None:
    parser = speed.arguments(__doc__)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--table-lr", type=float, default=0.02)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--own-loader", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    schema = prepared.schema(args.data)
    batches = read_batches(schema, args) if args.own_loader else build_batches(schema, args)
    model = build_model(schema, table_lr=args.table_lr)
    dense = [p for name, p in model.named_parameters() if "embedding_bags" not in name]
    optimizer = torch.optim.Adam(dense, lr=args.lr, fused=True)
    loss_fn = torch.nn.BCEWithLogitsLoss()

    def loss_of(dense_BI: Tensor, embedded_BFD: Tensor, labels_B: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16) if args.bf16 else contextlib.nullcontext():
            crossed = model.inter_arch(dense_features=model.dense_arch(dense_BI), sparse_features=embedded_BFD)
            logits_B = model.over_arch(crossed).squeeze(-1)
        return loss_fn(logits_B.float(), labels_B)

    loss_of_batch = torch.compile(loss_of, dynamic=False) if args.compile else loss_of

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        loss_of_batch(batch.dense, model.sparse_arch(batch.sparse), batch.labels).backward()
        optimizer.step()

    result = speed.clock(step, batches, warmup=args.warmup, batch_size=args.batch_size)
    result |= {"compile": args.compile, "bf16": args.bf16, "own_loader": args.own_loader}
    rows = sum(field["num_embeddings"] for field in schema["categorical"])
    versions = {"torchrec": torchrec.__version__, "torch": torch.__version__}
    speed.emit({"peer": "torchrec loop", **versions, "threads": args.threads, "table_rows": rows, **result}, args.out)


if __name__ == "__main__":
    main()
