"""What files are made of: a trained model's bundle, bundles of every form of table, deltas."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torchrec import KeyedJaggedTensor

from embank.pipelines import apply_delta, load_model, make_delta
from embank.pipelines.data.prepare.prepare import prepare
from embank.tables import Bundle, TableCollection, save_bundle
from embank.tables.collections.stages import finished
from embank.tables.serving.bundle import NETWORK, TABLES, Verify
from tests.contracts.forms import FORMS, NUM
from tests.data.test_preprocessing import CONFIG, csv_of, rows_of
from tests.deltas.bundles import chain, files
from tests.fuzz.mutations import reseal
from tests.training.runs import train

ROWS = rows_of(40, seed=5)
IDS = KeyedJaggedTensor(keys=["t"], values=torch.arange(NUM), lengths=torch.ones(NUM, dtype=torch.int32))


class Places:
    """One of each, made once; cases change copies.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.other = folder / "model", folder / "other"
        self._train()
        self.scores = score(self.model)
        self.forms = [self._form(name) for name in FORMS]
        self.old, self.new, self.last = chain(folder, 2)
        self.delta, self.second = folder / "delta", folder / "second"
        make_delta(self.old, self.new, self.delta)
        make_delta(self.new, self.last, self.second)
        self.expected = files(self.new)

    def copy(self, source: Path) -> Path:
        """A copy that a case may change."""
        target = self.folder / "case"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(source, target))

    def _train(self) -> None:
        csv_of(self.folder / "log.csv", rows_of(400, seed=1))
        prepare({**CONFIG, "hashed": ["page"]}, self.folder / "log.csv", self.folder / "data", format="csv")
        tables = {"dim": 4, "overrides": {"page": {"method": "hash", "num_rows": 30}, "user": {"method": "dpq"}}}
        train(
            self.folder / "data",
            self.folder / "run",
            tables=tables,
            model={"name": "deepfm", "hidden_units": [8]},
            train={"epochs": 1, "table_lr": 0.05, "num_threads": 1},
        )
        shutil.copytree(self.folder / "run" / "bundle", self.model)
        shutil.copytree(self.model, self.other)
        for name in (TABLES, NETWORK):  # the same model with other numbers in it
            content = bytearray((self.other / name).read_bytes())
            content[-64:] = bytes(64)
            (self.other / name).write_bytes(content)
        reseal(self.other)

    def _form(self, name: str) -> Path:
        torch.manual_seed(0)
        save_bundle(self.folder / name, finished(TableCollection([FORMS[name].spec("t")])))
        return self.folder / name


def score(bundle: Path, *, verify: Verify = True) -> list[bytes]:
    """All that is asked of a model: scores of many rows, of a few, an embedding."""
    model = load_model(bundle, verify=verify)
    values: list[Any] = [model.score(ROWS), model.score(ROWS[:3]), model.embed("user", ["u1", "none", "u2"])]
    return [value.tobytes() for value in values]


def look_up(bundle: Path, *, verify: Verify = True) -> bytes:
    """All rows of the table of a form."""
    opened = Bundle(bundle, verify=verify)
    if opened.has_network:
        opened.network()
    values: bytes = opened.tables()(IDS).values().numpy().tobytes()
    return values


def applied(place: Places, delta: Path, *, bundle: Path | None = None) -> dict[str, bytes]:
    """The bundle that a delta leads to."""
    out = place.folder / "result"
    shutil.rmtree(out, ignore_errors=True)
    apply_delta(bundle or place.old, delta, out)
    return files(out)
