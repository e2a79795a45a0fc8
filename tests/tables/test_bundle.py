"""Bundles: what is saved is what is served, in any process."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.models.dlrm import DLRM

import tests.tables.served  # noqa: F401 - registers methods
from embank.compression import METHODS
from embank.tables import (
    Bundle,
    ConfigError,
    DataError,
    IdRangeError,
    RowTier,
    TableCollection,
    TableSpec,
    load_bundle,
    method_class,
    pack_collection,
    save_bundle,
)
from embank.tables.collections.stages import finished
from embank.tables.serving.bundle import TABLES
from tests import processes
from tests.contracts.test_methods import NUM, spec, train
from tests.products import LAST_BITS
from tests.tables.batches import random_kjt
from tests.tables.bundles import outputs, plain, run_code

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


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "bundle", plain(), facts={"answer": [42]})
    return tmp_path / "bundle"


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
