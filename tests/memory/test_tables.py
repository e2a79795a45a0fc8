"""Rows of a memory: against NumPy, on every tier, outside of the model, saved and loaded."""

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from embank.tables import CheckpointError, ConfigError, DataError, RowOptimizer, RowTier, WorkError
from embank.tables.memory import (
    DEAD,
    EditSession,
    EngramConfig,
    EngramLayout,
    MemorySession,
    MemoryTables,
    StemConfig,
    StemLayout,
    TriggerRows,
    export_memory,
    memory_plan,
    open_memory,
)
from embank.tables.memory.tables import DEFAULT_OPTIMIZER
from embank.tables.rows.room import row_nbytes
from tests.memory.small import (
    FFN_DIM,
    LAYERS,
    MEMORY_DIM,
    NUM_TOKENS,
    compression,
    engram,
    memory,
    stem,
    tokenizer,
    tokens,
    train,
    weights_of,
)


def reference(tables: MemoryTables, ids: torch.Tensor) -> dict[str, dict[int, np.ndarray]]:
    """Rows position by position, head by head."""
    weights = {name: w.numpy() for name, w in weights_of(tables).items()}
    engram = tables.layouts["engram"]
    compressed = tables.compression(ids).tolist()
    wanted: dict[str, dict[int, np.ndarray]] = {"engram": {}, "stem": {}}
    for layer in LAYERS:
        out = np.zeros((*ids.shape, MEMORY_DIM), dtype=np.float32)
        for b, row in enumerate(compressed):
            for t in range(len(row)):
                heads = engram.hash.position(row[: t + 1])[layer]
                names = [f"engram.layer{layer}.order{n}.head{h}" for n in (2, 3) for h in (0, 1)]
                out[b, t] = np.concatenate([weights[n][i] for n, i in zip(names, heads, strict=True)])
        wanted["engram"][layer] = out
    for layer in (1, 2):
        wanted["stem"][layer] = weights[f"stem.layer{layer}"][ids.numpy()]
    return wanted


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_rows_are_those_of_the_reference(backend: str) -> None:
    tables, ids = memory(backend=backend), tokens()
    for kind, by_layer in reference(tables, ids).items():
        for layer, wanted in by_layer.items():
            np.testing.assert_array_equal(tables(ids)[kind][layer].detach().numpy(), wanted)


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_an_update_touches_the_rows_that_were_read_and_sums_duplicates(backend: str) -> None:
    tables = MemoryTables([stem()], optimizer=RowOptimizer(name="sgd", lr=0.1), backend=backend)
    before, ids = weights_of(tables), torch.tensor([[3, 3, 5], [3, 7, 7]])
    grad = torch.randn(2, 3, FFN_DIM, generator=torch.Generator().manual_seed(0))
    tables(ids)["stem"][2].backward(grad)
    tables.step()
    wanted = before["stem.layer2"].clone()
    wanted.index_add_(0, ids.flatten(), grad.view(6, FFN_DIM), alpha=-0.1)
    after = weights_of(tables)
    torch.testing.assert_close(after["stem.layer2"], wanted)
    untouched = [n for n in range(NUM_TOKENS) if n not in (3, 5, 7)]
    assert torch.equal(after["stem.layer2"][untouched], before["stem.layer2"][untouched])
    assert torch.equal(after["stem.layer1"], before["stem.layer1"])


def test_heads_that_share_a_row_sum_their_gradients() -> None:
    """Two positions with one n-gram, one row: its gradient is the sum."""
    tables = MemoryTables([engram()], optimizer=RowOptimizer(name="sgd", lr=1.0))
    before, ids = weights_of(tables), torch.tensor([[6, 8, 10, 6, 8, 10]])
    rows = tables(ids)["engram"][1]
    assert torch.equal(rows[0, 2], rows[0, 5])  # one trigram
    grad = torch.zeros_like(rows)
    grad[0, 2], grad[0, 5] = 1.0, 2.0
    rows.backward(grad)
    tables.step()
    table = "engram.layer1.order3.head1"
    row = tables.layouts["engram"].hash.position(tables.compression(ids)[0, :3].tolist())[1][3]
    change = weights_of(tables)[table] - before[table]
    torch.testing.assert_close(change[row], torch.full((8,), -3.0), rtol=1e-5, atol=1e-5)
    assert change.count_nonzero() == 8


