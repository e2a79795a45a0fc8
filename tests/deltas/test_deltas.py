"""Deltas: a bundle and what leads on from it give the next bundle to the bit, or are refused."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import tests.tables.served  # noqa: F401 - registers methods
from embank.pipelines import apply_delta, make_delta
from embank.tables import Bundle, CheckpointError, ConfigError, TableCollection, TableSpec, save_bundle
from embank.tables.collections.stages import finished, settle
from embank.tables.serving.bundle import MANIFEST, TABLES
from embank.tables.serving.deltas import rows as delta_rows
from embank.tables.serving.deltas.recipe import ROWS
from embank.tables.serving.deltas.sources import FileSource
from embank.tables.storage.checksums import CHECKSUMS, file_digest, write_checksums
from embank.tables.storage.tensor_layout import header_bytes, make_header
from tests.contracts.forms import FORMS
from tests.deltas.bundles import DIM, chain, files, moved, network, tables


@pytest.fixture
def bundles(tmp_path: Path) -> list[Path]:
    return chain(tmp_path, 3)


@pytest.fixture
def deltas(bundles: list[Path], tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"d{number}" for number in range(3)]
    for number, out in enumerate(made):
        make_delta(bundles[number], bundles[number + 1], out)
    return made


@pytest.mark.parametrize("form", FORMS)
def test_every_form_to_the_bit(form: str, tmp_path: Path) -> None:
    collection = finished(TableCollection([FORMS[form].spec("t")]))
    save_bundle(tmp_path / "old", collection)
    moved(collection, [1])
    save_bundle(tmp_path / "new", collection)
    report = make_delta(tmp_path / "old", tmp_path / "new", tmp_path / "delta")
    apply_delta(tmp_path / "old", tmp_path / "delta", tmp_path / "result")
    assert files(tmp_path / "result") == files(tmp_path / "new")
    assert report.tables[0].nbytes > 0
    assert report.nbytes == sum(len(content) for content in files(tmp_path / "delta").values())
    assert report.bundle_nbytes == sum(len(content) for content in files(tmp_path / "new").values())


def test_only_rows_that_changed_are_taken(bundles: list[Path], tmp_path: Path) -> None:
    report = make_delta(bundles[0], bundles[1], tmp_path / "d")
    for change in report.tables:
        assert (change.num_rows, change.num_changed, change.num_appended) == (1000, 3, 0)
        assert change.nbytes == 3 * (4 + 4 * DIM)
    with safe_open(tmp_path / "d" / ROWS, "pt") as stored:
        assert stored.get_tensor(f"numbers:{TABLES}:a.matrices.0.rows").tolist() == [0, 10, 900]
        found = stored.get_tensor(f"rows:{TABLES}:a.matrices.0.rows")
        assert "whole:network.safetensors:steps" not in stored.keys()  # noqa: SIM118 - not a mapping
        assert torch.equal(stored.get_tensor("whole:network.safetensors:weight"), network(1)["weight"])
    new = dict(Bundle(bundles[1]).tables().packed_tables().__next__()[1].named_buffers())["matrices.0.rows"]
    assert torch.equal(found, new[[0, 10, 900]])


@pytest.mark.parametrize(("before", "after"), [(1000, 1013), (1013, 1000), (1000, 1000)])
@pytest.mark.parametrize("block", [64, 2**20])
def test_tables_that_grow_and_shrink(
    before: int, after: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_rows, "BLOCK_NBYTES", block)
    old, new = tables(before), tables(after)
    shared = min(before, after)
    with new.writing():
        for name, weight in new.weights().items():
            weight[:shared] = old.weights()[name][:shared]
    moved(new, [0, 1, 2, 63, 64, 998, 999])
    save_bundle(tmp_path / "old", old)
    save_bundle(tmp_path / "new", new)
    report = make_delta(tmp_path / "old", tmp_path / "new", tmp_path / "d")
    assert [(c.num_changed, c.num_appended) for c in report.tables] == [(7, max(0, after - before))] * 2
    apply_delta(tmp_path / "old", tmp_path / "d", tmp_path / "result")
    assert files(tmp_path / "result") == files(tmp_path / "new")


def test_what_has_another_shape_is_taken_whole(tmp_path: Path) -> None:
    def collection(dim: int) -> TableCollection:
        return TableCollection([TableSpec(name="a", num_embeddings=50, embedding_dim=dim, feature_names=["a"])])

    save_bundle(tmp_path / "old", collection(4))
    save_bundle(tmp_path / "new", collection(6), network=network())
    report = make_delta(tmp_path / "old", tmp_path / "new", tmp_path / "d")
    assert (report.tables[0].num_changed, report.tables[0].nbytes) == (50, 50 * 6 * 4)
    apply_delta(tmp_path / "old", [tmp_path / "d"], tmp_path / "result")
    assert files(tmp_path / "result") == files(tmp_path / "new")


def test_rows_that_tables_share_are_taken_once(tmp_path: Path) -> None:
    collection = tables(400, method="test_one_array", names=("x", "y", "z"))
    save_bundle(tmp_path / "old", collection)
    save_bundle(tmp_path / "new", moved(collection, [3]))
    make_delta(tmp_path / "old", tmp_path / "new", tmp_path / "d")
    with safe_open(tmp_path / "d" / ROWS, "pt") as stored:
        assert len(stored.keys()) == 2
    apply_delta(tmp_path / "old", tmp_path / "d", tmp_path / "result")
    assert files(tmp_path / "result") == files(tmp_path / "new")


class TestTolerance:
    def pair(self, folder: Path, *, method: str = "full") -> None:
        collection = tables(100, names=("a",), method=method)
        save_bundle(folder / "old", collection, network=network())
        moved(collection, [1], by=0.5)
        moved(collection, [2], by=0.001)
        with collection.writing():
            collection.weights()["a"][3, 5] += 0.5  # one number of a row is enough
        settle(collection)
        save_bundle(folder / "new", collection, network=network(1e-6))

    def test_rows_within_it_keep_their_old_numbers(self, tmp_path: Path) -> None:
        self.pair(tmp_path)
        report = make_delta(tmp_path / "old", tmp_path / "new", tmp_path / "d", tolerance=0.01)
        assert report.tables[0].num_changed == 2
        apply_delta(tmp_path / "old", tmp_path / "d", tmp_path / "result")
        old, new, result = (next(Bundle(tmp_path / name).tables().buffers()) for name in ("old", "new", "result"))
        for row in range(100):
            assert torch.equal(result[row], (new if row in (1, 3) else old)[row])
        assert not torch.equal(old[2], new[2])
        assert torch.equal(Bundle(tmp_path / "result").network()["weight"], network(1e-6)["weight"])
        assert report.end == Bundle(tmp_path / "result").version != Bundle(tmp_path / "new").version

    def test_codes_are_taken_to_the_bit(self, tmp_path: Path) -> None:
        """A scale that stays and codes that do not would be other rows altogether."""
        self.pair(tmp_path, method="low_precision")
        make_delta(tmp_path / "old", tmp_path / "new", tmp_path / "d", tolerance=1e9)
        apply_delta(tmp_path / "old", tmp_path / "d", tmp_path / "result")
        assert files(tmp_path / "result") == files(tmp_path / "new")

    def test_nothing_left(self, tmp_path: Path) -> None:
        collection = tables(100)
        save_bundle(tmp_path / "old", collection)
        save_bundle(tmp_path / "new", moved(collection, [1], by=0.001))
        with pytest.raises(ConfigError, match=r"no row of '.*new' has moved by more than 0.01; nothing to send"):
            make_delta(tmp_path / "old", tmp_path / "new", tmp_path / "d", tolerance=0.01)
        assert not (tmp_path / "d").exists()
        assert len(list(tmp_path.iterdir())) == 2

    @pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
    def test_wrong(self, tolerance: float, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"tolerance is (-1.0|nan|inf); give a number from 0 on"):
            make_delta(tmp_path, tmp_path, tmp_path / "d", tolerance=tolerance)

    @pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
    def test_numbers_of_every_kind(self, dtype: str) -> None:
        kind = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
        old = torch.tensor([[1.0, 1], [1, 1], [1, 1], [1, 1]], dtype=kind)
        new = torch.tensor([[1.0, 1], [1, 1.0625], [1.125, 1], [1, float("nan")]], dtype=kind)
        beyond = delta_rows.moved_beyond(0.0625, dtype)
        assert beyond is not None
        assert beyond(*(t.view(torch.uint8).numpy() for t in (old, new))).tolist() == [False, False, True, True]
        assert delta_rows.moved_beyond(0.0625, "I8") is None


class TestOrder:
    @pytest.mark.parametrize("block", [64, 2**23])
    def test_several_at_once(
        self, block: int, bundles: list[Path], deltas: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(delta_rows, "BLOCK_NBYTES", block)
        report = apply_delta(bundles[0], deltas, tmp_path / "result")
        assert files(tmp_path / "result") == files(bundles[3])
        assert (report.start, report.end) == (Bundle(bundles[0]).version, Bundle(bundles[3]).version)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            ["result", *(path.name for path in (*bundles, *deltas))]
        )

    def test_several_that_grow_and_shrink(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows that one appends are changed by the next, and gone after the one that follows."""
        monkeypatch.setattr(delta_rows, "BLOCK_NBYTES", 200)
        made, last = [], tables(40)
        for number, size in enumerate((40, 55, 55, 33, 47)):
            current, shared = tables(size, seed=number), min(size, last.specs[0].num_embeddings)
            with current.writing():
                for name, weight in current.weights().items():
                    weight[:shared] = last.weights()[name][:shared]
            made.append(tmp_path / f"v{number}")
            save_bundle(made[-1], moved(current, [number, 50, 30 + number]))
            last = current
        for number, (old, new) in enumerate(zip(made, made[1:], strict=False)):
            make_delta(old, new, tmp_path / f"d{number}")
        apply_delta(made[0], [tmp_path / f"d{number}" for number in range(4)], tmp_path / "result")
        assert files(tmp_path / "result") == files(made[-1])

    def test_one_by_one(self, bundles: list[Path], deltas: list[Path], tmp_path: Path) -> None:
        at = bundles[0]
        for number, delta in enumerate(deltas):
            apply_delta(at, delta, tmp_path / f"result{number}")
            at = tmp_path / f"result{number}"
        assert files(at) == files(bundles[3])

    @pytest.mark.parametrize(
        ("start", "order", "message"),
        [
            (0, [1], r"d1' leads from version {1} to {2}, and bundle '.*v0' is version {0}: what leads from {0} to {1} "
                     r"is missing before it; give that first"),
            (0, [0, 2], r"d2' leads from version {2} to {3}, and delta '.*d0' leads to version {1}: what leads from "
                        r"{1} to {2} is missing before it"),
            (1, [0], r"the bundle already has it; there is nothing left to apply"),
            (2, [0, 1, 2], r"the bundle already has it and all up to '.*d1'; give only what follows, from '.*d2' on"),
            (0, [0, 0, 1], r"and delta '.*d0' leads to version {1}: it is given twice; leave the second one out"),
            (0, [1, 0, 2], r"the order is wrong, '.*d0' comes before it; give deltas in the order they were made"),
        ],
    )  # fmt: skip
    def test_gaps(
        self, start: int, order: list[int], message: str, bundles: list[Path], deltas: list[Path], tmp_path: Path
    ) -> None:
        versions = [Bundle(path).version for path in bundles]
        with pytest.raises(CheckpointError, match=message.format(*versions)):
            apply_delta(bundles[start], [deltas[number] for number in order], tmp_path / "result")
        assert not (tmp_path / "result").exists()

    def test_none(self, bundles: list[Path], tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="there is no delta to apply"):
            apply_delta(bundles[0], [], tmp_path / "result")


