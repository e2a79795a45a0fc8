"""DLRM as an experienced TorchRec user writes it on a CPU: samples/s of a plain training loop (embank's environment).

    python benchmarks/peers/dlrm_torchrec.py --data runs/data/dlrm_1m --threads 2

`torchrec.models.dlrm.DLRM` over a `FusedEmbeddingBagCollection` (FBGEMM, row-wise Adagrad in the backward), Adam on the
dense part, BCE on logits. To the peer's advantage, every batch is built before the clock starts, as TorchRec's Criteo
loader builds it (offsets and key indices filled in), and the loop never reads the loss.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import prepared
import speed
import torch
import torchrec
from torch import Tensor
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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    schema = prepared.schema(args.data)
    batches = build_batches(schema, args)
    model = build_model(schema, table_lr=args.table_lr)
    dense = [p for name, p in model.named_parameters() if "embedding_bags" not in name]
    optimizer = torch.optim.Adam(dense, lr=args.lr, fused=True)
    loss_fn = torch.nn.BCEWithLogitsLoss()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        logits_B = model(batch.dense, batch.sparse).squeeze(-1)
        loss_fn(logits_B, batch.labels).backward()
        optimizer.step()

    result = speed.clock(step, batches, warmup=args.warmup, batch_size=args.batch_size)
    rows = sum(field["num_embeddings"] for field in schema["categorical"])
    versions = {"torchrec": torchrec.__version__, "torch": torch.__version__}
    speed.emit({"peer": "torchrec loop", **versions, "threads": args.threads, "table_rows": rows, **result}, args.out)


if __name__ == "__main__":
    main()
