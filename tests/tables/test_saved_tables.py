"""Checkpoints and bundles say what they are of; what does not match is refused by name, and nothing in a file is
executed."""

import io
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import tests.tables.served  # noqa: F401 - registers methods
from embank.tables import (
    Bundle,
    CheckpointError,
    ConfigError,
    RowOptimizer,
    TableCollection,
    TableSpec,
    load_bundle,
    pack_collection,
    save_bundle,
)
from embank.tables.sharding.plan import Placement, Plan
from embank.tables.sharding.sharded_rows import Sharding
from embank.tables.storage.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoint
from embank.tables.storage.checksums import write_checksums
from tests.tables.batches import random_kjt

PLAIN = TableSpec(name="t", num_embeddings=1_000, embedding_dim=8, feature_names=["a"])


class Marks:
    """What creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def checkpoint(folder: Path, spec: TableSpec = PLAIN, **kwargs: Any) -> Path:
    save_checkpoint(
        folder / "c", tables=TableCollection([spec], **kwargs), dense={"x": torch.ones(2)}, meta={"step": 3}
    )
    return folder / "c"


def altered(path: Path, **changes: Any) -> None:
    """Changes a JSON file and makes the checksums right again."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    top = path.parent if (path.parent / "checksums.json").exists() else path.parent.parent
    (top / "checksums.json").unlink()
    write_checksums(top)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"method": "hash", "budget": 0.9},
            r"checkpoint '.*' is of other tables: table 't' was saved with method 'full' and has 'hash' here",
        ),
        ({"num_embeddings": 1_200}, "table 't' was saved with num_embeddings 1000 and has 1200 here"),
        ({"embedding_dim": 12}, "table 't' was saved with embedding_dim 8 and has 12 here"),
        ({"name": "u"}, r"belongs to other tables: it lacks \['u'\] and has \['t'\] besides"),
    ],
)
def test_checkpoints_of_other_tables(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder, other = checkpoint(tmp_path), TableCollection([replace(PLAIN, **change)])
    before = {name: rows.clone() for name, rows in other.weights().items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, tables=other)
    assert all(torch.equal(before[name], rows) for name, rows in other.weights().items())


def test_rows_of_the_same_shape_under_another_method_or_option(tmp_path: Path) -> None:
    """A hashed table may have as many rows as there are ids, and two of one method may share rows by other rules."""
    specs = [replace(PLAIN, method="compositional", budget=0.5), replace(PLAIN, method="tt_rec", budget=0.5)]
    folder = checkpoint(tmp_path, specs[0])
    with pytest.raises(CheckpointError, match="table 't' was saved with method 'compositional' and has 'tt_rec' here"):
        load_checkpoint(folder, tables=TableCollection([specs[1]]))
    with pytest.raises(CheckpointError, match=r"table 't' was saved with budget 0\.5 and has 0\.4 here"):
        load_checkpoint(folder, tables=TableCollection([replace(specs[0], budget=0.4)]))


def test_another_row_optimizer(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, optimizer=RowOptimizer(name="adagrad"))
    other = TableCollection([PLAIN], seed=1)
    with pytest.raises(
        CheckpointError, match="optimizer state of 'adagrad'; the tables here are updated by 'rowwise_adagrad'"
    ):
        load_checkpoint(folder, tables=other)
    dense, meta = load_checkpoint(folder, tables=other, optimizer=False)
    assert torch.equal(dense["x"], torch.ones(2))
    assert meta["step"] == 3
    assert torch.equal(other.weights()["t"], TableCollection([PLAIN]).weights()["t"])


def test_updates_go_on_where_the_checkpoint_was_saved(tmp_path: Path) -> None:
    """Adam's first update of a training is ten times as large as the same update of one under way."""
    adam = RowOptimizer(name="adam", lr=0.05)
    tables, other = (TableCollection([PLAIN], backend="torch", optimizer=adam, seed=seed) for seed in (0, 1))

    def train(trained: TableCollection, batch: int) -> None:
        (trained(random_kjt({"a": 1_000}, batch_size=64, seed=batch)).values() - 1).square().sum().backward()

    for batch in range(3):
        train(tables, batch)
        tables.step()
    train(tables, 3)  # no step: saving finishes it
    save_checkpoint(tmp_path / "c", tables=tables, dense={}, meta={})
    load_checkpoint(tmp_path / "c", tables=other)
    unused = TableCollection([PLAIN], backend="torch", optimizer=adam)
    load_checkpoint(tmp_path / "c", tables=unused, optimizer=False)
    assert [store.num_updates for t in (tables, other, unused) for store in t.row_stores()] == [4, 4, 0]
    for trained in (tables, other):
        train(trained, 4)
    assert torch.equal(tables.weights()["t"], other.weights()["t"])


def test_a_model_is_no_collection(tmp_path: Path) -> None:
    folder, model = checkpoint(tmp_path), nn.Sequential(TableCollection([PLAIN]))
    calls = {
        "save_checkpoint": lambda: save_checkpoint(tmp_path / "n", tables=model, dense={}, meta={}),
        "load_checkpoint": lambda: load_checkpoint(folder, tables=model),
        "save_bundle": lambda: save_bundle(tmp_path / "n", model),
        "pack_collection": lambda: pack_collection(model),
    }
    for name, call in calls.items():
        with pytest.raises(
            ConfigError, match=f"{name} takes a collection of tables, not a Sequential; give the TableCollection"
        ):
            call()
    assert not (tmp_path / "n").exists()


def test_checkpoints_of_other_versions(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    altered(folder / "meta.json", format_version=2)
    with pytest.raises(
        CheckpointError,
        match=r"has format version 2; this embank reads version 3\. Load it with the embank that wrote it",
    ):
        load_checkpoint(folder, tables=TableCollection([PLAIN]))
    altered(folder / "meta.json", format_version=3, identity={})
    with pytest.raises(CheckpointError, match=r"meta\.json' does not say which tables it is of"):
        verify_checkpoint(folder)


def test_facts_of_the_caller_do_not_replace_ours(tmp_path: Path) -> None:
    meta = {"format_version": 9, "identity": {}, "step": 1}
    save_checkpoint(tmp_path / "c", tables=TableCollection([PLAIN]), dense={}, meta=meta)
    found = verify_checkpoint(tmp_path / "c")
    assert (found["format_version"], found["step"], list(found["identity"]["tables"])) == (3, 1, ["t"])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"dense": {"x": Path("a")}}, r"besides rows \(`dense`\) can't be loaded again: .*Give tensors, numbers, text"),
        ({"dense": {"x": lambda: 0}}, r"besides rows \(`dense`\) can't be loaded again"),
        ({"meta": {"x": torch.ones(2)}}, r"facts of a checkpoint \(`meta`\) can't be saved as JSON: .*; give plain "
        r"values"),
    ],
)  # fmt: skip
def test_what_could_not_be_loaded_again_is_not_saved(part: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        save_checkpoint(tmp_path / "c", tables=TableCollection([PLAIN]), **{"dense": {}, "meta": {}, **part})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index: {}, "has no 'rows/t'"),
        (lambda index: {**index, "rows/t": {**index["rows/t"], "pieces": []}}, r"index\.json' is damaged .*pieces "
        r"hold 0 of 8000"),
        (lambda index: {**index, "rows/t": {"size": [1_000, 4], "pieces": []}}, r"index\.json' is damaged"),
        (lambda index: {**index, "rows/t": 5}, r"index\.json' is damaged"),
        (lambda index: _moved(index, file="../dense.pt"), r"is no file of this folder"),
        (lambda index: _moved(index, start=7), r"distcp' can't be read"),
        (lambda index: _moved(index, nbytes=20), r"distcp' can't be read"),
    ],
)  # fmt: skip
def test_damage_that_checksums_do_not_tell(damage: Any, message: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    index = folder / "rows" / "index.json"
    changed = damage(json.loads(index.read_text()))
    index.write_text("{}")
    altered(index, **changed)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, tables=TableCollection([PLAIN]))