class TestRefused:
    def test_the_same_bundle(self, bundles: list[Path], tmp_path: Path) -> None:
        shutil.copytree(bundles[0], tmp_path / "copy")
        with pytest.raises(ConfigError, match="are the same version [0-9a-f]{12}; nothing to send"):
            make_delta(bundles[0], tmp_path / "copy", tmp_path / "d")

    def test_other_models(self, bundles: list[Path], deltas: list[Path], tmp_path: Path) -> None:
        save_bundle(tmp_path / "other", tables(names=("a", "c")))
        with pytest.raises(ConfigError, match="of different models: their tables give a, b, and a, c. Send the new"):
            make_delta(bundles[0], tmp_path / "other", tmp_path / "d")
        with pytest.raises(CheckpointError, match=r"d0' is of another model: its tables give a, b, those of '.*other'"):
            apply_delta(tmp_path / "other", deltas[0], tmp_path / "result")

    def test_a_damaged_delta(self, bundles: list[Path], deltas: list[Path], tmp_path: Path) -> None:
        content = bytearray((deltas[0] / ROWS).read_bytes())
        content[-1] ^= 1
        (deltas[0] / ROWS).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{ROWS}' has been altered.* Copy the delta again or make it again"):
            apply_delta(bundles[0], deltas[0], tmp_path / "result")

    def test_a_delta_that_gives_something_else(self, bundles: list[Path], deltas: list[Path], tmp_path: Path) -> None:
        """Its own checksums are right, those of the bundle that it leads to are not kept."""
        content = bytearray((deltas[0] / ROWS).read_bytes())
        content[-1] ^= 1
        (deltas[0] / ROWS).write_bytes(content)
        (deltas[0] / CHECKSUMS).unlink()
        write_checksums(deltas[0])
        with pytest.raises(CheckpointError, match=r"is whole: the delta, or one before it, is damaged. Make it again"):
            apply_delta(bundles[0], deltas[0], tmp_path / "result")
        assert not (tmp_path / "result").exists()

    def test_a_damaged_bundle(self, bundles: list[Path], deltas: list[Path], tmp_path: Path) -> None:
        content = bytearray((bundles[0] / TABLES).read_bytes())
        content[-1] ^= 1  # of a row that no delta replaces
        (bundles[0] / TABLES).write_bytes(content)
        for work in (
            lambda: make_delta(bundles[0], bundles[1], tmp_path / "d"),
            lambda: apply_delta(bundles[0], deltas[0], tmp_path / "result"),
        ):
            with pytest.raises(CheckpointError, match=rf"v0/{TABLES}' has been altered"):
                work()
        assert not (tmp_path / "result").exists()

    def test_other_folders(self, bundles: list[Path], deltas: list[Path], tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"nowhere' holds no delta: it has no manifest.json. Give a folder"):
            apply_delta(bundles[0], tmp_path / "nowhere", tmp_path / "result")
        with pytest.raises(CheckpointError, match=r"is not a delta's: its format is 'embank bundle', not 'embank delt"):
            apply_delta(bundles[0], bundles[1], tmp_path / "result")
        with pytest.raises(CheckpointError, match=r"d1' exists already, and a bundle is never written over anything"):
            apply_delta(bundles[0], deltas[0], deltas[1])
        with pytest.raises(ConfigError, match=r"lies inside of '.*v0', which is only read; choose another folder"):
            apply_delta(bundles[0], deltas[0], bundles[0] / "result")

    def test_other_versions(self, bundles: list[Path], deltas: list[Path], tmp_path: Path) -> None:
        manifest = json.loads((deltas[0] / MANIFEST).read_text())
        (deltas[0] / MANIFEST).write_text(json.dumps({**manifest, "format_version": 2}))
        with pytest.raises(CheckpointError, match=r"has format version 2; embank .* reads version 1. Apply it with"):
            apply_delta(bundles[0], deltas[0], tmp_path / "result")

    def test_a_folder_that_takes_no_files(
        self, bundles: list[Path], deltas: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "mkdir", refuse)
        for work in (
            lambda: apply_delta(bundles[0], deltas[0], tmp_path / "result"),
            lambda: make_delta(bundles[0], bundles[2], tmp_path / "result"),
        ):
            with pytest.raises(ConfigError, match="can't be written: Read-only file system. Nothing was left behind"):
                work()


