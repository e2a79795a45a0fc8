"""Whole models of FuxiCTR and DeepCTR-Torch: raw rows score as they do there."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embank.pipelines import import_source, load_model, prepare
from embank.pipelines.config.run import Config, parse_config
from embank.tables import ConfigError
from embank.tables.ids.vocabulary import Vocabulary
from tests.importing.peers import OOV, DeepCTRWDL, FuxiDCNv2, FuxiDeepFM, FuxiDLRM, fuxictr_files, randomised

COLUMNS = {
    "label": {"column": "click"},
    "categorical": ["user", "item", "shop"],
    "numeric": {"price": "none", "age": "none"},
    "split": {"by": "hash", "ratios": [0.6, 0.2, 0.2]},
}
ORDER = ["item", "age", "user", "shop", "price"]
DIM = 4
MLP = {"hidden_units": [8, 6]}


@dataclass(frozen=True, kw_only=True)
class Log:
    """A prepared log, its raw rows and its tokens."""

    data: Path
    rows: Sequence[Mapping[str, Any]]
    tokens: Mapping[str, list[str]]

    def config(self, model: Mapping[str, Any], **tables: Any) -> Config:
        return parse_config(
            {
                "data": {"path": str(self.data), "batch_size": 64},
                "model": dict(model),
                "tables": {"dim": DIM, **tables},
                "train": {"num_threads": 1},
            }
        )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    folder, rng = tmp_path_factory.mktemp("log"), np.random.default_rng(0)
    rows = [
        {
            "user": f"u{user}",
            "item": f"{item}",
            "shop": f"s {shop}",
            "price": price / 50,
            "age": age / 50,
            "click": click,
        }
        for user, item, shop, price, age, click in rng.integers(0, (40, 20, 5, 100, 100, 2), (200, 6)).tolist()
    ]
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    prepare(COLUMNS, folder / "log.csv", folder / "data", format="csv")
    names = COLUMNS["categorical"]
    known = {name: Vocabulary.load(folder / f"data/vocab/{name}.parquet") for name in names}
    tokens = {name: [token for token in known[name].tokens.to_list() if token is not None] for name in names}
    return Log(data=folder / "data", rows=rows, tokens=tokens)


def scores(model: nn.Module, log: Log, ids: Mapping[str, Mapping[str, int]], *, unknown: str) -> np.ndarray:
    """What a source's model says of raw rows, encoded as it encodes them."""
    inputs = {
        name: torch.tensor([rows.get(row[name], rows[unknown]) for row in log.rows]) for name, rows in ids.items()
    }
    numbers = {name: torch.tensor([row[name] for row in log.rows]) for name in COLUMNS["numeric"]}
    with torch.no_grad():
        return torch.sigmoid(model({**inputs, **numbers}).double()).numpy()


FUXICTR: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "deepfm": (FuxiDeepFM, {"name": "deepfm", **MLP, "batch_norm": True}),
    "dlrm": (FuxiDLRM, {"name": "dlrm", "bottom": [5], "top": [6]}),
    "dcn_v2": (FuxiDCNv2, {"name": "dcn_v2", "hidden_units": [6], "num_cross_layers": 2, "embed_numeric": True}),
}