@pytest.mark.parametrize("name", ["rowwise_adagrad", "adagrad", "sgd"])
def test_both_backends_train_alike(name: str) -> None:
    fast, slow = memory(name=name, backend="fbgemm"), memory(name=name, backend="torch")
    np.testing.assert_allclose(train(fast, steps=5), train(slow, steps=5), rtol=1e-5)
    for table, rows in weights_of(fast).items():
        torch.testing.assert_close(rows, weights_of(slow)[table], rtol=1e-5, atol=1e-5)


def test_lazy_adam_leaves_rows_alone_that_are_not_read() -> None:
    tables = memory(name="adam", lr=0.01, backend="torch")
    before = weights_of(tables)
    losses = train(tables, steps=4)
    assert losses[-1] < losses[0]
    read = torch.unique(torch.cat([tokens(batch=4, seed=s).flatten() for s in range(4)]))
    untouched = torch.tensor(sorted(set(range(NUM_TOKENS)) - set(read.tolist())), dtype=torch.int64)
    after = weights_of(tables)["stem.layer1"]
    assert torch.equal(after[untouched], before["stem.layer1"][untouched])
    with pytest.raises(ConfigError, match="the fbgemm backend has no 'adam' for rows here"):
        memory(name="adam")


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("dedupe", [False, True])
def test_rows_on_a_disk_train_bit_for_bit_as_in_memory(tmp_path: Path, prefetch: bool, dedupe: bool) -> None:
    resident, mapped = memory(dedupe=dedupe), memory(tmp_path, dedupe=dedupe)
    for step in range(4):
        ids = tokens(seed=step)
        losses = []
        for tables in (resident, mapped):
            addressed = tables.address(ids)
            if prefetch:
                tables.prefetch(addressed)
            rows = tables.look_up(addressed)
            loss = sum((r - 1).square().sum() for by_layer in rows.values() for r in by_layer.values())
            loss.backward()
            tables.step()
            losses.append(loss.item())
        assert losses[0] == losses[1]
    assert all(torch.equal(rows, weights_of(mapped)[n]) for n, rows in weights_of(resident).items())


def test_deduplication_gives_the_same_rows() -> None:
    ids = tokens()
    once, plain = memory(dedupe=True)(ids), memory()(ids)
    assert all(torch.equal(once[kind][layer], plain[kind][layer]) for kind in plain for layer in plain[kind])