def test_row_numbers_of_eight_bytes(tmp_path: Path) -> None:
    """Those of more than 2**32 rows; ascending, and of rows that there are, or the delta is damaged."""
    header = make_header([("base", "F32", (4, 2)), ("numbers", "U64", (2,)), ("rows", "F32", (2, 2))])
    base, rows = torch.arange(8.0).view(4, 2), torch.full((2, 2), -1.0)
    for numbers, fits in (([1, 3], True), ([3, 1], False), ([1, 1], False), ([1, 4], False), ([1, 2**63], False)):
        with (tmp_path / "f").open("wb") as file:
            file.write(header_bytes(header))
            for content in (base.numpy(), np.array(numbers, np.uint64), rows.numpy()):
                file.write(content.tobytes())
        stored = FileSource(tmp_path / "f").tensors
        patched = delta_rows.PatchedRows(
            stored["base"], stored["base"].place, stored["numbers"], stored["rows"], origin="d"
        )
        if fits:
            found = np.concatenate(list(patched.blocks())).view(np.float32)
            assert found.tolist() == [[0, 1], [-1, -1], [4, 5], [-1, -1]]
        else:
            with pytest.raises(CheckpointError, match="delta 'd' is damaged: its rows don't fit. Copy the delta again"):
                list(patched.blocks())


def test_bundles_of_version_1(tmp_path: Path) -> None:
    """They are files like any other: deltas lead from them and to them."""
    home = Path(__file__).parents[1] / "data" / "bundles_v1"
    for number, name in enumerate(sorted(path.name for path in home.iterdir() if path.is_dir())):
        old, new = tmp_path / f"old{number}", tmp_path / f"new{number}"
        shutil.copytree(home / name, old)
        shutil.copytree(home / name, new)
        content = bytearray((new / TABLES).read_bytes())
        content[-2] ^= 1
        (new / TABLES).write_bytes(content)
        checksums = json.loads((new / CHECKSUMS).read_text())
        (new / CHECKSUMS).write_text(json.dumps({**checksums, TABLES: file_digest(new / TABLES)}))
        report = make_delta(old, new, tmp_path / f"d{number}")
        assert report.nbytes < report.bundle_nbytes
        apply_delta(old, tmp_path / f"d{number}", tmp_path / f"result{number}")
        assert files(tmp_path / f"result{number}") == files(new)
