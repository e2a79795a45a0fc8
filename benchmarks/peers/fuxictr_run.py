"""Trains one FuxiCTR model on a folder of `embank prepare`, with the library's own loop and loader; prints JSON.

    .venv-fuxictr/bin/python benchmarks/peers/fuxictr_run.py --data runs/data/movielens --model deepfm --out run.json \
        --learning-rate 1e-3 --embedding-regularizer 1e-5 --dropout 0.2

Train, early stopping on validation AUC (the library's), reload of the best epoch, then one reading of the test split.
The embedding regulariser is the library's: (value / 2) * ||W||^2 over whole tables, first-order weights included.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path

import fuxictr
import fuxictr_data
import fuxictr_models
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of embank prepare")
    parser.add_argument("--model", choices=sorted(fuxictr_models.MODELS), required=True)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--cache", type=Path, default=Path("runs/peers/fuxictr_data"), help="the data in npz form")
    parser.add_argument("--zoo", type=Path, help="a checkout of FuxiCTR: run its model_zoo classes")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--pooling", choices=["sum", "mean"], default="mean", help="of multi-valued features")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 128, 64], help="MLP; DLRM: top MLP")
    parser.add_argument(
        "--bottom", type=int, nargs="+", default=[256, 64], help="DLRM: bottom MLP before the last layer"
    )
    parser.add_argument("--cross-layers", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--embedding-regularizer", type=float, default=0.0)
    parser.add_argument("--net-regularizer", type=float, default=0.0)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch-norm", action="store_true")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--patience", type=int, default=2)
    parser.add_argument("--keep-lr", action="store_true", help="do not divide the rate by 10 after a worse epoch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    return parser.parse_args()


def timed(cls: type[BaseModel]) -> type[BaseModel]:
    """The class with a clock around the library's epoch and evaluation; the arithmetic stays the library's."""

    class Timed(cls):
        epoch_log: list[dict]  # one entry a finished epoch: seconds of training without evaluation, validation AUC

        def train_epoch(self, data_generator):
            self._evaluating_s = 0.0
            started = time.perf_counter()
            super().train_epoch(data_generator)
            seconds = time.perf_counter() - started - self._evaluating_s
            self.epoch_log.append({"train_s": seconds, "eval_s": self._evaluating_s, "valid_auc": self._last_auc})

        def eval_step(self):
            started = time.perf_counter()
            super().eval_step()
            self._evaluating_s += time.perf_counter() - started

        def checkpoint_and_earlystop(self, logs, min_delta=1e-6):
            self._last_auc = float(logs["AUC"])
            super().checkpoint_and_earlystop(logs, min_delta)

    Timed.__name__ = cls.__name__
    return Timed


def build(args: argparse.Namespace, features: FeatureMap, model_root: str) -> BaseModel:
    shapes = fuxictr_models.shape_arguments(
        args.model, hidden=args.hidden, bottom=args.bottom, cross_layers=args.cross_layers, dropout=args.dropout
    )
    model = timed(fuxictr_models.model_class(args.model, args.zoo))(
        features,
        model_id=args.model,
        gpu=-1,
        embedding_dim=args.dim,
        learning_rate=args.learning_rate,
        embedding_regularizer=args.embedding_regularizer or None,
        net_regularizer=args.net_regularizer or None,
        batch_norm=args.batch_norm,
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC", "logloss"],
        monitor="AUC",
        monitor_mode="max",
        early_stop_patience=args.patience,
        reduce_lr_on_plateau=not args.keep_lr,
        model_root=model_root,
        verbose=0,
        **shapes,
    )
    model.epoch_log = []
    return model


def run(args: argparse.Namespace) -> dict:
    data = fuxictr_data.convert(args.data, args.cache, pooling=args.pooling)
    seed_everything(args.seed)
    features = FeatureMap(data.name, str(data))
    features.load(str(data / "feature_map.json"), {"embedding_dim": args.dim})
    with tempfile.TemporaryDirectory() as model_root:
        (Path(model_root) / data.name).mkdir()
        model = build(args, features, model_root)
        paths = {f"{split}_data": str(data / f"{split}.npz") for split in fuxictr_data.SPLITS}
        train, valid, test = RankDataLoader(features, batch_size=args.batch_size, num_workers=0, **paths)
        model.fit(train, epochs=args.epochs, validation_data=valid)
        scores = {"valid": model.evaluate(valid), "test": model.evaluate(test)}
    return report(args, model, scores, rows=train.num_samples)


def report(args: argparse.Namespace, model: BaseModel, scores: dict, *, rows: int) -> dict:
    log = model.epoch_log
    seconds = sum(entry["train_s"] for entry in log) / len(log)
    aucs = [entry["valid_auc"] for entry in log]
    return {
        "peer": f"fuxictr {fuxictr.__version__}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "arguments": {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()},
        "valid_auc": float(scores["valid"]["AUC"]),
        "valid_logloss": float(scores["valid"]["logloss"]),
        "test_auc": float(scores["test"]["AUC"]),
        "test_logloss": float(scores["test"]["logloss"]),
        "best_epoch": aucs.index(max(aucs)) + 1,
        "seconds_per_epoch": seconds,
        "samples_per_s": rows / seconds,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "epochs": log,
    }


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.INFO if os.environ.get("VERBOSE") else logging.WARNING)
    if args.threads:
        torch.set_num_threads(args.threads)
    result = json.dumps(run(args), indent=1)
    print(result)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(result + "\n")


if __name__ == "__main__":
    main()
