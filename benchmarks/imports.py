"""Models of FuxiCTR and DeepCTR-Torch, trained by these libraries, against what `embank import` makes of them.

    python -m venv --system-site-packages peers
    peers/bin/pip install --no-deps fuxictr==2.3.7 keras_preprocessing h5py deepctr-torch==0.3.0 requests
    git clone https://github.com/reczoo/FuxiCTR            # its models are not in the package
    peers/bin/python benchmarks/imports.py fuxictr --models FuxiCTR/model_zoo --work DIR
    peers/bin/python benchmarks/imports.py deepctr --work OTHER_DIR

Besides these they need pandas and scikit-learn. Each model is trained some steps on a generated log, saved, imported by
the command, and scores rows that it has not seen, values that training had not among them: the largest difference of a
probability is the figure of each. Writes benchmarks/results/imports.json, a run for each peer.
"""

import argparse
import contextlib
import csv
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import records
import torch
import yaml

from embank.pipelines import load_model, prepare

DIM, STEPS = 8, 40
SINGLE = ["item", "user", "shop"]  # not in the order of the prepared data
COLUMNS = {
    "label": {"column": "click"},
    "categorical": ["user", "item", "shop"],
    "multivalued": {"tags": "|"},
    "numeric": {"price": "none", "age": "none"},
    "split": {"by": "column", "column": "split"},
}
MLP = {"hidden_units": [16, 8], "batch_norm": True}
CROSS = {"num_cross_layers": 2, "embed_numeric": True}
FUXICTR: Mapping[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "LR": ({}, {"name": "lr"}, False),
    "FM": ({}, {"name": "fm"}, False),
    "DNN": (MLP, {"name": "fnn", **MLP, "embed_numeric": True}, True),
    "WideDeep": (MLP, {"name": "wdl", **MLP, "embed_numeric": True}, False),
    "PNN": ({**MLP, "product_type": "inner"}, {"name": "ipnn", **MLP}, True),
    "DeepFM": ({**MLP, "net_dropout": 0.2}, {"name": "deepfm", **MLP, "dropout": 0.2}, False),
    "DCN": (
        {"dnn_hidden_units": [16, 8], "num_cross_layers": 2, "batch_norm": True},
        {"name": "dcn", **MLP, **CROSS},
        True,
    ),
    "DCNv2 parallel": (
        {
            "parallel_dnn_hidden_units": [16, 8],
            "model_structure": "parallel",
            "num_cross_layers": 2,
            "batch_norm": True,
        },
        {"name": "dcn_v2", **MLP, **CROSS},
        True,
    ),
    "DCNv2 stacked": (
        {"stacked_dnn_hidden_units": [16, 8], "model_structure": "stacked", "num_cross_layers": 2},
        {"name": "dcn_v2", "hidden_units": [16, 8], **CROSS, "structure": "stacked"},
        True,
    ),
    "DCNv2 mixture": (
        {
            "parallel_dnn_hidden_units": [16],
            "model_structure": "parallel",
            "num_cross_layers": 2,
            "use_low_rank_mixture": True,
            "low_rank": 4,
            "num_experts": 3,
        },
        {"name": "dcn_v2", "hidden_units": [16], **CROSS, "low_rank": 4, "num_experts": 3},
        True,
    ),
    "DLRM": (
        {"top_mlp_units": [16, 8], "bottom_mlp_units": [12], "interaction_op": "dot"},
        {"name": "dlrm", "top": [16, 8], "bottom": [12]},
        True,
    ),
    "DLRM cat": (
        {"top_mlp_units": [16, 8], "bottom_mlp_units": [12], "interaction_op": "cat", "batch_norm": True},
        {"name": "dlrm", "top": [16, 8], "bottom": [12], "interaction": "cat", "batch_norm": True},
        True,
    ),
}
"""Arguments there, the section `model` here, and whether there is a feature of several values."""


def write_log(path: Path, *, rows: int = 900) -> list[dict[str, Any]]:
    """A log in three parts; the test rows have values that training has not."""
    rng = np.random.default_rng(0)
    log = []
    for number in range(rows):
        split = "train" if number < 0.7 * rows else "valid" if number < 0.85 * rows else "test"
        user, item, shop, tags = rng.integers(0, (40, 25, 6, 5)).tolist()
        user += 20 * (split == "test")
        row = {
            "user": f"u{user}",
            "item": f"{100 + item}",
            "shop": f"s {shop}",
            "tags": "|".join("abcde"[: tags + 1]),
            "price": round(float(rng.normal()), 4),
            "age": round(float(rng.uniform()), 4),
            "split": split,
        }
        log.append(row | {"click": int((user + item + tags) % 3 == 0)})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(log[0]))
        writer.writeheader()
        writer.writerows(log)
    return log


def write_config(path: Path, *, data: Path, model: Mapping[str, Any], has_bags: bool) -> None:
    overrides = {"tags": {"pooling": "mean"}} if has_bags else {}
    config = {
        "data": {"path": str(data), "batch_size": 64},
        "model": dict(model),
        "tables": {"dim": DIM, "overrides": overrides},
        "train": {"epochs": 1, "num_threads": 1},
    }
    path.write_text(yaml.safe_dump(config))


