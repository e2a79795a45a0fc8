"""Scoring by a bundle over plain tensors: the same numbers whatever the batch, the thread, and who asks."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.ctr_models import MODELS, CTRModel, Inputs, build_network
from embank.pipelines.data.schema import CategoricalField, Schema
from embank.pipelines.runs.evaluate import plain_ids
from embank.pipelines.runs.scoring import Scorer
from embank.tables import (
    Bundle,
    CheckpointError,
    ConfigError,
    DataError,
    IdRangeError,
    TableCollection,
    TableSpec,
    save_bundle,
)
from tests.products import same
from tests.tables.bundles import run_code
from tests.training.runs import model_of

SIZES = {"user": 90, "item": 70, "tags": 40, "city": 50, "hour": 24}
BAGS = ("tags",)
NUM_DENSE = 3


def made(
    folder: Path,
    *,
    model: str = "deepfm",
    methods: Mapping[str, str] | None = None,
    hyper: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    sizes: Mapping[str, int] = SIZES,
) -> Bundle:
    """A bundle as a training run writes it, of a model that was not trained."""
    network_class, names = MODELS[model], list(sizes)
    widths = [8] * (len(names) if network_class.embeddings else 0) + [1] * (len(names) * network_class.first_order)
    tables = TableCollection(
        [
            TableSpec(
                name=name if at < len(names) and network_class.embeddings else f"first_order/{name}",
                num_embeddings=sizes[name],
                embedding_dim=dim,
                feature_names=[name],
                method=(methods or {}).get(name, "full") if dim > 1 else "full",
                pooling="mean" if name in BAGS else "sum",
            )
            for at, (name, dim) in enumerate(zip((names * 2)[-len(widths) :], widths, strict=True))
        ]
    )
    inputs = Inputs(names=tuple(names), dims=(8,) * len(names), num_dense=NUM_DENSE)
    torch.manual_seed(0)
    network = build_network(model, inputs=inputs, **(hyper or {}))
    schema = Schema(
        categorical=tuple(
            CategoricalField(name=name, num_embeddings=size, multivalued=name in BAGS, min_count=1)
            for name, size in sizes.items()
        ),
        source="csv",
        label="label",
        numeric=(),
        splits=(),
        row_group_rows=100,
        fingerprint="0" * 64,
        group=None,
    )
    config = {"model": {"name": model, **(hyper or {})}, "train": {"precision": precision}}
    facts = {"config": config, "inputs": asdict(inputs), "schema": schema.to_json(), "step": 1}
    save_bundle(folder, tables, network=network.state_dict(), facts=facts)
    return Bundle(folder)


def batch(num_rows: int, *, seed: int = 0) -> tuple[Tensor, KeyedJaggedTensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = {name: torch.ones(num_rows, dtype=torch.int32) for name in SIZES}
    for name in BAGS:
        lengths[name] = torch.randint(0, 4, (num_rows,), generator=generator, dtype=torch.int32)
    ids = [torch.randint(0, SIZES[name], (int(lengths[name].sum()),), generator=generator) for name in SIZES]
    kjt = KeyedJaggedTensor(keys=list(SIZES), values=torch.cat(ids), lengths=torch.cat(list(lengths.values())))
    return torch.randn(num_rows, NUM_DENSE, generator=generator), kjt


Batch = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def plain(num_rows: int, *, seed: int = 0) -> Batch:
    dense, kjt = batch(num_rows, seed=seed)
    return dense, *plain_ids(kjt, bags=BAGS)


def rows(whole: Batch, first: int, last: int) -> Batch:
    """Some rows of a batch."""
    dense, ids, lengths = whole
    cut = {name: ids_N[first:last] for name, ids_N in ids.items() if name not in lengths}
    for name, lengths_B in lengths.items():
        start, end = int(lengths_B[:first].sum()), int(lengths_B[:last].sum())
        cut[name] = ids[name][start:end]
    return dense[first:last], cut, {name: lengths_B[first:last] for name, lengths_B in lengths.items()}


def cut_up(scorer: Scorer, whole: Batch, sizes: Sequence[int]) -> Tensor:
    """Logits of a batch that is scored in pieces."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    pieces = [scorer.logits(*rows(whole, end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    return torch.cat(pieces)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model_scores_as_it_is_and_a_batch_may_be_cut_anywhere(tmp_path: Path, model: str) -> None:
    bundle = made(tmp_path / "b", model=model)
    scorer = Scorer(bundle)
    assert (scorer.features, scorer.multivalued) == (list(SIZES), list(BAGS))
    whole: CTRModel = model_of(bundle)
    with torch.no_grad():
        expected = whole(*batch(64))
    logits = scorer.logits(*plain(64))
    assert torch.equal(logits, expected)
    assert same(cut_up(scorer, plain(64), [3, 13, 8, 2, 21, 17]), logits)
    alone = cut_up(scorer, plain(64), [1] * 8 + [56])
    torch.testing.assert_close(alone, logits, rtol=0, atol=1e-6)
    assert same(alone[8:], logits[8:])
    assert scorer.logits(*plain(0)).shape == (0,)


