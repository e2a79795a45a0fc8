"""Bundles: what is saved is what is served, in any process; and what is no whole bundle is refused."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.models.dlrm import DLRM

import tests.tables.served  # noqa: F401 - registers methods
from embank.compression import METHODS
from embank.tables import (
    Bundle,
    CheckpointError,
    ConfigError,
    DataError,
    IdRangeError,
    RowTier,
    TableCollection,
    TableSpec,
    WorkError,
    load_bundle,
    method_class,
    pack_collection,
    save_bundle,
)
from embank.tables.collections.stages import finished
from embank.tables.serving.bundle import MANIFEST, NETWORK, TABLES
from embank.tables.serving.saving import copy_bundle, write_packed
from embank.tables.storage.checksums import CHECKSUMS, file_digest
from tests import processes
from tests.contracts.test_methods import NUM, spec, train
from tests.products import LAST_BITS
from tests.tables.batches import random_kjt

NAMES = sorted(name for name in METHODS if not name.startswith("test_"))
MANIFEST_NBYTES = 4096
"""Most that a manifest, a file's header and checksums of one table take."""


def trained(
    method: str, *, features: tuple[str, ...] = ("a",), pooling: str = "sum", **options: Any
) -> TableCollection:
    tables = finished(TableCollection([spec(method, features=features, pooling=pooling)], **options))
    if features == ("a",):
        train(tables, steps=3)
    return tables


def outputs(tables: TableCollection, kjt: Any) -> torch.Tensor:
    with torch.no_grad():
        return tables.eval()(kjt).values()


@pytest.mark.parametrize("method", NAMES)
class TestEveryMethod:
    @pytest.mark.parametrize("pooling", ["sum", "mean"])
    def test_loaded_equals_settled(self, method: str, pooling: str, tmp_path: Path) -> None:
        """Bags, empty ones among them, of the settled collection; to the bit those of the packed form before it was
        saved."""
        tables = trained(method, pooling=pooling)
        save_bundle(tmp_path / "b", tables)
        loaded = load_bundle(tmp_path / "b")
        kjt = random_kjt({"a": NUM}, batch_size=50, seed=3)
        assert (kjt.lengths() == 0).any()
        expected = outputs(tables, kjt)
        slack = method_class(method).traits.tolerance * float(expected.abs().max()) * int(kjt.lengths().max())
        torch.testing.assert_close(loaded(kjt).values(), expected, rtol=1e-5, atol=1e-6 + slack)
        assert torch.equal(loaded(kjt).values(), pack_collection(tables)(kjt).values())
        assert not loaded(kjt).values()[kjt.lengths() == 0].any()

    def test_bytes(self, method: str, tmp_path: Path) -> None:
        tables = trained(method)
        save_bundle(tmp_path / "b", tables)
        serving = tables.nbytes("serving")
        assert load_bundle(tmp_path / "b").nbytes() == serving
        on_disk = sum(file.stat().st_size for file in (tmp_path / "b").iterdir())
        assert Bundle(tmp_path / "b").nbytes == on_disk
        assert serving <= on_disk <= serving + MANIFEST_NBYTES

    def test_saving_twice_gives_the_same_files(self, method: str, tmp_path: Path) -> None:
        tables = trained(method)
        save_bundle(tmp_path / "a", tables)
        save_bundle(tmp_path / "b", tables)
        for file in (tmp_path / "a").iterdir():
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()

    def test_several_features_and_keys(self, method: str, tmp_path: Path) -> None:
        tables = finished(
            TableCollection([spec(method, features=("a", "b")), spec(method, name="u", features=("b", "c"))])
        )
        save_bundle(tmp_path / "b", tables)
        kjt = random_kjt({"c": NUM, "a": NUM, "unused": 5, "b": NUM}, batch_size=9, seed=5)
        with torch.no_grad():
            ours, loaded = tables.eval()(kjt), load_bundle(tmp_path / "b")(kjt)
        assert ours.keys() == loaded.keys() == ["a", "b@t", "b@u", "c"]
        assert ours.length_per_key() == loaded.length_per_key()
        slack = 4 * method_class(method).traits.tolerance * float(ours.values().abs().max())
        torch.testing.assert_close(loaded.values(), ours.values(), rtol=1e-5, atol=1e-6 + slack)

    def test_ids_out_of_range(self, method: str, tmp_path: Path) -> None:
        save_bundle(tmp_path / "b", trained(method))
        loaded = load_bundle(tmp_path / "b")
        kjt = random_kjt({"a": 5}, batch_size=3, seed=0, single=True)
        for wrong in (NUM, -1, 2**40):
            kjt.values()[1] = wrong
            with pytest.raises(IdRangeError, match=f"feature 'a' has id {wrong}, outside table 't' of {NUM:,} ids"):
                loaded(kjt)