def imported(*arguments: object) -> None:
    """Runs `embank import`, as a user does."""
    subprocess.run(
        [sys.executable, "-m", "embank", "import", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )


def report(name: str, theirs_N: np.ndarray, ours_N: np.ndarray) -> None:
    spread = float(theirs_N.max() - theirs_N.min())
    difference = float(np.abs(theirs_N - ours_N).max())
    print(f"{name}: {difference:.1e} of {spread:.3f}, {len(theirs_N)} rows", flush=True, file=sys.__stdout__)
    assert difference < 1e-5 < spread, name
    FOUND.append(recorded(name, rows=len(theirs_N), spread=spread, difference=difference))


FOUND: list[records.Record] = []
"""What has been compared so far."""


def recorded(name: str, *, rows: int, spread: float, difference: float) -> records.Record:
    """A model's comparison."""
    return records.record(
        "largest difference of a probability",
        "",
        case={"model": name, "rows that training had not": rows, "spread of scores": round(spread, 3)},
        better="lower",
        value=difference,
        statistic="once",
    )


TITLE = "Models of other libraries, imported"
ABOUT = (
    "Each model is trained some steps by its library, saved, read by embank import, and scores rows that training had "
    "not in both: the largest difference of a probability."
)


# FuxiCTR


def fuxictr_class(zoo: Path, name: str) -> Any:
    """A model of FuxiCTR's model zoo."""
    file = next(path for path in sorted(zoo.glob(f"{name}/**/src/{name}.py")) if "_tf" not in str(path))
    spec = importlib.util.spec_from_file_location(f"fuxictr_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def fuxictr_data(work: Path, log: list[dict[str, Any]], *, has_bags: bool) -> tuple[Any, Callable[..., Any]]:
    """FuxiCTR's feature map, and what turns rows into its batches; both by its own preprocessing."""
    import polars as pl

    np.unicode_ = np.str_  # which keras_preprocessing asks NumPy 2 for
    from fuxictr.preprocess import FeatureProcessor

    single = [{"name": name, "active": True, "dtype": "str", "type": "categorical"} for name in SINGLE]
    numbers = [{"name": n, "active": True, "dtype": "float", "type": "numeric", "fill_na": 0} for n in ("age", "price")]
    bags = [{"name": "tags", "active": True, "dtype": "str", "type": "sequence", "splitter": "|", "max_len": 5}]
    columns = [*single[:2], numbers[0], *(bags if has_bags else []), single[2], numbers[1]]
    processor = FeatureProcessor(
        feature_cols=columns,
        label_col={"name": "click", "dtype": "float"},
        dataset_id="bags" if has_bags else "single",
        data_root=str(work / "fuxictr"),
    )

    def frame(split: str) -> Any:
        rows = [row for row in log if row["split"] == split]
        return processor.preprocess(pl.DataFrame(rows).lazy().with_columns(pl.col("click").cast(pl.Float64)))

    processor.fit(frame("train"), min_categr_count=1, num_buckets=10)
    processor.feature_map.default_emb_dim = DIM

    def batch(split: str) -> dict[str, torch.Tensor]:
        done = processor.transform(frame(split).collect().to_pandas())
        done = done if isinstance(done, dict) else {name: done[name].to_list() for name in done.columns}
        tensors = {name: torch.tensor(np.array(list(values))) for name, values in done.items()}
        numbers = {name: value.float().view(-1, 1) for name, value in tensors.items() if value.is_floating_point()}
        return tensors | numbers

    return processor.feature_map, batch


def fuxictr(work: Path, zoo: Path) -> None:
    logging.disable(logging.INFO)
    log = write_log(work / "log.csv")
    for has_bags in (True, False):
        columns = COLUMNS if has_bags else {key: value for key, value in COLUMNS.items() if key != "multivalued"}
        prepare(columns, work / "log.csv", work / f"data-{has_bags}", format="csv")
        feature_map, batch = fuxictr_data(work, log, has_bags=has_bags)
        train, test = batch("train"), batch("test")
        for name, (arguments, model, takes_bags) in FUXICTR.items():
            if takes_bags == has_bags:
                _fuxictr_model(work, zoo, name, arguments, model, feature_map, train, test, log)


def _fuxictr_model(
    work: Path,
    zoo: Path,
    name: str,
    arguments: dict[str, Any],
    model: dict[str, Any],
    feature_map: Any,
    train: dict[str, torch.Tensor],
    test: dict[str, torch.Tensor],
    log: list[dict[str, Any]],
) -> None:
    has_bags = "tags" in feature_map.features
    torch.manual_seed(0)
    common = {"optimizer": "adam", "loss": "binary_crossentropy", "metrics": ["AUC"], "verbose": 0}
    where = {"model_root": str(work / "fuxictr"), "model_id": name.replace(" ", "_")}
    sizes = {} if name == "LR" else {"embedding_dim": DIM}
    made = fuxictr_class(zoo, name.split()[0])(feature_map, **sizes, **arguments, **common, **where, learning_rate=0.02)
    made._max_gradient_norm = 10.0  # which `fit` sets
    made.train()
    for step in range(STEPS):
        rows = torch.arange(step * 64, step * 64 + 64) % len(train["click"])
        made.train_step({key: value[rows] for key, value in train.items()})
    made.eval()
    file = work / "fuxictr" / f"{name.replace(' ', '_')}.model"
    made.save_weights(str(file))
    with torch.no_grad():
        theirs_N = made.forward(test)["y_pred"].flatten().double().numpy()
    run = work / "runs" / f"fuxictr-{name.replace(' ', '_')}"
    write_config(work / "config.yaml", data=work / f"data-{has_bags}", model=model, has_bags=has_bags)
    vocabulary = Path(feature_map.data_dir) / "feature_vocab.json"
    imported(file, "--from", "fuxictr", "--vocab", vocabulary, "--config", work / "config.yaml", "--out", run)
    report(name, theirs_N, load_model(run).score([row for row in log if row["split"] == "test"]))


# DeepCTR-Torch


def deepctr_models(columns: list[Any], dense: list[Any]) -> Iterator[tuple[str, Any, dict[str, Any], bool]]:
    """Models, the section `model` here, and whether they read numbers."""
    from deepctr_torch.models import DCN, WDL, DeepFM

    own = {"dnn_hidden_units": (16, 8), "dnn_use_bn": True, "init_std": 0.1}
    yield "DeepFM", DeepFM(columns, columns, **own), {"name": "deepfm", **MLP}, False
    yield "WDL", WDL([*columns, *dense], [*columns, *dense], **own), {"name": "wdl", **MLP}, True
    for how, name in (("vector", "dcn"), ("matrix", "dcn_v2")):
        made = DCN([], [*columns, *dense], cross_num=2, cross_parameterization=how, **own)
        yield f"DCN {how}", made, {"name": name, **MLP, "num_cross_layers": 2}, True


def deepctr(work: Path) -> None:
    from deepctr_torch.inputs import DenseFeat, SparseFeat

    log = write_log(work / "log.csv")
    vocabularies = {n: ["", *sorted({row[n] for row in log if row["split"] != "test"})] for n in SINGLE}
    for name, tokens in vocabularies.items():
        (work / f"{name}.txt").write_text("".join(f"{token}\n" for token in tokens))
    rows = {split: [row for row in log if row["split"] == split] for split in ("train", "test")}
    # A row that training had not has no id in DeepCTR; where all are known, scores can be compared.
    rows["test"] = [row for row in rows["test"] if all(row[n] in vocabularies[n] for n in SINGLE)]

    def inputs(split: str) -> dict[str, np.ndarray]:
        ids = {n: np.array([vocabularies[n].index(row[n]) for row in rows[split]]) for n in SINGLE}
        return ids | {n: np.array([row[n] for row in rows[split]], dtype=np.float32) for n in ("price", "age")}

    columns = [SparseFeat(name, len(vocabularies[name]), DIM) for name in SINGLE]
    dense = [DenseFeat(name, 1) for name in ("price", "age")]
    for name, model, section, has_numbers in deepctr_models(columns, dense):
        wanted = {**COLUMNS, "multivalued": {}, "numeric": COLUMNS["numeric"] if has_numbers else {}}
        prepare(wanted, work / "log.csv", work / f"data-deepctr-{has_numbers}", format="csv", overwrite=True)
        model.compile("adam", "binary_crossentropy")
        model.fit(inputs("train"), np.array([row["click"] for row in rows["train"]]), epochs=4, verbose=0)
        theirs_N = model.predict(inputs("test")).flatten().astype(np.float64)
        file, run = work / f"{name.replace(' ', '_')}.pt", work / "runs" / f"deepctr-{name.replace(' ', '_')}"
        torch.save(model.state_dict(), file)
        write_config(work / "config.yaml", data=work / f"data-deepctr-{has_numbers}", model=section, has_bags=False)
        vocab = [text for n in SINGLE for text in ("--vocab", f"{n}={work / f'{n}.txt'}")]
        imported(file, "--from", "deepctr", *vocab, "--config", work / "config.yaml", "--out", run)
        report(name, theirs_N, load_model(run).score(rows["test"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["fuxictr", "deepctr"])
    parser.add_argument("--models", type=Path, help="The folder model_zoo of FuxiCTR.")
    parser.add_argument("--work", type=Path, required=True, help="An empty folder.")
    records.argument(parser)
    arguments = parser.parse_args()
    package = {"fuxictr": "fuxictr", "deepctr": "deepctr-torch"}[arguments.peer]
    versions = {name: version(name) for name in (package, "torch", "embank")}
    run = records.begin(settings={"peer": arguments.peer, **versions})
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):  # the libraries print
        if arguments.peer == "fuxictr":
            fuxictr(arguments.work, arguments.models)
        else:
            deepctr(arguments.work)
    run.records = FOUND

    def others(earlier: records.Run) -> records.Run | None:
        return None if earlier.settings.get("peer") == arguments.peer else earlier

    records.save("imports", run, title=TITLE, about=ABOUT, out=arguments.out, keep=others)


if __name__ == "__main__":
    main()