@pytest.mark.parametrize("model", ["dlrm", "deepfm"])
def test_layers_that_only_train_do_not_show(tmp_path: Path, model: str) -> None:
    """Batch norm and dropout, where operations are recorded and where they are not."""
    widths = {"bottom": [16], "top": [70, 8]} if model == "dlrm" else {"hidden_units": [70, 8]}
    bundle = made(tmp_path / "b", model=model, hyper={**widths, "batch_norm": True, "dropout": 0.5})
    with torch.no_grad():
        expected = model_of(bundle)(*batch(24))
    scorer = Scorer(bundle)
    assert torch.equal(scorer.logits(*plain(24)), expected)
    assert torch.equal(cut_up(scorer, plain(24), [8, 16]), expected)
    torch.testing.assert_close(cut_up(scorer, plain(24), [1] * 24), expected, rtol=0, atol=1e-6)


MIXED = {"user": "hash", "item": "dhe", "tags": "compositional", "city": "mgqe"}


def test_tables_of_other_methods_beside_plain_ones(tmp_path: Path) -> None:
    bundle = made(tmp_path / "b", methods=MIXED)
    scorer = Scorer(bundle)
    with torch.no_grad():
        expected = model_of(bundle)(*batch(64))
    assert torch.equal(scorer.logits(*plain(64)), expected)
    assert torch.equal(cut_up(scorer, plain(64), [30, 34]), expected)


def test_large_batches_go_block_by_block(tmp_path: Path) -> None:
    scorer = Scorer(made(tmp_path / "b"))
    whole = plain(5003)
    assert torch.equal(scorer.logits(*whole), cut_up(scorer, whole, [999, 4004]))


def test_features_may_have_bags_or_not(tmp_path: Path) -> None:
    """A multi-valued feature without lengths has one id in each row, and a bag of one id is that id."""
    scorer = Scorer(made(tmp_path / "b"))
    dense, ids, _ = plain(16)
    ids["tags"] = torch.arange(16)
    expected = scorer.logits(dense, ids, {})
    ones = torch.ones(16, dtype=torch.int32)
    assert torch.equal(scorer.logits(dense, ids, {"tags": ones}), expected)
    assert torch.equal(scorer.logits(dense, ids, dict.fromkeys(SIZES, ones)), expected)
    as_int32 = {name: ids_N.int() for name, ids_N in ids.items()}
    assert torch.equal(scorer.logits(dense.double(), as_int32, {}), expected)


def test_bf16_is_that_of_the_evaluation(tmp_path: Path) -> None:
    bundle = made(tmp_path / "b", precision="bf16")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model_of(bundle)(*batch(64)).float()
    logits = Scorer(bundle).logits(*plain(64))
    assert torch.equal(logits, expected)
    made(tmp_path / "exact")
    assert not torch.equal(logits, Scorer(Bundle(tmp_path / "exact")).logits(*plain(64)))


@pytest.mark.slow
def test_threads_share_a_scorer(tmp_path: Path) -> None:
    scorer = Scorer(made(tmp_path / "b", methods=MIXED))
    batches = [plain(1 + seed % 40, seed=seed) for seed in range(100)]
    expected = [scorer.logits(*one) for one in batches]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: [scorer.logits(*one) for one in batches], range(8)):
            assert all(map(torch.equal, found, expected))


