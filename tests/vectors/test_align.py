"""From a new training's vectors to the old one's: matched by id, chosen, told of, applied."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from embank.pipelines import align_vectors, apply_alignment, compress_vectors, import_source, load_alignment, prepare
from embank.pipelines.vectors.sources import TableVectors, matched
from embank.tables import CheckpointError, ConfigError, DataError, TableCollection, TableSpec, save_bundle
from tests.compression.codecs import random_rows
from tests.compression.test_alignment import rotation
from tests.convert.bundles import HASHED
from tests.pages import embank
from tests.training.runs import train


def parquet(path: Path, rows: torch.Tensor, keys: list[Any]) -> Path:
    pl.DataFrame({"vector": rows.numpy(), "id": keys}).write_parquet(path)
    return path


def npy(path: Path, rows: torch.Tensor) -> Path:
    np.save(path, rows.numpy())
    return path


def test_permuted_and_missing_ids_are_matched_by_key(tmp_path: Path) -> None:
    rows, turn = random_rows(300, 6), rotation(6)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:250]
    old = parquet(tmp_path / "old.parquet", rows[20:], [f"k{i}" for i in range(20, 300)])
    new = parquet(tmp_path / "new.parquet", rows[order] @ turn.T, [f"k{i}" for i in order.tolist()])
    report = align_vectors(old, new, tmp_path / "map")
    both = int((order >= 20).sum())
    assert (report.num_matched, report.only_old, report.only_new) == (both, 280 - both, 250 - both)
    assert report.by == "keys"
    assert report.num_fitted + report.num_valid + report.num_test == both
    assert report.kind == "orthogonal", "of equals the one with fewer freedoms"
    assert report.after["orthogonal"].recall == report.after["affine"].recall == 1.0
    assert report.after["orthogonal"].cosine == pytest.approx(1.0, abs=1e-6)
    assert report.before.recall < 0.5
    fitted, turned = load_alignment(tmp_path / "map"), rows @ turn.T
    torch.testing.assert_close(torch.from_numpy(fitted.apply(turned)), rows, atol=1e-5, rtol=0)
    for given in (turned.requires_grad_(), turned.detach().numpy()[::-1][::-1], turned.tolist()):
        assert np.array_equal(fitted.apply(given), fitted.apply(turned.detach()))
    for given in ("abc", [["a"]], [[1.0], [2.0, 3.0]], turned.tolist()[0]):
        with pytest.raises(ConfigError, match="can be made of|can't be mapped"):
            fitted.apply(given)  # type: ignore[arg-type]
    page = (tmp_path / "map/report.md").read_text()
    assert "| as they are | - |" in page
    assert "| **orthogonal** | 1.0000 | 1.0000 | 1.0000 |" in page


def test_the_better_map_on_validation_is_taken(tmp_path: Path) -> None:
    old = random_rows(400, 5)
    skewed = (old - torch.tensor([3.0, 0, 0, 0, 0])) @ (rotation(5) * torch.tensor([5.0, 1, 1, 1, 0.2]))
    report = align_vectors(npy(tmp_path / "old.npy", old), npy(tmp_path / "new.npy", skewed), tmp_path / "map")
    assert (report.kind, report.by) == ("affine", "rows")
    assert report.after["affine"].recall == 1.0 > report.after["orthogonal"].recall


def test_unlike_widths_take_an_affine_map_and_no_orthogonal_one(tmp_path: Path) -> None:
    new = random_rows(200, 6)
    files = npy(tmp_path / "old.npy", new @ random_rows(6, 3, seed=1)), npy(tmp_path / "new.npy", new)
    report = align_vectors(*files, tmp_path / "map")
    assert (report.kind, report.before, list(report.after)) == ("affine", None, ["affine"])
    assert report.after["affine"].recall == 1.0
    with pytest.raises(ConfigError, match="of 6 numbers and .* of 3: no orthogonal map leads"):
        align_vectors(*files, tmp_path / "other", kind="orthogonal")
    few = npy(tmp_path / "few.npy", new[:8]), npy(tmp_path / "few_new.npy", random_rows(8, 6))
    with pytest.raises(DataError, match="8 ids are both in"):
        align_vectors(*few, tmp_path / "other")
    few = npy(tmp_path / "f.npy", random_rows(12, 20)), npy(tmp_path / "f2.npy", random_rows(12, 20, seed=1))
    assert align_vectors(*few, tmp_path / "few").kind == "orthogonal"
    with pytest.raises(DataError, match="needs more than 20 ids to be fitted to, and there are 10"):
        align_vectors(*few, tmp_path / "other", kind="affine")
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".*"))


def test_tables_of_bundles_and_compressed_folders_are_sources(tmp_path: Path) -> None:
    specs = [TableSpec(name=name, num_embeddings=80, embedding_dim=4, feature_names=[name]) for name in ("a", "b")]
    tables = TableCollection(specs, seed=3)
    save_bundle(tmp_path / "bundle", tables)
    rows = tables.weights()["b"].contiguous()
    new = npy(tmp_path / "new.npy", rows @ rotation(4).T)
    with pytest.raises(ConfigError, match=r"has 2 tables \(a, b\); name one with --table"):
        align_vectors(tmp_path / "bundle", new, tmp_path / "map")
    with pytest.raises(ConfigError, match="no table 'c'; tables: a, b"):
        align_vectors(tmp_path / "bundle", new, tmp_path / "map", table="c")
    report = align_vectors(tmp_path / "bundle", new, tmp_path / "map", table="b")
    assert report.after["orthogonal"].recall == 1.0
    old = parquet(tmp_path / "old.parquet", rows, list(range(80)))
    compress_vectors(old, tmp_path / "old", codec="fp16")
    turned = parquet(tmp_path / "new.parquet", (rows @ rotation(4).T).flip(0), list(range(79, -1, -1)))
    report = align_vectors(tmp_path / "old", turned, tmp_path / "keyed")
    assert (report.by, report.num_matched) == ("keys", 80)
    assert report.after["orthogonal"].cosine > 0.999


def test_tables_of_hashes_of_tokens_have_no_rows_to_list(tmp_path: Path) -> None:
    save_bundle(tmp_path / "hashed", TableCollection(HASHED))
    new, told = (
        npy(tmp_path / "new.npy", random_rows(40, 4)),
        "the ids of table 'any' of bundle .* are hashes of tokens",
    )
    with pytest.raises(ConfigError, match=told):
        align_vectors(new, tmp_path / "hashed", tmp_path / "map", table="any")
    align_vectors(new, npy(tmp_path / "old.npy", random_rows(40, 4)), tmp_path / "map")
    with pytest.raises(ConfigError, match=told):
        apply_alignment(tmp_path / "map", tmp_path / "hashed", tmp_path / "out.npy", table="any")
    with pytest.raises(ConfigError, match=told):
        import_source(tmp_path / "hashed", tmp_path / "imported", kind="embank")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hashed", "map", "new.npy", "old.npy"]


def test_sources_that_tell_nothing_are_refused(tmp_path: Path) -> None:
    """Of equal vectors none is nearer than another, so every map would keep all neighbours."""
    np.save(tmp_path / "rows.npy", random_rows(40, 4).numpy())
    np.save(tmp_path / "equal.npy", np.full((40, 4), 0.5, dtype=np.float32))
    np.save(tmp_path / "few.npy", random_rows(9, 4).numpy())
    for old, new, told in (
        ("equal", "rows", "equal.npy', the array: all vectors are equal"),
        ("rows", "equal", "equal.npy', the array: all vectors are equal"),
        ("rows", "few", r"9 ids .* \(by rows\); a map needs at least 10. Give files of more rows"),
    ):
        with pytest.raises(DataError, match=told):
            align_vectors(tmp_path / f"{old}.npy", tmp_path / f"{new}.npy", tmp_path / "map")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["equal.npy", "few.npy", "rows.npy"]


def test_keys_must_be_of_one_kind(tmp_path: Path) -> None:
    rows = random_rows(20, 3)
    numbers, texts = list(range(20)), [str(i) for i in range(20)]
    files = parquet(tmp_path / "n.parquet", rows, numbers), parquet(tmp_path / "t.parquet", rows, texts)
    with pytest.raises(DataError, match=r"n.parquet' are whole numbers, those of '.*t.parquet' text"):
        align_vectors(*files, tmp_path / "map")
    with pytest.raises(DataError, match=r"p.npy' has no keys and '.*n.parquet' has"):
        align_vectors(files[0], npy(tmp_path / "p.npy", rows), tmp_path / "map")
    assert align_vectors(*files, tmp_path / "map", id_column="").by == "rows"


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_the_command_fits_a_map_and_applies_it(suffix: str, tmp_path: Path) -> None:
    rows, turn = random_rows(100, 4), rotation(4)
    old = parquet(tmp_path / "old.parquet", rows, list(range(100)))
    new = parquet(tmp_path / "new.parquet", rows @ turn.T, list(range(100)))
    said = embank("align", old, new, "--out", tmp_path / "map")
    assert "as they are" in said
    assert "100 ids in both, by keys" in said
    out = tmp_path / f"mapped.{suffix}"
    assert "100 vectors" in embank("align", tmp_path / "map", "--apply", new, "--out", out)
    if suffix == "npy":
        mapped = np.load(out)
    else:
        frame = pl.read_parquet(out)
        mapped, keys = frame["vector"].to_numpy(), frame["key"].to_list()
        assert keys == list(range(100))
    np.testing.assert_allclose(mapped, rows.numpy(), atol=1e-5)
    with pytest.raises(CheckpointError, match="exists already"):
        apply_alignment(tmp_path / "map", new, out)
    with pytest.raises(ConfigError, match=r"give OLD NEW --out MAP, or MAP --apply VECTORS"):
        embank("align", old, "--out", tmp_path / "x")


def test_what_is_no_map_or_of_another_width_is_refused(tmp_path: Path) -> None:
    rows = random_rows(50, 4)
    files = npy(tmp_path / "old.npy", rows), npy(tmp_path / "new.npy", rows)
    align_vectors(*files, tmp_path / "map")
    with pytest.raises(ConfigError, match="has vectors of 3 numbers, and the map .* takes 4"):
        apply_alignment(tmp_path / "map", npy(tmp_path / "three.npy", rows[:, :3]), tmp_path / "out.npy")
    with pytest.raises(ConfigError, match=r"can't be written to '.*out.csv'; give one of \.npy, \.parquet"):
        apply_alignment(tmp_path / "map", files[0], tmp_path / "out.csv")
    with pytest.raises(CheckpointError, match="holds no map"):
        load_alignment(tmp_path)
    with pytest.raises(ConfigError, match="no map 'orthogonl'; did you mean 'orthogonal'"):
        align_vectors(*files, tmp_path / "m", kind="orthogonl")
    content = bytearray((tmp_path / "map/map.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "map/map.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="has been altered"):
        load_alignment(tmp_path / "map")


def test_rows_of_two_runs_are_matched_by_token(tmp_path: Path) -> None:
    """Ids are ranks, which another day's log ranks otherwise."""
    for day, first in (("monday", 0), ("tuesday", 5)):
        users = [f"u{first + i * i % 23}" for i in range(400)]
        frame = pl.DataFrame(
            {"user": users, "item": [f"i{i % 7}" for i in range(400)], "click": [i % 2 for i in range(400)]}
        )
        frame.write_csv(tmp_path / f"{day}.csv")
        columns = {
            "label": "click",
            "categorical": ["user", "item"],
            "split": {"by": "ratio", "ratios": [0.8, 0.1, 0.1]},
        }
        prepare(columns, tmp_path / f"{day}.csv", tmp_path / f"data/{day}", format="csv")
        train(tmp_path / f"data/{day}", tmp_path / day, tables={"dim": 4}, train={"epochs": 1})
    old, new = (TableVectors(tmp_path / day / "bundle", table="user").keys() for day in ("monday", "tuesday"))
    pairs = matched(*(TableVectors(tmp_path / day / "bundle", table="user") for day in ("monday", "tuesday")))
    assert pairs.by == "keys"
    both = set(old.drop_nulls()) & set(new.drop_nulls())
    assert {old[int(row)] for row in pairs.old_N} == both
    assert [old[int(row)] for row in pairs.old_N] == [new[int(row)] for row in pairs.new_N]
    assert pairs.only_old == old.drop_nulls().n_unique() - len(both)
    assert not torch.equal(pairs.old_N, pairs.new_N)
    align_vectors(tmp_path / "tuesday", tmp_path / "tuesday", tmp_path / "map", table="user")
    count = apply_alignment(tmp_path / "map", tmp_path / "tuesday", tmp_path / "mapped.parquet", table="user")
    assert count == new.drop_nulls().len() == new.len() - 1, "the unknown value has no key"
    mapped = pl.read_parquet(tmp_path / "mapped.parquet")
    assert mapped["key"].to_list() == new.drop_nulls().to_list()
    rows = torch.cat(list(TableVectors(tmp_path / "tuesday/bundle", table="user").chunks()))
    expected = load_alignment(tmp_path / "map").apply(rows[torch.from_numpy(new.is_not_null().to_numpy())])
    assert np.array_equal(mapped["vector"].to_numpy(), expected)
    compress_vectors(tmp_path / "mapped.parquet", tmp_path / "small", codec="int8")