def plain(num: int = 50, dim: int = 6, *, seed: int = 0) -> TableCollection:
    return TableCollection(
        [TableSpec(name="C3", num_embeddings=num, embedding_dim=dim, feature_names=["a"])], seed=seed
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "bundle", plain(), facts={"answer": [42]})
    return tmp_path / "bundle"


def rewrite(bundle: Path, **changes: Any) -> None:
    """Another manifest with the right checksum: what a writer of another version leaves."""
    manifest = {**json.loads((bundle / MANIFEST).read_text()), **changes}
    (bundle / MANIFEST).write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))
    checksums = json.loads((bundle / CHECKSUMS).read_text())
    (bundle / CHECKSUMS).write_text(json.dumps({**checksums, MANIFEST: file_digest(bundle / MANIFEST)}))


FRESH = """
    import sys
    sys.modules["optuna"] = None
    import torch
    from embank.tables import PlainCollection, load_bundle
    for method in sys.argv[1:]:  # plain tensors in, by every method, and nothing that only training needs is imported
        plain = PlainCollection(load_bundle(method + "/"), single=("a",))
        torch.save(plain({"a": torch.arange(1200)}, {}), method + "-plain.pt")
    heavy = ("torchrec", "fbgemm_gpu", "torch._dynamo", "sympy", "polars", "pyarrow", "pydantic",
             "embank.tables.collections.pooled", "embank.tables.storage.checkpoint")
    assert not [name for name in heavy if name in sys.modules]
    from torchrec import KeyedJaggedTensor
    kjt = KeyedJaggedTensor(keys=["a"], values=torch.arange(1200), lengths=torch.ones(1200, dtype=torch.int32))
    for method in sys.argv[1:]:
        torch.save(load_bundle(method + "/")(kjt).values(), method + ".pt")
    assert not [name for name in sys.modules if name.startswith(("embank.pipelines", "embank.ctr_models",
    "embank.search"))]
"""