def test_rows_of_a_feature(tmp_path: Path) -> None:
    bundle = made(tmp_path / "b", methods=MIXED)
    scorer, ids_N = Scorer(bundle), torch.tensor([0, 23, 5])
    for name in SIZES:
        (pack,) = (pack for spec, pack in bundle.tables().packed_tables() if spec.name == name)
        assert torch.equal(scorer.embed(name, ids_N), pack.lookup(ids_N))
    with pytest.raises(IdRangeError, match="feature 'hour' has id 24, outside table 'hour' of 24 ids"):
        scorer.embed("hour", torch.tensor([24]))
    with pytest.raises(ConfigError, match="there is no feature 'hours'; did you mean 'hour'?"):
        scorer.embed("hours", ids_N)
    with pytest.raises(ConfigError, match="a weight for each id and no embeddings"):
        Scorer(made(tmp_path / "lr", model="lr")).embed("hour", ids_N)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "high": ({"ids": {"hour": torch.tensor([3, 24])}}, IdRangeError, "feature 'hour' has id 24, outside table 'hour'"),
    "low": ({"ids": {"item": torch.tensor([-1, 2])}}, IdRangeError, "feature 'item' has id -1, outside table 'item'"),
    "high in a bag": ({"ids": {"tags": torch.tensor([1, 40])}}, IdRangeError, "'tags' has id 40, outside table 'tags'"),
    "missing": ({"ids": {"hour": None}}, DataError, "looks up feature 'hour', which the batch lacks"),
    "short": (
        {"ids": {"hour": torch.tensor([3])}},
        DataError,
        r"'hour' has ids of shape \[1\] for 2 rows; give one id",
    ),
    "float": ({"ids": {"hour": torch.ones(2)}}, DataError, "ids are torch.float32; they must be integers"),
    "list": ({"ids": {"hour": [1, 2]}}, DataError, "the ids of feature 'hour' are a list; give a tensor"),
    "lengths": (
        {"lengths": {"tags": torch.tensor([1, 2])}},
        DataError,
        "'tags' has 2 bags of 3 ids in all, for 2 rows",
    ),
    "negative": ({"lengths": {"tags": torch.tensor([3, -1])}}, DataError, "give the length of a bag for each row"),
    "bags": ({"lengths": {"tags": torch.tensor([2])}}, DataError, "'tags' has 1 bags of 2 ids in all"),
    "dense": ({"dense": torch.zeros(2, 4)}, DataError, r"have shape \[2, 4\]; the model reads 3 numbers of each row"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_input_is_refused(case: str, tmp_path: Path) -> None:
    change, error, message = WRONG[case]
    scorer = Scorer(made(tmp_path / "b"))
    ids = {name: torch.tensor([1, 2]) for name in SIZES} | change.get("ids", {})
    lengths = {"tags": torch.tensor([2, 0])} | change.get("lengths", {})
    ids = {name: ids_N for name, ids_N in ids.items() if ids_N is not None}
    with pytest.raises(error, match=message):
        scorer.logits(change.get("dense", torch.zeros(2, NUM_DENSE)), ids, lengths)


def test_other_tables_than_the_network_reads(tmp_path: Path) -> None:
    bundle = made(tmp_path / "b")
    tables = TableCollection([TableSpec(name="user", num_embeddings=9, embedding_dim=8, feature_names=["user"])])
    save_bundle(tmp_path / "other", tables, network=bundle.network(), facts=bundle.facts)
    with pytest.raises(CheckpointError, match="give 1 features of 8 columns, and its network reads 10"):
        Scorer(Bundle(tmp_path / "other"))


def test_a_damaged_address_does_not_give_rows_of_another_table(tmp_path: Path) -> None:
    """Tables lie in one matrix, where a row that is not the table's own is there all the same."""
    bundle = made(tmp_path / "b", methods={"user": "hash", "item": "hash"})
    scorer = Scorer(bundle)
    spine = next(pack for _, pack in scorer._collection.packed_tables()).spine
    spine.num_rows *= 2
    scorer.lookups = scorer._lookups([])
    with pytest.raises(CheckpointError, match="ids of table 'user' can't be looked up: they have rows"):
        scorer.logits(*plain(64))


FRESH = """
import sys
import torch
from embank.pipelines.runs.scoring import Scorer
from embank.tables import Bundle
scorer = Scorer(Bundle("b", verify="small"))
ids = {name: torch.tensor([1, 2]) for name in scorer.features}
torch.save(scorer.logits(torch.ones(2, scorer.num_dense), ids, {}), "logits.pt")
heavy = ["torchrec", "fbgemm_gpu", "torch._dynamo", "sympy", "polars", "pyarrow", "optuna", "matplotlib", "typer"]
ours = ["embank.pipelines.train", "embank.tables.collections.pooled", "embank.tables.rows.fbgemm", "embank.search"]
assert not [name for name in heavy + ours if name in sys.modules]
if sys.platform == "linux":
    parts = open("/proc/self/smaps").read().split("tables.safetensors")[1:]
    in_memory = sum(int(part.partition("Rss:")[2].split()[0]) for part in parts)  # KiB
    assert parts and in_memory < 2048, in_memory
"""


@pytest.mark.slow
def test_a_fresh_process_opens_a_bundle_without_training_code_and_leaves_rows_where_they_are(tmp_path: Path) -> None:
    sizes = dict.fromkeys(SIZES, 200000)  # 32 MB in all
    scorer = Scorer(made(tmp_path / "b", sizes=sizes))
    ids = {name: torch.tensor([1, 2]) for name in SIZES}
    done = run_code(FRESH, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = scorer.logits(torch.ones(2, NUM_DENSE), ids, {})
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