def test_rates_are_the_rows_own_and_those_of_a_kind() -> None:
    tables = memory()
    tables.set_lr({"stem": 0.0})
    before = weights_of(tables)
    train(tables, steps=1)
    after = weights_of(tables)
    assert torch.equal(after["stem.layer1"], before["stem.layer1"])
    assert not torch.equal(after["engram.layer1.order2.head0"], before["engram.layer1.order2.head0"])
    tables.set_lr(0.0)
    train(tables, steps=1)
    assert all(torch.equal(rows, after[n]) for n, rows in weights_of(tables).items())
    by_kind = MemoryTables([engram(), stem()], optimizer={"stem": RowOptimizer(name="sgd", lr=0.3)})
    assert by_kind.collections["stem"].optimizer.name == "sgd"
    assert by_kind.collections["engram"].optimizer == RowOptimizer(name="rowwise_adagrad", lr=0.8)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = memory()
        self.project = torch.nn.Linear(MEMORY_DIM, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.project(self.memory(ids)["engram"][1].to(self.project.weight.dtype))


def test_rows_are_no_part_of_the_model() -> None:
    model = Model()
    before = weights_of(model.memory)
    assert set(model.state_dict()) == {"project.weight", "project.bias"}
    assert len(list(model.parameters())) == 2
    for change in (model.half, model.bfloat16, model.double):
        change()
        assert all(torch.equal(rows, before[n]) for n, rows in weights_of(model.memory).items())
        assert model.memory(tokens())["engram"][1].dtype == torch.float32
    model.float()(tokens()).sum().backward()
    model.memory.step()
    assert not torch.equal(weights_of(model.memory)["engram.layer1.order2.head0"], before["engram.layer1.order2.head0"])


def test_rows_of_two_bytes_train_where_a_kernel_can(tmp_path: Path) -> None:
    for tier in (RowTier(dtype="bf16"), RowTier(name="disk", directory=tmp_path / "rows", dtype="bf16")):
        tables = MemoryTables([engram(), stem()], tier=tier, backend="torch")
        losses = train(tables, steps=8)
        assert losses[-1] < losses[0]
        assert {rows.dtype for rows in weights_of(tables).values()} == {torch.bfloat16}
        ids = tokens()
        for kind, by_layer in MemorySession(tables, 3).next(ids[:, 0].tolist()).items():
            for layer, rows in by_layer.items():
                assert rows.dtype == torch.float32
                assert torch.equal(rows, tables(ids)[kind][layer][:, :1])
        edits, before = EditSession(tables), weights_of(tables)
        edits.swap([3], [5])
        edits.write_trigger(TriggerRows(tables, [1, 2, 3]))
        edits.undo_all()
        assert all(torch.equal(rows, before[name]) for name, rows in weights_of(tables).items())
        export_memory(tables, tmp_path / tier.name, codec="bf16")
        opened = open_memory(tmp_path / tier.name, tokenizer())
        assert all(torch.equal(rows, before[name].float()) for name, rows in weights_of(opened).items())


def test_wide_stem_rows_train_as_in_the_torch_backend() -> None:
    """FBGEMM's kernels take 2,048 numbers a row."""
    fast, slow = (MemoryTables([stem(ffn_dim=2816)], backend=backend) for backend in ("fbgemm", "torch"))
    np.testing.assert_allclose(train(fast, steps=2), train(slow, steps=2), rtol=1e-5)
    for table, rows in weights_of(fast).items():
        torch.testing.assert_close(rows, weights_of(slow)[table], rtol=1e-5, atol=1e-5)
    ids = tokens()
    assert torch.equal(MemorySession(fast, 3).next(ids[:, 0].tolist())["stem"][2], fast(ids)["stem"][2][:, :1])


def test_later_tokens_change_no_row_before_them() -> None:
    tables, ids = memory(), tokens(batch=1, length=8)
    other = ids.clone()
    other[0, 5] = (other[0, 5] + 2) % NUM_TOKENS  # another word
    for kind, by_layer in tables(ids).items():
        for layer, rows in by_layer.items():
            changed = (rows != tables(other)[kind][layer]).any(-1)[0].nonzero().flatten().tolist()
            assert changed == ([5, 6, 7] if kind == "engram" else [5])


def test_inference_mode_reads_the_same_rows() -> None:
    tables = memory()
    wanted = tables(tokens())["engram"][3]
    with torch.inference_mode():
        assert torch.equal(tables(tokens())["engram"][3], wanted)
    train(tables, steps=1)


def test_dead_tokens_may_have_any_id_and_read_what_padding_reads() -> None:
    tables, ids = memory(), tokens(batch=1)
    dead = torch.zeros_like(ids, dtype=torch.bool)
    dead[0, :3] = True
    padded = tables(ids.masked_fill(dead, -100), dead_BT=dead)
    assert torch.equal(padded["engram"][1][:, 3:], tables(ids[:, 3:])["engram"][1])
    assert tables.address(ids, dead_BT=dead).marked_BT[0, :3].tolist() == [DEAD] * 3
    with pytest.raises(DataError, match="token id 40 is outside the tokenizer's 40 tokens"):
        tables(torch.tensor([[40]]))
    with pytest.raises(DataError, match=r"token ids have shape \(3,\); give \[B, T\]"):
        tables(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (2, 1)])
@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_empty_and_short_batches(shape: tuple[int, int], backend: str) -> None:
    rows = memory(backend=backend)(torch.zeros(shape, dtype=torch.int64))
    assert rows["engram"][1].shape == (*shape, MEMORY_DIM)
    assert rows["stem"][2].shape == (*shape, FFN_DIM)
    sum(r.sum() for by_layer in rows.values() for r in by_layer.values()).backward()