@pytest.mark.parametrize("name", FUXICTR)
def test_fuxictr(name: str, log: Log, tmp_path: Path) -> None:
    made, section = FUXICTR[name]
    some = {feature: tokens[: -len(tokens) // 4] for feature, tokens in log.tokens.items()}  # the others it has not
    ids = fuxictr_files(tmp_path, some, ORDER)
    sizes = {feature: len(ids[feature]) if feature in ids else None for feature in ORDER}
    torch.manual_seed(0)
    model = randomised(made(sizes, dim=DIM))
    torch.save(model.state_dict(), tmp_path / "saved.model")
    done = import_source(
        tmp_path / "saved.model",
        tmp_path / "run",
        kind="fuxictr",
        vocab=[str(tmp_path / "feature_vocab.json")],
        config=log.config(section),
    )
    assert {(one.by, one.error) for one in done.tables} == {("token", 0.0)}
    by_name = {one.name: one for one in done.tables}
    for feature, tokens in log.tokens.items():  # rows that the source lacks, but for the unknown value; the row of PAD
        assert (by_name[feature].missing, by_name[feature].surplus) == (len(tokens) - len(some[feature]), 1)
    known = [row for row in log.rows if all(row[feature] in some[feature] for feature in some)]
    assert 20 < len(known) < len(log.rows)
    wanted = scores(model, Log(data=log.data, rows=known, tokens=log.tokens), ids, unknown=OOV)
    assert np.abs(load_model(tmp_path / "run").score(known) - wanted).max() < 1e-6
    strangers = [{**row, "user": "a stranger"} for row in known]
    wanted = scores(model, Log(data=log.data, rows=strangers, tokens=log.tokens), ids, unknown=OOV)
    assert np.abs(load_model(tmp_path / "run").score(strangers) - wanted).max() < 1e-6


def test_deepctr(log: Log, tmp_path: Path) -> None:
    tokens = {name: [OOV, *sorted(log.tokens[name])] for name in ("item", "user", "shop")}
    torch.manual_seed(0)
    model = randomised(DeepCTRWDL({name: len(own) for name, own in tokens.items()}, list(COLUMNS["numeric"]), dim=DIM))
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    for name, own in tokens.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{token}\n" for token in own))
    done = import_source(
        tmp_path / "model.pt",
        tmp_path / "run",
        kind="deepctr",
        vocab=[f"{name}={tmp_path / name}.txt" for name in tokens],
        config=log.config({"name": "wdl", **MLP}),
    )
    assert done.network == 8
    ids = {name: {token: row for row, token in enumerate(own)} for name, own in tokens.items()}
    assert np.abs(load_model(tmp_path / "run").score(log.rows) - scores(model, log, ids, unknown=OOV)).max() < 1e-6


def deepfm(log: Log, folder: Path, **changes: Any) -> Path:
    """A saved model of FuxiCTR with its vocabularies."""
    ids = fuxictr_files(folder, log.tokens, ORDER)
    torch.manual_seed(0)
    model = FuxiDeepFM({name: len(ids[name]) if name in ids else None for name in ORDER}, dim=DIM)
    state = {**model.state_dict(), **changes}
    torch.save({name: value for name, value in state.items() if value is not None}, folder / "saved.model")
    return folder / "saved.model"


BROKEN = [
    ({"gate.weight": torch.ones(2, 2)}, {}, "'gate.weight' has no counterpart in model 'deepfm'.*--tables-only"),
    ({"fm.lr_layer.bias": None}, {}, "it has no 'lr_layer.bias'|it has no 'fm.lr_layer.bias', which is 'linear.bias'"),
    ({"mlp.mlp.0.bias": torch.tensor([float("nan")] * 8)}, {}, "'mlp.mlp.0.bias' has a number that is NaN"),
    ({}, {"hidden_units": [8]}, "it has 3 linear layers in 'mlp.mlp', and model.hidden_units makes 2"),
    (
        {f"mlp.mlp.{layer}.{part}": None for layer in (4, 8) for part in ("weight", "bias")},
        {},
        "it has 1 linear layer in 'mlp.mlp', and model.hidden_units makes 3",
    ),
    ({}, {"hidden_units": [8, 7]}, r"has the shape \[6, 8\], and 'deep.3.weight' here \[7, 8\]"),
    ({}, {"batch_norm": False}, "it has 2 normalisations in 'mlp.mlp', and model.hidden_units makes 0"),
]


@pytest.mark.parametrize(("changes", "section", "message"), BROKEN)
def test_networks_that_do_not_fit(changes: Any, section: Any, message: str, log: Log, tmp_path: Path) -> None:
    saved, model = deepfm(log, tmp_path, **changes), {"name": "deepfm", **MLP, "batch_norm": True, **section}
    how = {"kind": "fuxictr", "vocab": [str(tmp_path / "feature_vocab.json")]}
    with pytest.raises(Exception, match=message):
        import_source(saved, tmp_path / "run", config=log.config(model), **how)
    assert not [path for path in tmp_path.iterdir() if "run" in path.name]
    done = import_source(saved, tmp_path / "run", config=log.config(model), tables_only=True, **how)
    assert (done.network, len(done.tables), done.result) == (0, 6, None)


def test_what_the_mathematics_need_is_said(log: Log, tmp_path: Path) -> None:
    state = torch.load(deepfm(log, tmp_path))
    torch.save({name: value for name, value in state.items() if "lr_layer" not in name}, tmp_path / "saved.model")
    with pytest.raises(ConfigError, match="model.embed_numeric is False.*set model.embed_numeric to true"):
        import_source(
            tmp_path / "saved.model",
            tmp_path / "run",
            kind="fuxictr",
            vocab=[str(tmp_path / "feature_vocab.json")],
            config=log.config({"name": "fnn", "embed_numeric": False, **MLP, "batch_norm": True}),
        )


def test_the_order_of_numbers_is_not_guessed(log: Log, tmp_path: Path) -> None:
    """FuxiCTR's DLRM has no parameter by number, so that its file does not tell their order."""
    ids = fuxictr_files(tmp_path, log.tokens, ORDER)
    (tmp_path / "feature_map.json").unlink()
    torch.manual_seed(0)
    model = randomised(FuxiDLRM({name: len(ids[name]) if name in ids else None for name in ORDER}, dim=DIM))
    torch.save(model.state_dict(), tmp_path / "saved.model")
    how: dict[str, Any] = {
        "kind": "fuxictr",
        "vocab": [str(tmp_path / "feature_vocab.json")],
        "config": log.config({"name": "dlrm", "bottom": [5], "top": [6]}),
    }
    with pytest.raises(ConfigError, match="does not tell in which order its network reads the numbers price, age"):
        import_source(tmp_path / "saved.model", tmp_path / "run", **how)
    import_source(tmp_path / "saved.model", tmp_path / "run", order=ORDER, **how)
    wanted = scores(model, log, ids, unknown=OOV)
    assert np.abs(load_model(tmp_path / "run").score(log.rows) - wanted).max() < 1e-6