def _moved(index: dict[str, Any], **change: Any) -> dict[str, Any]:
    (piece,) = index["rows/t"]["pieces"]
    return {**index, "rows/t": {**index["rows/t"], "pieces": [{**piece, **change}]}}


@pytest.mark.parametrize("file", [".metadata", "dense.pt", "__0_0.distcp"])
def test_a_forged_checkpoint_executes_nothing(file: str, tmp_path: Path) -> None:
    folder, marker = checkpoint(tmp_path), tmp_path / "marker"
    buffer = io.BytesIO()
    torch.save({"x": Marks(marker)}, buffer)
    if file == "dense.pt":
        (folder / file).write_bytes(buffer.getvalue())
    elif file == ".metadata":
        (folder / "rows" / file).write_bytes(pickle.dumps(Marks(marker)))
    else:
        (folder / "rows" / file).write_bytes(buffer.getvalue())
        index = json.loads((folder / "rows" / "index.json").read_text())
        (folder / "rows" / "index.json").write_text(json.dumps(_moved(index, start=0, nbytes=len(buffer.getvalue()))))
    altered(folder / "meta.json")
    tables = TableCollection([PLAIN], seed=1)
    if file == ".metadata":  # torch's own, which nothing here reads
        load_checkpoint(folder, tables=tables)
        assert torch.equal(tables.weights()["t"], TableCollection([PLAIN]).weights()["t"])
    else:
        with pytest.raises(CheckpointError, match=f"{file}' can't be read"):
            load_checkpoint(folder, tables=tables)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"spine": "forged.other.Spine"},
            "served by a forged.other.Spine, which method 'test_one_array' no longer has",
        ),
        ({"spine": "os.path.join"}, "served by a os.path.join, which method 'test_one_array' no longer has"),
        ({"spine": "replace"}, "served by a replace, which method 'test_one_array' no longer has"),
        ({"matrices": [{"codec": "forged.other:Codec", "facts": {}}]}, "there is no codec 'forged.other:Codec'"),
    ],
)
def test_a_forged_bundle_imports_nothing(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bundle(tmp_path / "b", TableCollection([replace(PLAIN, method="test_one_array", num_embeddings=400)]))
    marker, code = tmp_path / "marker", f"from pathlib import Path\nPath({str(tmp_path / 'marker')!r}).touch()\n"
    (tmp_path / "forged").mkdir()
    for file in ("forged/__init__.py", "forged/other.py"):
        (tmp_path / file).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    (entry,) = json.loads((tmp_path / "b" / "manifest.json").read_text())["tables"]
    altered(tmp_path / "b" / "manifest.json", tables=[{**entry, "served": {**entry["served"], **change}}])
    with pytest.raises(CheckpointError, match=message):
        load_bundle(tmp_path / "b")
    assert not marker.exists()
    assert not {"forged", "forged.other"} & set(sys.modules)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_embeddings": 500}, "its tensors don't make a Full: index out of range"),
        ({"embedding_dim": 6}, "its tensors give rows of width 8, where the table has dim 6"),
        ({"embedding_dim": 0}, "has embedding_dim 0; it must be a whole number"),
        (
            {"tensors": {"matrices.0.lookup": {"key": "t.matrices.0.rows", "shape": [400, 8]}}},
            "its tensors don't make a Full",
        ),
        ({"tensors": {}}, "its tensors don't make a Full"),
        (
            {"tensors": {"matrices.0.rows": {"key": "t.matrices.0.rows", "shape": [400, 9]}}},
            r"'t.matrices.0.rows' has 3,200 numbers, not shape \[400, "
            r"9\]",
        ),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_its_tensors(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", TableCollection([replace(PLAIN, num_embeddings=400)]))
    (entry,) = json.loads((tmp_path / "b" / "manifest.json").read_text())["tables"]
    altered(tmp_path / "b" / "manifest.json", tables=[{**entry, **change}])
    with pytest.raises(CheckpointError, match=message):
        load_bundle(tmp_path / "b")


class Model(nn.Module):
    """A network around tables."""

    def __init__(self, tables: TableCollection) -> None:
        super().__init__()
        self.rows_of = nn.Linear(8, 1)
        self.inner = nn.ModuleDict({"tables": tables})


@pytest.mark.parametrize("is_copied", [False, True])
@pytest.mark.parametrize("method", ["full", "dhe"])
def test_what_belongs_to_the_tables_is_no_part_of_the_network(method: str, is_copied: bool, tmp_path: Path) -> None:
    tables = TableCollection([replace(PLAIN, method=method)])
    model = Model(tables)
    state = {name: value.clone() if is_copied else value for name, value in model.state_dict().items()}
    save_bundle(tmp_path / "b", tables, network=state)
    assert set(Bundle(tmp_path / "b").network()) == {"rows_of.weight", "rows_of.bias"}
    other = TableCollection([replace(PLAIN, name="u")])
    with pytest.raises(
        ConfigError, match=r"'inner.tables._extra_state' is of the tables \['t'\], the bundle has \['u'\]"
    ):
        save_bundle(tmp_path / "c", other, network=state)
    with pytest.raises(ConfigError, match="the network's 'epoch' is a int; a bundle holds tensors"):
        save_bundle(tmp_path / "c", tables, network={"epoch": 3})


def test_a_part_of_the_rows_is_neither_packed_nor_a_state_dict(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1)
    try:
        plan = Plan(world_size=1, tables={"t": Placement(kind="row_wise")})
        tables = TableCollection([PLAIN], sharding=Sharding(plan=plan))
        for act in (
            lambda: save_bundle(tmp_path / "b", tables),
            tables.packs,
            lambda: tables.nbytes("serving"),
        ):
            with pytest.raises(ConfigError, match="spread over 1 processes, so they can't be packed here"):
                act()
        with pytest.raises(ConfigError, match="a state_dict here would hold those of one. Use save_checkpoint"):
            Model(tables).state_dict()
        assert not (tmp_path / "b").exists()
        assert tables(random_kjt({"a": 1_000}, batch_size=3, seed=0)).values().shape == (3, 8)
    finally:
        dist.destroy_process_group()