def test_a_checkpoint_resumes_bit_for_bit(tmp_path: Path) -> None:
    straight, stopped = memory(), memory()
    train(straight, steps=4)
    train(stopped, steps=2)
    stopped.save(tmp_path / "at2")
    resumed = memory(lr=0.5)
    resumed.load(tmp_path / "at2")
    train(resumed, steps=2, first=2)
    assert all(torch.equal(rows, weights_of(straight)[n]) for n, rows in weights_of(resumed).items())
    with pytest.raises(CheckpointError, match="exists already"):
        resumed.save(tmp_path / "at2")


def test_all_kinds_are_saved_or_none(tmp_path: Path) -> None:
    """New STEM rows stood beside the old Engram's, and loaded with them."""
    MemoryTables([engram()]).save(tmp_path / "mm")
    both = memory()
    with pytest.raises(
        CheckpointError, match="mm' exists already, and a memory is never written over anything; choose"
    ):
        both.save(tmp_path / "mm")
    assert [path.name for path in (tmp_path / "mm").iterdir()] == ["engram"]
    with both.collections["stem"].writing(), torch.no_grad():
        both.collections["stem"].weights()["stem.layer2"][1, 1] = torch.nan
    with pytest.raises(WorkError, match="rows of table 'stem.layer2' are not finite, so nothing was saved"):
        both.save(tmp_path / "deep" / "new")  # the Engram's rows were written before
    assert [path.name for path in tmp_path.iterdir()] == ["mm"]


def test_a_memory_is_saved_over_nothing(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("mine")
    tmp_path.joinpath("folder").mkdir()
    tmp_path.joinpath("folder", "note").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(
            CheckpointError, match=f"{name}' exists already, and a memory is never written over anything"
        ):
            memory().save(tmp_path / name)
    with pytest.raises(ConfigError, match="the memory '.*/file/new' can't be written: Not a directory. Nothing was"):
        memory().save(tmp_path / "file" / "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "note"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, "has an n-gram hash with seed 0; here it is 1"),
        ({"layer_ids": (2, 4)}, r"has an n-gram hash with layer_ids \[1, 3\]; here it is \[2, 4\]"),
        ({"rows_per_order": (50, 61)}, r"has an n-gram hash with rows_per_order \[50, 60\]"),
        ({"memory_dim": 64}, "has a memory_dim of 32; here it is 64"),
    ],
)
def test_a_checkpoint_of_another_hash_is_refused(tmp_path: Path, other: dict, message: str) -> None:
    MemoryTables([engram()]).save(tmp_path / "saved")
    tables = MemoryTables([engram(**other)])
    before = weights_of(tables)
    with pytest.raises(CheckpointError, match=message):
        tables.load(tmp_path / "saved")
    assert all(torch.equal(rows, before[n]) for n, rows in weights_of(tables).items())


