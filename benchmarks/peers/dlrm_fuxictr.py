"""FuxiCTR's DLRM with the same shapes: samples/s of its own training step (runs inside `.venv-fuxictr`).

    .venv-fuxictr/bin/python benchmarks/peers/dlrm_fuxictr.py --data runs/data/dlrm_1m --threads 2 --steps 50

The library's `train_step`: forward, BCE, clipping at norm 10, Adam over everything (its tables have dense gradients).
To the peer's advantage the batches are built before the clock starts: its own loader fetches row by row.
"""

import argparse
import tempfile

import fuxictr
import fuxictr_data
import fuxictr_models
import prepared
import speed
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.torch_utils import seed_everything


def load_features(schema: dict) -> FeatureMap:
    features = FeatureMap("dlrm", ".")
    description = fuxictr_data.feature_map(schema, {}, dataset_id="dlrm", pooling="sum")
    features.labels = description["labels"]
    features.default_emb_dim = speed.DIM
    for entry in description["features"]:
        features.features.update(entry)
    features.num_fields = features.get_num_fields()
    features.set_column_index()
    return features


def build_batches(schema: dict, args: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """All batches of the run in memory, in the form that the library's collator gives: one tensor [B] a column."""
    rows = speed.need_rows(next(s["num_rows"] for s in schema["splits"] if s["name"] == "train"), args)
    data = {name: torch.tensor(v) for name, v in prepared.columns(args.data, "train", max_rows=rows).items()}
    data = {fuxictr_data.column(name): v if v.is_floating_point() else v.long() for name, v in data.items()}
    size = args.batch_size
    return [{name: v[start : start + size] for name, v in data.items()} for start in range(0, rows, size)]


def main() -> None:
    parser = speed.arguments(__doc__)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    schema = prepared.schema(args.data)
    batches = build_batches(schema, args)
    with tempfile.TemporaryDirectory() as model_root:
        model = fuxictr_models.DLRM(
            load_features(schema),
            model_id="dlrm",
            embedding_dim=speed.DIM,
            learning_rate=args.lr,
            bottom_mlp_units=speed.BOTTOM,
            bottom_mlp_dropout=0,
            top_mlp_units=speed.TOP,
            top_mlp_dropout=0,
            batch_norm=False,
            optimizer="adam",
            loss="binary_crossentropy",
            metrics=["AUC"],
            model_root=model_root,
            verbose=0,
        )
    model._max_gradient_norm = 10.0  # what `fit` sets by default
    model.train()
    # The library's epoch reads the loss after every step.
    result = speed.clock(
        lambda batch: model.train_step(batch).item(), batches, warmup=args.warmup, batch_size=args.batch_size
    )
    rows = sum(field["num_embeddings"] for field in schema["categorical"])
    versions = {"fuxictr": fuxictr.__version__, "torch": torch.__version__}
    speed.emit({"peer": "fuxictr", **versions, "threads": args.threads, "table_rows": rows, **result}, args.out)


if __name__ == "__main__":
    main()