@pytest.mark.slow
def test_in_a_fresh_process(tmp_path: Path) -> None:
    """Every method, without the packages that train: a bundle and the module of the method are enough."""
    kjt = random_kjt({"a": NUM}, batch_size=NUM, seed=0, single=True)
    kjt.values()[:] = torch.arange(NUM)
    expected = {}
    for method in NAMES:
        tables = trained(method)
        save_bundle(tmp_path / method, tables)
        expected[method] = pack_collection(tables)(kjt).values()
    done = run_code(FRESH, *NAMES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for method in NAMES:
        assert torch.equal(torch.load(tmp_path / f"{method}.pt"), expected[method]), method
        plain = torch.load(tmp_path / f"{method}-plain.pt")  # compiled code may add up products in another order
        torch.testing.assert_close(plain, expected[method], rtol=0, atol=LAST_BITS)


def run_code(code: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Code in a new interpreter; see `tests.processes` for one that has everything loaded."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_it_takes_the_place_of_an_embedding_bag_collection(tmp_path: Path) -> None:
    tables = TableCollection(
        [
            TableSpec(name="A", num_embeddings=50, embedding_dim=8, feature_names=["user"]),
            TableSpec(
                name="B", num_embeddings=30, embedding_dim=8, feature_names=["item"], pooling="mean", method="hash"
            ),
        ]
    )
    save_bundle(tmp_path / "b", tables)
    loaded = load_bundle(tmp_path / "b")
    for ours, theirs in zip(loaded.embedding_bag_configs(), tables.embedding_bag_configs(), strict=True):
        assert {**vars(ours), "init_fn": None} == {**vars(theirs), "init_fn": None}
    assert not loaded.is_weighted()
    assert loaded.device == tables.device
    torch.manual_seed(0)
    model = DLRM(tables, dense_in_features=3, dense_arch_layer_sizes=[8], over_arch_layer_sizes=[4, 1]).eval()
    served = DLRM(loaded, dense_in_features=3, dense_arch_layer_sizes=[8], over_arch_layer_sizes=[4, 1]).eval()
    dense = {name: value for name, value in model.state_dict().items() if "embedding_bag_collection" not in name}
    assert not served.load_state_dict(dense, strict=False).unexpected_keys
    kjt = random_kjt({"user": 50, "item": 30}, batch_size=11, seed=8)
    torch.testing.assert_close(served(torch.ones(11, 3), kjt), model(torch.ones(11, 3), kjt))


def test_an_empty_batch_and_bad_inputs(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded(random_kjt({"a": 5}, batch_size=0, seed=0)).values().shape == (0, 6)
    with pytest.raises(DataError, match="table 'C3' looks up feature 'a', which the batch lacks; did you mean 'A'"):
        loaded(random_kjt({"A": 5}, batch_size=2, seed=0))


def test_rows_shared_by_tables_are_stored_once(tmp_path: Path) -> None:
    tables = TableCollection(
        [
            TableSpec(name=name, num_embeddings=400, embedding_dim=8, feature_names=[name], method="test_one_array")
            for name in ("x", "y", "z")
        ]
    )
    save_bundle(tmp_path / "b", tables)
    loaded = load_bundle(tmp_path / "b")
    assert loaded.nbytes() == tables.nbytes("serving") == 400 * 8 * 4
    assert (tmp_path / "b" / TABLES).stat().st_size < 400 * 8 * 4 + 500
    kjt = random_kjt({"x": 400, "y": 400, "z": 400}, batch_size=8, seed=0)
    torch.testing.assert_close(loaded(kjt).values(), outputs(tables, kjt))


def test_network_and_facts(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    network.append(network[0])  # one layer twice
    save_bundle(tmp_path / "b", plain(), network=network.state_dict(), facts={"step": 7})
    bundle = Bundle(tmp_path / "b")
    assert bundle.facts == {"step": 7}
    found = bundle.network()
    assert found.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    assert found["0.weight"].data_ptr() == found["2.weight"].data_ptr()
    save_bundle(tmp_path / "tables", plain())
    with pytest.raises(ConfigError, match="has tables but no network; give the bundle of a training run"):
        Bundle(tmp_path / "tables").network()


def test_the_disk_tier(tmp_path: Path) -> None:
    tables = trained("full", tier=RowTier(name="disk", directory=tmp_path / "rows"))
    save_bundle(tmp_path / "b", tables)
    kjt = random_kjt({"a": NUM}, batch_size=8, seed=0)
    expected = outputs(tables, kjt)
    shutil.rmtree(tmp_path / "rows")
    torch.testing.assert_close(load_bundle(tmp_path / "b")(kjt).values(), expected)


MEMORY = """
    import sys
    from embank.tables import TableCollection, TableSpec, load_bundle, save_bundle

    def mib(what):
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what + ":"))

    def peak(do):
        open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
        before = mib("VmRSS")
        result = do()
        return mib("VmHWM") - before, result

    dim = int(sys.argv[1])
    spec = TableSpec(name="t", num_embeddings=2**20, embedding_dim=dim, feature_names=["a"])
    tables = TableCollection([spec])
    small = TableCollection([TableSpec(name="t", num_embeddings=8, embedding_dim=dim, feature_names=["a"])])
    save_bundle("small", small)  # libraries are loaded, and one-time memory is taken
    load_bundle("small")
    saving, _ = peak(lambda: save_bundle("large", tables))
    anonymous = mib("RssAnon")
    loaded = load_bundle("large")
    print(saving, mib("RssAnon") - anonymous)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "copies"), [(48, 0.5), (50, 1.5)], ids=["as-they-are", "padded"])
def test_memory(tmp_path: Path, dim: int, copies: float) -> None:
    """Rows are written from where they are, padded ones through one copy; loaded tables are mapped from the file."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak of memory can't be reset here")
    done = processes.run_code(MEMORY, dim, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saving, loading = map(float, done.stdout.split())
    table = 2**20 * dim * 4 / 2**20
    assert saving < copies * table
    assert loading < 0.1 * table


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


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


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
