"""Streaming collections: rows that change hands start anew, whatever holds them; nothing else changes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.compression import METHODS
from embank.tables import (
    ConfigError,
    DataError,
    IdRangeError,
    RowOptimizer,
    RowTier,
    SequenceCollection,
    TableCollection,
    TableSpec,
)
from embank.tables.ids.hashing import integer_ids
from embank.tables.sharding.plan import Placement, Plan
from embank.tables.sharding.sharded_rows import Sharding
from embank.tables.storage.checkpoint import load_checkpoint, save_checkpoint
from embank.tables.streaming import (
    ManagedCollisionConfig,
    Streamed,
    StreamingCollection,
    StreamingConfig,
    VocabularyConfig,
    reset_rows,
)
from tests.contracts.specs import NAMES, spec
from tests.distributed.ranks import Ranks

ROWS = 10
HOLDERS = [
    *(("fbgemm", tier, name) for tier in ("device", "disk") for name in ("sgd", "adagrad", "rowwise_adagrad")),
    *(("torch", tier, name) for tier in ("device", "disk") for name in ("adagrad", "rowwise_adagrad", "adam")),
]
VOCABULARIES = [
    StreamingConfig(policy="lru", admit_after=2),
    StreamingConfig(policy="age", max_age=2),
    ManagedCollisionConfig(policy="lru"),
]


def specs() -> list[TableSpec]:
    """Two features in one streaming table, their first-order weights in another, a feature with an ordinary table."""
    return [
        TableSpec(name="plane", num_embeddings=ROWS, embedding_dim=6, feature_names=["plane", "last_plane"]),
        TableSpec(name="weight", num_embeddings=ROWS, embedding_dim=1, feature_names=["plane"], init_std=0.1),
        TableSpec(name="hour", num_embeddings=24, embedding_dim=4, feature_names=["hour"], method="hash", budget=0.5),
    ]


def collection(
    *, backend: str = "fbgemm", tier: str = "device", optimizer: str = "rowwise_adagrad", folder: Path | None = None
) -> TableCollection:
    held = RowTier(name=tier, directory=folder if tier == "disk" else None)
    return TableCollection(specs(), seed=3, backend=backend, tier=held, optimizer=RowOptimizer(name=optimizer, lr=0.1))


def batch(number: int, *, size: int = 8) -> KeyedJaggedTensor:
    """Bags of 0 to 2 planes that change over time, and an hour."""
    generator = torch.Generator().manual_seed(number)
    bags = torch.tensor([0, 1, 2, 1] * (size // 2), dtype=torch.int32)[torch.randperm(2 * size, generator=generator)]
    num_planes = int(bags.sum())
    planes = integer_ids(torch.randint(0, 8, (num_planes,), generator=generator) + number)
    hours = torch.randint(0, 24, (size,), generator=generator)
    return KeyedJaggedTensor(
        keys=["plane", "hour", "last_plane"],
        values=torch.cat([planes[: int(bags[:size].sum())], hours, planes[int(bags[:size].sum()) :]]),
        lengths=torch.cat([bags[:size], torch.ones(size, dtype=torch.int32), bags[size:]]),
    )


def train(streaming: StreamingCollection, number: int, features: KeyedJaggedTensor | Streamed | None = None) -> None:
    out = streaming(batch(number) if features is None else features).values()
    (out - 1).square().sum().backward()
    streaming.tables.update_rows()


def everything(tables: TableCollection) -> dict[str, Tensor]:
    state = {f"{t}/{kind}": view for t, views in tables.optimizer_state().items() for kind, view in views.items()}
    return {name: view.clone() for name, view in {**tables.weights(), **state}.items()}


@pytest.mark.parametrize(("backend", "tier", "optimizer"), HOLDERS)
def test_reset_rows_are_fresh_and_others_untouched(backend: str, tier: str, optimizer: str, tmp_path: Path) -> None:
    tables = collection(backend=backend, tier=tier, optimizer=optimizer, folder=tmp_path)
    plain = collection(backend="torch", optimizer=optimizer)
    streaming = StreamingCollection(tables, {"plane": StreamingConfig()})
    for number in range(5):
        train(streaming, number)
    before, rows, others = everything(tables), torch.tensor([7, 2, 5]), torch.tensor([0, 1, 3, 4, 6, 8, 9])
    for name in ("plane", "weight"):
        reset_rows(tables, name, rows, draw=11)
        reset_rows(plain, name, rows, draw=11)
    after = everything(tables)
    for name in before:
        if name.startswith("hour"):
            assert torch.equal(before[name], after[name])
            continue
        assert torch.equal(before[name][others], after[name][others])
        assert not torch.equal(before[name][rows], after[name][rows]), f"{name} was never trained"
        assert torch.equal(after[name][rows], everything(plain)[name][rows]), "the same wherever rows are held"
    assert all(not after[name][rows].any() for name in after if "/" in name and not name.startswith("hour"))
    for name in ("plane", "weight"):
        initial = plain.weights()[name][rows]
        reset_rows(tables, name, rows, draw=12)
        assert not torch.equal(tables.weights()[name][rows], initial), "another draw"


def test_fresh_values_have_the_tables_distribution() -> None:
    tables = TableCollection(
        [
            TableSpec(name="u", num_embeddings=5000, embedding_dim=8, feature_names=["a"]),
            TableSpec(name="n", num_embeddings=5000, embedding_dim=8, feature_names=["b"], init_std=0.3),
        ]
    )
    initial = {name: view.clone() for name, view in tables.weights().items()}
    for name, std in (("u", 5000**-0.5 / 3**0.5), ("n", 0.3)):
        reset_rows(tables, name, torch.arange(5000), draw=1)
        fresh = tables.weights()[name]
        assert abs(float(fresh.std()) / std - 1) < 0.02
        assert not torch.equal(fresh, initial[name])


@pytest.mark.parametrize("config", VOCABULARIES, ids=str)
@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_output_is_that_of_rows_by_hand(backend: str, config: VocabularyConfig) -> None:
    """Each id's row followed in a dict, reset when the vocabulary says so, trained by SGD."""
    tables = TableCollection(
        [TableSpec(name="t", num_embeddings=6, embedding_dim=4, feature_names=["a"])],
        backend=backend,
        optimizer=RowOptimizer(name="sgd", lr=0.05),
    )
    streaming = StreamingCollection(tables, {"t": config})
    rows = {number: held.clone() for number, held in enumerate(tables.weights()["t"])}
    for number in range(40):
        generator = torch.Generator().manual_seed(number)
        ids = integer_ids(torch.randint(0, 6, (7,), generator=generator) + number // 3)
        kjt = KeyedJaggedTensor(keys=["a"], values=ids, lengths=torch.ones(7, dtype=torch.int32))
        streamed = streaming.map(kjt)
        mapped = streamed.mapped["t"]
        out = streaming(streamed).values()
        for row in mapped.resets.tolist():
            assert not torch.equal(rows[row], tables.weights()["t"][row])
            rows[row] = tables.weights()["t"][row].clone()
        expected = torch.stack([rows[row] for row in mapped.rows.tolist()])
        torch.testing.assert_close(out.detach(), expected, rtol=1e-5, atol=1e-6)
        (out - 1).square().sum().backward()
        tables.update_rows()
        gradient = 2 * (expected - 1)
        for place, row in enumerate(mapped.rows.tolist()):
            rows[row] = rows[row] - 0.05 * gradient[place]
    assert streaming.vocabulary("t").totals.resets > 5


@pytest.mark.parametrize(("backend", "tier"), [("fbgemm", "device"), ("fbgemm", "disk"), ("torch", "disk")])
def test_mapping_ahead_changes_no_bit(backend: str, tier: str, tmp_path: Path) -> None:
    late, early = (
        StreamingCollection(
            collection(backend=backend, tier=tier, folder=tmp_path / name), {"plane": StreamingConfig(policy="lru")}
        )
        for name in ("late", "early")
    )
    waiting: list[Streamed] = []
    for number in range(20):
        train(late, number)
        streamed = early.map(batch(number))
        early.tables.prefetch(streamed.addressed)
        waiting.append(streamed)
        if len(waiting) > 3:
            train(early, number, waiting.pop(0))
    for streamed in waiting:
        train(early, 0, streamed)
    assert early.vocabulary("plane").totals == late.vocabulary("plane").totals
    assert early.vocabulary("plane").totals.resets > 15
    one, other = everything(late.tables), everything(early.tables)
    assert all(torch.equal(one[name], other[name]) for name in one)


def mixed(name: str, **options: Any) -> TableSpec:
    return TableSpec(name=name, num_embeddings=ROWS, embedding_dim=4, **{"feature_names": [name], **options})


EVERY_PATH = [
    mixed("a", feature_names=["a", "b"]),
    mixed("a.mean", feature_names=["a"], pooling="mean"),
    mixed("b.weighted", feature_names=["b"], weighted=True, fused_pooling=False),
    mixed("c", method="tt_rec"),
    mixed("d", method="hash", budget=0.5),
    mixed("e", method="robe", budget=0.5),
]


def every_path() -> dict[str, TableCollection | SequenceCollection]:
    """Collections that address in all ways."""
    plain = [spec for spec in EVERY_PATH if spec.pooling == "sum" and not spec.weighted]
    return {
        "pooled": TableCollection(EVERY_PATH),
        "sequence": SequenceCollection(plain, need_indices=True),
        "distinct": SequenceCollection(plain, dedupe=True),
    }


def ragged(number: int) -> KeyedJaggedTensor:
    """Bags of 0 to 2 ids of five features, with weights."""
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(0, 3, (5, 8), generator=generator)
    sizes = lengths.sum(1).tolist()
    values = [torch.randint(0, ROWS, (size,), generator=generator) for size in sizes]
    values[:2] = [integer_ids(ids + number) for ids in values[:2]]
    weights = torch.rand(sum(sizes), generator=generator)
    return KeyedJaggedTensor(keys=list("abcde"), values=torch.cat(values), lengths=lengths.view(-1), weights=weights)


@pytest.mark.parametrize("kind", ["pooled", "sequence", "distinct"])
def test_a_batch_is_addressed_as_its_rows_would_be(kind: str) -> None:
    """Whatever is found before the vocabularies learn is what the tables make of the rows that these give."""
    tables = every_path()[kind]
    streaming = StreamingCollection(tables, {"a": StreamingConfig(policy="lru")})
    for number in range(9):
        streaming.train(number < 6)
        kjt = ragged(number)
        streamed = streaming.map(kjt)
        rows = streamed.mapped["a"].rows
        by_hand = KeyedJaggedTensor(
            keys=kjt.keys(),
            values=torch.cat([rows, kjt.values()[rows.numel() :]]),
            lengths=kjt.lengths(),
            weights=kjt.weights(),
        )
        assert_equal(asdict(streamed.addressed), asdict(tables.address(by_hand)))
        streaming(streamed)
    assert streaming.vocabulary("a").totals.resets > 5


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        for own, its in zip(one, other, strict=True):
            assert_equal(own, its)
    else:
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("kind", ["pooled", "sequence", "distinct"])
def test_ids_without_a_vocabulary_are_addressed_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = every_path()[kind]
    streaming = StreamingCollection(tables, {"a": StreamingConfig()})
    asked: list[str] = []
    for method in tables.built_methods():
        whole = method.address

        def address(ids_N: Tensor, name: str = method.spec.name, whole: Any = whole) -> tuple[Tensor, ...]:
            asked.append(name)
            return whole(ids_N)

        monkeypatch.setattr(method, "address", address)
    for is_training in (True, False):
        streaming.train(is_training)
        asked.clear()
        streaming.map(ragged(0))
        assert [name for name in sorted(asked) if name in "cde"] == list("cde")


def test_a_batch_is_reset_once() -> None:
    streaming = StreamingCollection(collection(), {"plane": StreamingConfig(policy="lru")})
    for number in range(8):
        streamed = streaming.map(batch(number))
        first = streaming(streamed).values().detach().clone()
        streaming.tables.weights()["plane"].add_(1.0)
        assert torch.equal(streaming(streamed).values()[:, -4:], first[:, -4:])
        assert not torch.equal(streaming(streamed).values()[:, :6], first[:, :6]), "not reset again"


@pytest.mark.parametrize("config", VOCABULARIES, ids=str)
def test_evaluation_leaves_rows_and_vocabularies_alone(config: VocabularyConfig) -> None:
    streaming = StreamingCollection(collection(), {"plane": config})
    for number in range(6):
        train(streaming, number)
    before, totals = everything(streaming.tables), streaming.vocabulary("plane").totals
    streaming.eval()
    for number in range(6, 12):
        streamed = streaming.map(batch(number))
        streaming(streamed)
        counts = streamed.counts["plane"]
        assert counts.lookups == counts.hits + counts.misses > 0
    after = everything(streaming.tables)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert streaming.vocabulary("plane").totals == totals


@pytest.mark.parametrize("config", VOCABULARIES, ids=str)
@pytest.mark.parametrize(("backend", "tier"), [("fbgemm", "device"), ("torch", "disk")])
def test_a_checkpoint_goes_on_bit_for_bit(backend: str, tier: str, config: VocabularyConfig, tmp_path: Path) -> None:
    def made(name: str) -> StreamingCollection:
        return StreamingCollection(collection(backend=backend, tier=tier, folder=tmp_path / name), {"plane": config})

    whole = made("whole")
    for number in range(8):
        train(whole, number)
    dense = {"vocabularies": whole.vocabularies.state_dict()}
    save_checkpoint(tmp_path / "checkpoint", tables=whole.tables, dense=dense, meta={})
    resumed = made("resumed")
    train(resumed, 77)
    found, _ = load_checkpoint(tmp_path / "checkpoint", tables=resumed.tables)
    resumed.vocabularies.load_state_dict(found["vocabularies"])
    for number in range(8, 20):
        train(whole, number)
        train(resumed, number)
    one, other = everything(whole.tables), everything(resumed.tables)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.vocabulary("plane").totals == resumed.vocabulary("plane").totals
    assert whole.vocabulary("plane").totals.resets > 8


def test_the_network_s_state_dict_carries_the_vocabularies() -> None:
    streaming = StreamingCollection(collection(), {"plane": StreamingConfig()})
    train(streaming, 1)
    assert "vocabularies.plane._extra_state" in streaming.state_dict()


@pytest.mark.parametrize("method", NAMES)
def test_methods_reset_rows_or_say_why_not(method: str) -> None:
    """Under a budget only plain and rounded rows are one id's alone."""
    tables = TableCollection([spec(method)])
    if method in {"full", "low_precision"}:
        before = everything(tables)
        reset_rows(tables, "t", torch.tensor([3, 4]), draw=1)
        changed = (before["t"] != everything(tables)["t"]).any(1).nonzero().squeeze(1)
        assert changed.tolist() == [3, 4]
        return
    with pytest.raises(
        ConfigError, match=rf"rows of table 't' can't be reset: its method '{method}' \w+ .*\. Use method 'full'"
    ):
        reset_rows(tables, "t", torch.tensor([3]), draw=1)
    with pytest.raises(ConfigError, match="can't be reset"):
        StreamingCollection(tables, {"t": StreamingConfig()})
    assert method in METHODS


def _refused_when_sharded(rank: int) -> str:
    plan = Plan(world_size=1, tables={"t": Placement(kind="row_wise")})
    tables = TableCollection(
        [TableSpec(name="t", num_embeddings=200, embedding_dim=4, feature_names=["a"])], sharding=Sharding(plan=plan)
    )
    with pytest.raises(ConfigError) as refused:
        reset_rows(tables, "t", torch.tensor([rank]), draw=0)
    with pytest.raises(ConfigError, match=r"table 't' can't be reset: they are sharded"):
        StreamingCollection(tables, {"t": StreamingConfig()})
    return str(refused.value)


@pytest.mark.slow
def test_sharded_rows_are_refused() -> None:
    ranks = Ranks(1)
    try:
        assert (
            "they are sharded, and each process would have to learn the same ids" in ranks.run(_refused_when_sharded)[0]
        )
    finally:
        ranks.close()


def test_refusals() -> None:
    tables = collection()
    with pytest.raises(IdRangeError, match="rows 3 to 10 of table 'plane' are to be reset; it has 0 to 9"):
        reset_rows(tables, "plane", torch.tensor([10, 3]), draw=0)
    with pytest.raises(ConfigError, match=r"there is no table 'plain'; .*plane"):
        reset_rows(tables, "plain", torch.tensor([1]), draw=0)
    with pytest.raises(ConfigError, match=r"a vocabulary is for table 'plan', which is not there; .*plane"):
        StreamingCollection(tables, {"plan": StreamingConfig()})
    with pytest.raises(
        ConfigError,
        match=r"table 'plane' \(10 ids, features \['plane', 'last_plane'\]\) looks up features of table 'weight'",
    ):
        StreamingCollection(tables, {"weight": StreamingConfig()})
    twins = [TableSpec(name=name, num_embeddings=5, embedding_dim=4, feature_names=["a"]) for name in ("x", "y")]
    with pytest.raises(
        ConfigError, match="table 'x' is served by the vocabulary of table 'x' already; drop that of table 'y'"
    ):
        StreamingCollection(TableCollection(twins), {"x": StreamingConfig(), "y": StreamingConfig()})
    streaming = StreamingCollection(tables, {"plane": StreamingConfig()})
    short = KeyedJaggedTensor(keys=["plane"], values=torch.tensor([1]), lengths=torch.tensor([1], dtype=torch.int32))
    with pytest.raises(DataError, match="table 'plane' looks up feature 'last_plane', which the batch lacks"):
        streaming(short)
    floats = KeyedJaggedTensor(keys=["plane"], values=torch.tensor([1.0]), lengths=torch.tensor([1]))
    with pytest.raises(DataError, match="ids of feature 'plane' are torch.float32; they must be integers"):
        streaming(floats)
    with pytest.raises(ConfigError, match="table 'hours' has no vocabulary; those with one are: plane"):
        streaming.vocabulary("hours")
    with pytest.raises(ConfigError, match="table 'hour' has no vocabulary; no table has one"):
        StreamingCollection(tables, {}).vocabulary("hour")


@pytest.mark.parametrize(
    ("vocabularies", "message"),
    [
        (
            {"plane": {"policy": "lru"}},
            r"vocabulary of table 'plane' is a dict; give options, StreamingConfig\(policy=",
        ),
        ({"plane": StreamingConfig}, "vocabulary of table 'plane' is the class StreamingConfig; give options"),
        (StreamingConfig(), r"are a StreamingConfig; give options by table, \{'plane': StreamingConfig\(\)\}"),
    ],
)
def test_what_are_no_options_is_refused(vocabularies: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamingCollection(collection(), vocabularies)
    with pytest.raises(ConfigError, match="the tables are a list; give a TableCollection or a SequenceCollection"):
        StreamingCollection(specs(), vocabularies)  # type: ignore[arg-type]


def test_sequences_of_bags_are_streamed_too() -> None:
    """As pooled ones of one id each; tensors by group are refused."""
    specs = [TableSpec(name="a", num_embeddings=4, embedding_dim=4, feature_names=["a"])]
    optimizer = RowOptimizer(name="sgd", lr=0.1)
    pooled, sequence = (
        StreamingCollection(make(specs, optimizer=optimizer), {"a": StreamingConfig()})
        for make in (TableCollection, SequenceCollection)
    )
    for number in range(12):
        ids = torch.tensor([number, number + 1, number // 2])
        kjt = KeyedJaggedTensor(keys=["a"], values=ids, lengths=torch.tensor([1, 1, 1]))
        streamed = sequence.map(kjt)
        rows_ND = sequence(streamed)["a"].values()
        values = pooled(kjt).values()
        assert torch.equal(rows_ND, values)
        (values - 1).square().sum().backward()
        (rows_ND - 1).square().sum().backward()
        for streaming in (pooled, sequence):
            streaming.tables.step()
    assert sequence.vocabulary("a").totals.resets > 5
    with pytest.raises(DataError, match="the input is a dict; give a KeyedJaggedTensor"):
        sequence({"a": torch.tensor([[[1]]])})


@pytest.mark.parametrize("config", VOCABULARIES)
def test_what_is_learned_in_inference_mode_is_learned_on(config: VocabularyConfig) -> None:
    """A vocabulary in training mode learns wherever it is called; what it keeps goes on outside."""
    streams = [
        StreamingCollection(
            TableCollection([TableSpec(name="t", num_embeddings=ROWS, embedding_dim=4, feature_names=["t"])]),
            {"t": config},
        )
        for _ in range(2)
    ]
    kjt = KeyedJaggedTensor(keys=["t"], values=torch.tensor([70, 70, 80, 90]), lengths=torch.full((2,), 2))
    with torch.inference_mode():
        streams[0](kjt)
    streams[1](kjt)
    for streaming in streams:
        for _ in range(3):
            streaming(kjt).values().sum().backward()
            streaming.tables.step()
    mapped = [streaming.eval().map(kjt).mapped["t"].rows for streaming in streams]
    assert torch.equal(*mapped)
