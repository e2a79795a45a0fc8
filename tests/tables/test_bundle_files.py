"""Bundles as files: what is no whole bundle is refused, and nothing is written over, half, or under other names."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.tables.served  # noqa: F401 - registers methods
from embank.tables import (
    Bundle,
    CheckpointError,
    ConfigError,
    TableCollection,
    TableSpec,
    WorkError,
    load_bundle,
    pack_collection,
    save_bundle,
)
from embank.tables.serving.bundle import MANIFEST, NETWORK, TABLES
from embank.tables.serving.saving import copy_bundle, write_packed
from embank.tables.storage.checksums import CHECKSUMS, file_digest
from tests import processes
from tests.tables.batches import random_kjt
from tests.tables.bundles import flip, outputs, plain, rewrite


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "bundle", plain(), facts={"answer": [42]})
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / TABLES).unlink(), r"bundle '.*' lacks 'tables.safetensors'. Copy the bundle again or export"),
        (lambda b: os.truncate(b / TABLES, 300), r"tables.safetensors' has 300 bytes where 1,\d+ were written"),
        (lambda b: os.truncate(b / TABLES, 0), "tables.safetensors' has 0 bytes"),
        (lambda b: flip(b / TABLES), "tables.safetensors' has been altered: its SHA-256 differs"),
        (lambda b: flip(b / MANIFEST), "manifest.json' (has been altered|can't be read)"),
        (lambda b: os.truncate(b / MANIFEST, 100), "manifest.json' can't be read: .* Copy the bundle again"),
        (lambda b: (b / CHECKSUMS).unlink(), r"is not a complete bundle: it has no checksums.json. Copy the bundle "
        r"again"),
        (lambda b: (b / CHECKSUMS).write_text("[]"), "checksums.json' does not hold a JSON object"),
        (lambda b: (b / CHECKSUMS).write_text('{"a": 1}'), r"checksums.json' is damaged: its entry 'a' is 1"),
        (lambda b: (b / CHECKSUMS).write_text("{}"), r"lacks 'manifest.json' in its checksums"),
        (lambda b: (b / MANIFEST).unlink(), "holds no bundle: it has no manifest.json. Give a folder that embank "
        "export"),
        (lambda b: shutil.rmtree(b), "holds no bundle"),
        (lambda b: rewrite(b, tables=[{"name": "C3"}]), "manifest.json' is damaged"),
        (lambda b: rewrite(b, keys=["b"]), r"has the keys \['b'\], its tables give \['a'\]"),
        (lambda b: rewrite(b, format=None), r"is not a bundle's: its format is None, not 'embank bundle'"),
        (lambda b: rewrite(b, format_version=3, embank_version="9.9"), r"has format version 3; embank \S+ reads "
        r"versions 1 and 2. .*\(9.9\)"),
        (lambda b: rewrite(b, hash_version=2, embank_version="9.9"), r"hash version 2; embank \S+ has version 1, .* "
        r"wrote it \(9.9\)"),
        (lambda b: retable(b, method="teleport"), r"table 'C3' of bundle '.*' can't be loaded: there is no method "
        r"'teleport'; .* Install"),
        (lambda b: reserve(b, spine="Ful"), "table 'C3' of bundle '.*': it is served by a Ful, which method 'full' no "
        "longer has"),
        (lambda b: reserve(b, matrices=[{"codec": "fp33", "facts": {}}]), "there is no codec 'fp33'; did you "
        "mean"),
        (lambda b: reserve(b, facts={"bits": 4}), r"a saved Full has the facts \['bits'\]; this embank expects "
        r"\[\]"),
        (lambda b: retable(b, tensors={"matrices.0.rows": {"key": "C3.row", "shape": [50, 6]}}), "tables.safetensors' "
        "can't be read: .*C3.row"),
    ],
    ids=range(22),
)  # fmt: skip
def test_what_is_no_whole_bundle_is_refused(bundle: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(bundle)
    with pytest.raises(CheckpointError, match=message):
        load_bundle(bundle)


def reserve(bundle: Path, **changes: Any) -> None:
    (table,) = json.loads((bundle / MANIFEST).read_text())["tables"]
    retable(bundle, served={**table["served"], **changes})


def retable(bundle: Path, **changes: Any) -> None:
    (table,) = json.loads((bundle / MANIFEST).read_text())["tables"]
    rewrite(bundle, tables=[{**table, **changes}])


def test_without_reading_everything(bundle: Path) -> None:
    """`verify=False` leaves the digest out, not the sizes."""
    content = bytearray((bundle / TABLES).read_bytes())
    content[-1] ^= 0x80  # sign of the last number
    (bundle / TABLES).write_bytes(content)
    kjt = random_kjt({"a": 50}, batch_size=1, seed=0, single=True)
    kjt.values()[0] = 49
    expected = outputs(plain(), kjt)
    assert torch.equal(load_bundle(bundle, verify=False)(kjt).values().abs(), expected.abs())
    assert torch.equal(load_bundle(bundle, verify="small")(kjt).values().abs(), expected.abs())
    with pytest.raises(CheckpointError, match="altered"):
        load_bundle(bundle)
    text = (bundle / MANIFEST).read_text()
    (bundle / MANIFEST).write_text(text.replace("42", "43"))
    assert Bundle(bundle, verify=False).facts == {"answer": [43]}
    with pytest.raises(CheckpointError, match=f"{MANIFEST}' has been altered"):
        Bundle(bundle, verify="small")
    (bundle / MANIFEST).write_text(text)
    os.truncate(bundle / TABLES, 300)
    for verify in (False, "small"):
        with pytest.raises(CheckpointError, match="truncated"):
            load_bundle(bundle, verify=verify)


def test_checksum_pins_every_file(bundle: Path, tmp_path: Path) -> None:
    first = Bundle(bundle)
    assert first.checksum == hashlib.sha256((bundle / CHECKSUMS).read_bytes()).hexdigest()
    assert first.version == first.checksum[:12]
    save_bundle(tmp_path / "same", plain(), facts={"answer": [42]})
    save_bundle(tmp_path / "other", plain(seed=1), facts={"answer": [42]})
    assert Bundle(tmp_path / "same").checksum == first.checksum
    assert Bundle(tmp_path / "other").checksum != first.checksum


def test_other_users_may_read_it(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        save_bundle(tmp_path / "b", plain(), network={"w": torch.ones(1)})
    finally:
        os.umask(old)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "b").iterdir()} == {0o644}


def test_files_beside_it_are_left_alone(bundle: Path) -> None:
    (bundle / ".DS_Store").touch()
    assert load_bundle(bundle).keys == ["a"]


def test_a_run_is_not_its_bundle(tmp_path: Path) -> None:
    save_bundle(tmp_path / "run" / "bundle", plain())
    with pytest.raises(CheckpointError, match=r"run' holds no bundle: .*; the run's bundle is '.*run/bundle'"):
        load_bundle(tmp_path / "run")


def test_nothing_is_written_over(bundle: Path) -> None:
    before = file_digest(bundle / TABLES)
    with pytest.raises(CheckpointError, match="exists already, and a bundle is never written over anything"):
        save_bundle(bundle, plain(seed=1))
    with pytest.raises(CheckpointError, match="exists already"):
        copy_bundle(Bundle(bundle), bundle)
    assert file_digest(bundle / TABLES) == before


def test_a_copy_has_the_files_of_the_bundle_alone_and_lies_elsewhere(tmp_path: Path) -> None:
    """Modes are not copied: of a folder that is only read a copy can be written all the same."""
    files = {"more/deep/note.txt": lambda path: path.write_text("note")}
    save_bundle(tmp_path / "b", plain(), files=files)
    source = Bundle(tmp_path / "b")
    assert "more/deep/note.txt" in source.files
    with pytest.raises(ConfigError, match="inside' lies inside of '.*b', which is only read; choose another folder"):
        copy_bundle(source, tmp_path / "b/inside")
    (tmp_path / "b/mine.txt").write_text("mine")
    (tmp_path / "b" / TABLES).chmod(0o400)
    copy_bundle(source, tmp_path / "copy")
    assert not (tmp_path / "copy/mine.txt").exists()
    assert (tmp_path / "copy" / TABLES).stat().st_mode & 0o200
    assert Bundle(tmp_path / "copy").checksum == source.checksum
    copy_bundle(source, tmp_path / "less", leave_out=["more"])
    assert set(Bundle(tmp_path / "less").files) == set(source.files) - {"more/deep/note.txt"}


@pytest.mark.parametrize("changes", [{}, {"leave_out": ["more"]}, {"files": {"b/c.txt": lambda p: p.write_text("c")}}])
def test_a_copy_of_a_damaged_bundle_is_damaged(changes: dict[str, Any], tmp_path: Path) -> None:
    """Checksums are those of what was written first, not of what a disk has made of it."""
    save_bundle(tmp_path / "b", plain(), files={"more/note.txt": lambda path: path.write_text("note")})
    flip(tmp_path / "b" / TABLES)
    copy_bundle(Bundle(tmp_path / "b", verify="small"), tmp_path / "c", **changes)
    with pytest.raises(CheckpointError, match=f"c/{TABLES}' has been altered"):
        Bundle(tmp_path / "c")


def test_of_a_copy_only_what_is_written_anew_has_new_checksums(tmp_path: Path) -> None:
    files = {"note.txt": lambda path: path.write_text("note"), "x/y.txt": lambda path: path.write_text("y")}
    save_bundle(tmp_path / "b", plain(), files=files)
    (tmp_path / "b" / CHECKSUMS).write_text(json.dumps(json.loads((tmp_path / "b" / CHECKSUMS).read_text())))
    source = Bundle(tmp_path / "b")
    copy_bundle(source, tmp_path / "same")
    assert Bundle(tmp_path / "same").version == source.version, "of another layout of the listing, too"
    new = {"note.txt": lambda path: path.write_text("other"), "x/z.txt": lambda path: path.write_text("z")}
    copy_bundle(source, tmp_path / "other", files=new)
    other = Bundle(tmp_path / "other")
    assert set(other.files) == {*source.files, "x/z.txt"}
    assert {name for name in source.files if other.listing[name] != source.listing[name]} == {"note.txt"}
    assert other.version != source.version


@pytest.mark.parametrize("name", [MANIFEST, TABLES, NETWORK, CHECKSUMS, f"{TABLES}/more.txt"])
def test_names_of_the_bundles_own_files_are_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    files = {"note.txt": lambda path: path.touch(), name: lambda path: path.write_bytes(b"{}")}
    told = rf"files has the name '{name}', and '{name.split('/')[0]}' is a file of the bundle itself .*; choose another"
    with pytest.raises(ConfigError, match=told):
        save_bundle(tmp_path / "new", plain(), files=files)
    with pytest.raises(ConfigError, match=told):
        copy_bundle(Bundle(bundle), tmp_path / "new", files=files)
    with pytest.raises(ConfigError, match=told):
        write_packed(tmp_path / "new", pack_collection(plain()), files=files)
    with pytest.raises(ConfigError, match="files has the name '../evil.txt', which is no file inside of the bundle"):
        copy_bundle(Bundle(bundle), tmp_path / "new", files={"../evil.txt": lambda path: path.touch()})
    assert not (tmp_path / "new").exists()


def test_what_can_not_be_saved(tmp_path: Path) -> None:
    for name in ("../evil.txt", "/evil.txt", "a/../../evil.txt"):
        with pytest.raises(ConfigError, match=f"files has the name '{name}', which is no file inside of the bundle"):
            save_bundle(tmp_path / "b", plain(), files={name: lambda path: path.touch()})
    with pytest.raises(ConfigError, match=r"can't be saved as JSON: .*Path.*; give plain values"):
        save_bundle(tmp_path / "b", plain(), facts={"path": tmp_path})
    broken = plain()
    broken.weights()["C3"][3, 1] = torch.nan
    with pytest.raises(WorkError, match="rows of table 'C3' are not finite, so nothing was saved"):
        save_bundle(tmp_path / "b", broken)
    table = TableSpec(name="p", num_embeddings=400, embedding_dim=4, feature_names=["a"], method="test_elsewhere")
    with pytest.raises(
        ConfigError,
        match=r"table 'p': method 'test_elsewhere': its spine \S+optembed.Kept is not named in the module",
    ):
        save_bundle(tmp_path / "b", TableCollection([table]))
    assert not list(tmp_path.iterdir())


FULL_DISK = """
    import resource, signal
    from embank.tables import TableCollection, TableSpec, WorkError, save_bundle
    tables = TableCollection([TableSpec(name="t", num_embeddings=10_000, embedding_dim=8, feature_names=["a"])])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # files can't grow beyond 30 kB: a full disk, without one
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    try:
        save_bundle("out/bundle", tables)
    except WorkError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    done = processes.run_code(FULL_DISK, cwd=tmp_path)
    assert "can't be written" in done.stdout, done.stderr
    assert "File too large" in done.stdout
    assert "make room or choose another folder" in done.stdout
    assert not (tmp_path / "out").exists()


def test_an_earlier_stage_is_not_served(tmp_path: Path) -> None:
    table = TableSpec(name="t", num_embeddings=5, embedding_dim=4, feature_names=["a"], method="test_two_stages")
    with pytest.raises(
        ConfigError, match=r"table 't' \(method 'test_two_stages'\) is in stage 'search', 1 of 2; only the last"
    ):
        save_bundle(tmp_path / "b", TableCollection([table]))