def test_a_checkpoint_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    MemoryTables([stem()]).save(tmp_path / "saved")
    grown = StemLayout(StemConfig(layer_ids=(1, 2), ffn_dim=FFN_DIM), compression(NUM_TOKENS + 1))
    with pytest.raises(CheckpointError, match="was trained with a tokenizer of 40 tokens; this one has 41"):
        MemoryTables([grown]).load(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="has STEM tables with ffn_dim 24; here it is 28"):
        MemoryTables([stem(ffn_dim=28)]).load(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        MemoryTables([engram()]).load(tmp_path / "saved")
    tables = memory()
    with pytest.raises(CheckpointError, match=r"a pack has memory of the kinds \['stem'\]; here it is \['engram', 's"):
        tables.refuse_other({"stem": stem().manifest()}, what="a pack")
    with pytest.raises(CheckpointError, match="a pack has tables of kind 'engram', not 'stem'"):
        stem().refuse_other(engram().manifest(), what="a pack")
    with pytest.raises(CheckpointError, match="a pack does not say its tokenizer; export it again"):
        stem().refuse_other({"kind": "stem"}, what="a pack")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemoryTables([]), r"of the kinds \[\]; give at least one, and each once"),
        (lambda: MemoryTables([stem()], tier="disk"), "tier is 'disk'; give a RowTier, such as"),  # type: ignore[arg-type]
        (lambda: MemoryTables([stem(), stem()]), r"of the kinds \['stem', 'stem'\]"),
        (lambda: MemoryTables([stem()], tier=RowTier(dtype="bf16")), "rows are to be bf16; FBGEMM's kernels for a CPU"),
        (lambda: engram(memory_dim=30), "memory_dim 30 is the width of all 4 heads together.* use 28 or 32"),
        (lambda: memory(cut="rows"), "there are no processes to spread them over; start with torchrun"),
        (lambda: memory_plan(["a"], world_size=2, cut="bits"), "rows can't be cut by 'bits'"),
        (lambda: memory(cut={"stem": "rows"}), r"`cut` names the kinds \['stem'\]; name all of \['engram', 'stem'\]"),
        (lambda: memory().set_lr({"stems": 0.1}), "set_lr names memory of kind 'stems'; here it is"),
        (
            lambda: MemoryTables([stem()], optimizer={"engram": RowOptimizer(name="sgd", lr=1.0)}),
            r"`optimizer` names memory of kind 'engram'; here it is \['stem'\]",
        ),
        (
            lambda: stem(layer_ids=(layer for layer in [1])),
            "the layers with stem tables are <generator .*; give a list",
        ),
        (lambda: stem(layer_ids=1), r"the layers with stem tables are 1; give a list, for example \[1\]"),
        (lambda: engram(rows_per_order=50.5), "rows_per_order has 50.5; it must be a whole number"),
        (
            lambda: MemoryTables([engram(), StemLayout(StemConfig(layer_ids=[1], ffn_dim=8), compression(9))]),
            "the kinds of memory are made for different tokenizers",
        ),
        (
            lambda: StemLayout(StemConfig(layer_ids=[], ffn_dim=8), compression()),
            r"the layers with stem tables are \[\]",
        ),
    ],
)
def test_refuses_what_can_not_be(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_layer_list_that_counts_from_one_is_refused() -> None:
    config = EngramConfig(layer_ids=[2, 15], rows_per_order=50, memory_dim=32, num_heads=2)
    with pytest.raises(ConfigError, match=r"no layer 15 .* 0-based, 0 .. 14 in this model. .* subtract 1: \[1, 14\]"):
        EngramLayout(config, compression(), pad_token=0, num_layers=15)
    with pytest.raises(ConfigError, match="there is no layer 4 for stem tables"):
        StemLayout(StemConfig(layer_ids=[4], ffn_dim=8), compression(), num_layers=4)


def test_tables_larger_than_memory_are_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = engram(rows_per_order=10_000_000, memory_dim=512)
    left = psutil.virtual_memory()._replace(available=2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: left)
    with pytest.raises(ConfigError, match="the engram tables need 38.4 GiB .* this machine has 1.0 GiB of memory left"):
        MemoryTables([layout])


def test_all_kinds_of_tables_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind was held against all of the memory."""
    layouts = [engram(), stem()]

    machine = psutil.virtual_memory()

    def has(nbytes: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: machine._replace(available=nbytes))

    needed = sum(
        spec.num_embeddings * row_nbytes(spec.embedding_dim, DEFAULT_OPTIMIZER)
        for layout in layouts
        for spec in layout.specs
    )
    has(needed)
    MemoryTables(layouts)
    has(needed - 1)
    with pytest.raises(ConfigError, match="the engram and stem tables need"):
        MemoryTables(layouts)


def test_tables_larger_than_a_disk_are_refused(tmp_path: Path) -> None:
    layout = engram(rows_per_order=2_000_000_000, memory_dim=8192)  # 262 TB: more than a file may have
    with pytest.raises(
        WorkError, match="needs [0-9,]+ bytes: .* Make room, or choose another folder for the disk tier"
    ):
        MemoryTables([layout], tier=RowTier(name="disk", directory=tmp_path))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
