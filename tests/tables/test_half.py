"""Rows of two bytes: what rounding at random does, and that they train as rows of four do."""

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from embank.tables import (
    CheckpointError,
    ConfigError,
    GivenRows,
    RowOptimizer,
    RowTier,
    TableCollection,
    TableSpec,
    fit_tables,
    load_checkpoint,
    plan_tables,
    save_checkpoint,
)
from embank.tables.collections.stages import finished, settle
from embank.tables.rows import ROW_OPTIMIZERS, RowStore, StoreSpec, build_rows
from embank.tables.rows.physical import PhysicalTable, RowInit
from embank.tables.rows.rounding import noise, round_to
from embank.tables.rows.shards import TableShard, num_positions, positions_of
from embank.tables.rows.staged import StagedRows
from embank.tables.rows.torch_rows import TorchRows
from embank.tables.sharding.plan import Placement, Plan
from embank.tables.sharding.planner import PlanRequest
from embank.tables.sharding.sharded_rows import ShardedRows, Sharding
from embank.tables.streaming.resets import reset_rows
from tests.contracts.specs import NAMES, spec
from tests.tables.batches import random_kjt
from tests.tables.test_staged import Rounded

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SPACING = {name: float(torch.finfo(dtype).eps) for name, dtype in DTYPES.items()}
"""Of the type's values from 1 to 2."""
NUM_ROWS, DIMS, LOOKUPS, STEPS = 30, (6, 8), (1, 0, 1), 10
ON_GRIDS = {"low_precision", "alpt"}
TIERS = ["device", "disk", "staged"]


@pytest.mark.parametrize("dtype", DTYPES.values())
class TestRounding:
    def test_to_a_neighbour_and_right_on_average(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        values_V = torch.randn(400, generator=generator) * 10.0 ** torch.randint(-6, 4, (400,), generator=generator)
        values_VR = values_V[:, None].expand(-1, 4000)
        noise_VR = torch.rand(values_VR.shape, generator=generator)
        rounded_VR = round_to(dtype, values_VR, noise_VR).float()
        nearest_V = values_V.to(dtype).float()
        low, high = rounded_VR.amin(1), rounded_VR.amax(1)
        assert bool(((low <= values_V) & (values_V <= high)).all())
        assert bool(((nearest_V == low) | (nearest_V == high)).all())
        assert all(len(set(row.tolist())) <= 2 for row in rounded_VR[::20])
        error_V = (rounded_VR.double().mean(1) - values_V.double()).abs()
        assert bool((error_V <= 5 * (high - low).double() * 0.5 / 4000**0.5 + 1e-12).all())

    def test_values_of_the_type_stay(self, dtype: torch.dtype) -> None:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        every = every[every.isfinite() & ((every.float().abs() >= 2.0**-119) | (every == 0))]
        assert every.numel() > 60_000
        for uniform in (0.0, 0.5, 1 - 2.0**-24):
            values_V1 = every.float()[:, None]
            assert torch.equal(round_to(dtype, values_V1, torch.full_like(values_V1, uniform))[:, 0], every)

    def test_what_is_not_finite_stays_so(self, dtype: torch.dtype) -> None:
        values = torch.tensor([[float("inf"), -float("inf"), float("nan"), 3e38]])
        rounded = round_to(dtype, values, torch.full_like(values, 0.5))
        assert rounded[0, :2].tolist() == [float("inf"), -float("inf")]
        assert bool(rounded[0, 2].isnan())
        assert bool(rounded[0, 3].isinf()) == (dtype == torch.float16)


def specs_of(
    dtype: str, optimizer: str, *, tier: str = "device", folder: Path | None = None, lr: float = 0.1
) -> StoreSpec:
    tables = [
        PhysicalTable(name=f"t{i}", num_embeddings=NUM_ROWS, embedding_dim=dim, init=RowInit(scale=1.0))
        for i, dim in enumerate(DIMS)
    ]
    name = "disk" if tier == "disk" else "host"
    held = RowTier(name=name, dtype=dtype, directory=folder if name == "disk" else None)
    how = RowOptimizer(name=optimizer, lr=lr)
    return StoreSpec.of_tables(tables, lookups=LOOKUPS, seed=3, backend="torch", optimizer=how, tier=held)


def store(dtype: str, optimizer: str, *, tier: str = "device", folder: Path | None = None) -> RowStore:
    made = specs_of(dtype, optimizer, tier=tier, folder=folder)
    return StagedRows(made) if tier == "staged" else build_rows(made)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for seed in range(STEPS):
        kjt = random_kjt(dict.fromkeys("abc", NUM_ROWS), batch_size=6, seed=seed)
        yield kjt.values(), kjt.offsets().long()


def train(rows: RowStore, *, ahead: bool = False) -> list[Tensor]:
    outputs = []
    for batch in batches():
        if ahead:
            rows.prefetch(*batch)
        out = rows(*batch)
        assert out.dtype == torch.float32
        outputs.append(out.detach().clone())
        out.sin().sum().backward()
        rows.update()
    return outputs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ROW_OPTIMIZERS)
def test_ten_steps_against_fp32(optimizer: str, dtype: str) -> None:
    """Each of the ten updates may be off by one spacing at most, which below 4 is twice that of 1."""
    half, full = store(dtype, optimizer), store("fp32", optimizer)
    before = {name: weight.clone() for name, weight in half.weights().items()}
    train(half)
    train(full)
    for name, weight in half.weights().items():
        assert weight.dtype == DTYPES[dtype]
        expected = full.weight(name)
        assert 0 < float(expected.abs().max()) < 4
        assert float((weight.float() - expected).abs().max()) <= (STEPS + 1) * 2 * SPACING[dtype]
        assert float((weight.float() - expected).abs().mean()) <= 3 * SPACING[dtype]
        assert not torch.equal(weight, before[name])
    for kinds in half.optimizer_state().values():
        assert all(state.dtype == torch.float32 for state in kinds.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_tiers_and_prefetch_change_no_bit(optimizer: str, dtype: str, tmp_path: Path) -> None:
    memory, disk = store(dtype, optimizer), store(dtype, optimizer, tier="disk", folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(train(memory), train(disk, ahead=True), strict=True))
    staged, early = store(dtype, optimizer, tier="staged"), store(dtype, optimizer, tier="staged")
    assert all(torch.equal(a, b) for a, b in zip(train(staged), train(early, ahead=True), strict=True))
    for name, weight in memory.weights().items():
        assert torch.equal(weight, disk.weight(name))
        assert torch.equal(staged.weight(name), early.weight(name))
        assert weight.dtype == staged.weight(name).dtype == DTYPES[dtype]
        # The device adds gradients up in another order, which may take a value to its other neighbour.
        assert float((weight.float() - staged.weight(name).float()).abs().max()) <= 4 * SPACING[dtype]
    suffix = {"fp16": "f16", "bf16": "bf16"}[dtype]
    assert sum(path.suffix == f".{suffix}" for path in tmp_path.iterdir()) == len(DIMS)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_far_below_the_spacing_count(dtype: str, tier: str, tmp_path: Path) -> None:
    """To the nearest value each of them would be lost."""
    made = replace(specs_of(dtype, "sgd", tier=tier, folder=tmp_path, lr=1e-4), lookups=[0])
    rows = StagedRows(made) if tier == "staged" else build_rows(made)
    with rows.writing():
        rows.weight("t0").fill_(1.5)
    assert SPACING[dtype] / 5 > 1e-4
    ids, offsets = torch.arange(NUM_ROWS), torch.arange(NUM_ROWS + 1)
    for _ in range(100):
        rows(ids, offsets).sum().backward()
        rows.update()
    moved = 1.5 - rows.weight("t0").double()
    deviation = (100 * 1e-4 * SPACING[dtype] / moved.numel()) ** 0.5  # of the mean of 100 roundings of each number
    assert abs(float(moved.mean()) - 0.01) < 4 * deviation
    assert len(set(moved.flatten().tolist())) > 1


def test_parts_of_a_table_round_as_the_whole() -> None:
    """Striped rows and columns of several processes: what noise a number gets depends on its row and column alone."""
    whole = replace(specs_of("bf16", "sgd"), lookups=[0])
    (table, _), half = whole.tables, num_positions(NUM_ROWS) // 2
    striped = [
        TableShard(table=table, first_position=first, num_rows=half, first_column=0, num_columns=6, is_striped=True)
        for first in (0, half)
    ]
    columns = [replace(TableShard.whole(table), first_column=first, num_columns=3) for first in (0, 3)]
    expected, parts = (
        build_rows(replace(whole, shards=[TableShard.whole(table)])),
        [build_rows(replace(whole, shards=[part])) for part in (*striped, *columns)],
    )
    ids = torch.arange(NUM_ROWS)
    grad = torch.linspace(0.1, 0.2, 6)
    positions = positions_of(ids, num_rows=NUM_ROWS)
    for _ in range(3):
        (expected(ids, torch.arange(NUM_ROWS + 1)) * grad).sum().backward()
        expected.update()
        for rows, part in zip(parts, (*striped, *columns), strict=True):
            local = positions - part.first_position if part.is_striped else ids
            own = local[(local >= 0) & (local < part.num_rows)]
            cut = grad[part.first_column : part.first_column + part.num_columns]
            (rows(own, torch.arange(own.numel() + 1)) * cut).sum().backward()
            rows.update()
    for rows, part in zip(parts, (*striped, *columns), strict=True):
        numbers = part.row_numbers()
        real = numbers < NUM_ROWS
        cut = expected.weight("t0")[numbers[real], part.first_column : part.first_column + part.num_columns]
        assert torch.equal(rows.weight("t0")[real], cut)


def test_noise_is_uniform_and_each_numbers_own() -> None:
    drawn = noise(torch.arange(2000), num_columns=8, seed=1)
    assert abs(float(drawn.mean()) - 0.5) < 4 * (1 / 12 / drawn.numel()) ** 0.5
    assert drawn.unique().numel() > 0.99 * drawn.numel()
    assert torch.equal(noise(torch.tensor([7]), num_columns=8, seed=1)[0], drawn[7])


def test_bytes() -> None:
    state = 4 * NUM_ROWS * sum(DIMS)
    for dtype, width in (("fp32", 4), ("fp16", 2), ("bf16", 2)):
        rows = store(dtype, "adagrad")
        assert rows.nbytes() == width * NUM_ROWS * sum(DIMS) + state
    tables = [TableSpec(name="t", num_embeddings=100, embedding_dim=8, feature_names=["t"])]
    for dtype, width in (("fp32", 4), ("bf16", 2)):
        request = PlanRequest(world_size=2, row_dtype=dtype)
        plan, loads = plan_tables(tables, request, optimizer=RowOptimizer(name="adagrad"), num_samples=None)
        assert loads[0].nbytes == 100 * 8 * (width + 4)
        assert (plan.placement("t").kind == "data_parallel") == (dtype == "fp32")


def test_refusals() -> None:
    one = TableSpec(name="t", num_embeddings=10, embedding_dim=4, feature_names=["t"])
    for dtype in DTYPES:
        with pytest.raises(ConfigError, match=f"rows are to be {dtype}; FBGEMM's kernels for a CPU train fp32 only"):
            TableCollection([one], tier=RowTier(dtype=dtype))
    with pytest.raises(ConfigError, match="there are no rows of dtype 'int8'; use fp32, fp16, bf16"):
        RowTier(dtype="int8")
    for backend in ("torch", "fbgemm"):
        with pytest.raises(ConfigError, match=r"puts rows on a grid .* bf16 can't hold|train fp32 only"):
            TableCollection([replace(one, method="low_precision")], backend=backend, tier=RowTier(dtype="bf16"))
    table = PhysicalTable(name="t", num_embeddings=10, embedding_dim=4, init=RowInit(scale=1.0), projection=Rounded())
    with pytest.raises(ConfigError, match="table 't' puts rows on a grid"):
        TorchRows(StoreSpec.of_tables([table], lookups=[0], backend="torch", tier=RowTier(dtype="fp16")))
    plan = Plan(world_size=2, tables={"t": Placement(kind="data_parallel")})
    with pytest.raises(
        ConfigError, match="replicates table 't', whose rows are fp16: replicas train fp32 only. Use ta"
    ):
        ShardedRows(
            StoreSpec.of_tables([table], lookups=[0], backend="torch", tier=RowTier(dtype="fp16")),
            sharding=Sharding(plan=plan),
        )


class TestCollections:
    """What goes on around a store of few bits."""

    SPECS = (TableSpec(name="t", num_embeddings=40, embedding_dim=6, feature_names=["t"]),)
    KJT = random_kjt({"t": 40}, batch_size=9, seed=0)

    def tables(self, dtype: str = "bf16", **how: object) -> TableCollection:
        how = {"seed": 1, "optimizer": RowOptimizer(name="adagrad", lr=0.05), **how}
        return TableCollection(self.SPECS, backend="torch", tier=RowTier(dtype=dtype), **how)  # type: ignore[arg-type]

    def step(self, tables: TableCollection) -> Tensor:
        out = tables(self.KJT).values()
        out.sin().sum().backward()
        tables.step()
        return out

    def test_checkpoints_keep_the_type_and_refuse_another(self, tmp_path: Path) -> None:
        first = self.tables()
        self.step(first)
        save_checkpoint(tmp_path / "c", tables=first, dense={}, meta={})
        second = self.tables(seed=1)
        self.step(second)
        self.step(second)
        load_checkpoint(tmp_path / "c", tables=second)
        for _ in range(3):
            assert torch.equal(self.step(first), self.step(second))
        for dtype in ("fp32", "fp16"):
            other = self.tables(dtype)
            before = other.weights()["t"].clone()
            with pytest.raises(CheckpointError, match=r"holds 'rows/t' as bf16, the table here has .*dtype='bf16'"):
                load_checkpoint(tmp_path / "c", tables=other)
            assert torch.equal(other.weights()["t"], before)

    def test_state_dict_copies_and_rows_from_outside(self) -> None:
        first = self.tables()
        self.step(first)
        copied, other = deepcopy(first), self.tables(seed=2)
        other.load_state_dict(first.state_dict())
        for made in (copied, other):
            assert torch.equal(made.weights()["t"], first.weights()["t"])
            assert made.tier.dtype == "bf16"
        given = torch.randn(40, 6)
        first.set_rows("t", given)
        assert torch.equal(first.weights()["t"], given.bfloat16())

    @pytest.mark.parametrize(("dtype", "beyond", "most"), [("fp16", 1e6, "65504"), ("bf16", 3.4e38, "3.3895e+38")])
    def test_rows_from_outside_that_would_be_infinite_are_refused(self, dtype: str, beyond: float, most: str) -> None:
        """By every way in, and before anything is written; those that become 0 are fine."""
        tables, wide = self.tables(dtype), self.tables("fp32")
        before = tables.weights()["t"].clone()
        given = torch.full((40, 6), 1e-42)
        tables.set_rows("t", given)
        assert not tables.weights()["t"].float().abs().max() > 1e-40
        tables.set_rows("t", before)
        given[7, 3] = -beyond
        wide.set_rows("t", given)
        told = (
            f"rows of table 't' reach {beyond:.4g}, and {dtype} holds numbers up to {most}; hold rows in fp32, RowTier("
        )
        for write in (
            lambda: tables.set_rows("t", given),
            lambda: tables.set_rows("t", given.index_fill(1, torch.tensor([0]), torch.nan)),
            lambda: tables.import_rows("t", torch.arange(40), given),
            lambda: fit_tables(tables, {"t": GivenRows(ids=torch.arange(40), vectors=given)}),
        ):
            with pytest.raises(ConfigError, match=re.escape(told)):
                write()
        told = (
            f"the state_dict's 'embedding_bags.t.weight' reach {beyond:.4g}, and {dtype} holds numbers up to {most}; "
        )
        state = {"embedding_bags.t.weight": given}
        with pytest.raises(CheckpointError, match=re.escape(told) + ".* Nothing of it was loaded here"):
            tables.load_state_dict(state)
        assert torch.equal(tables.weights()["t"], before)
        wide.load_state_dict(state)

    @pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.uint16, torch.uint32, torch.uint64])
    def test_rows_of_whole_numbers_are_taken(self, kind: torch.dtype) -> None:
        """torch has few calls for unsigned ones."""
        for dtype in ("fp32", "fp16"):
            tables = self.tables(dtype)
            tables.set_rows("t", torch.ones(40, 6).to(kind))
            assert bool((tables.weights()["t"] == 1).all())
        with pytest.raises(
            ConfigError, match=r"reach 6.554e\+04, and fp16 holds numbers up to 65504; hold rows in fp32"
        ):
            self.tables("fp16").set_rows("t", torch.full((40, 6), 65535).to(torch.uint16))

    def test_the_cure_of_fp32_is_not_fp32(self) -> None:
        tables, given = self.tables("fp32"), torch.full((40, 6), 1e300, dtype=torch.float64)
        with pytest.raises(
            ConfigError, match=r"reach 1e\+300, and fp32 holds numbers up to 3.4028e\+38; scale them down$"
        ):
            tables.set_rows("t", given)
        with pytest.raises(CheckpointError, match=r"3.4028e\+38; scale them down. Nothing of it was loaded here"):
            tables.load_state_dict({"embedding_bags.t.weight": given})
        with pytest.raises(ConfigError, match="rows of table 't' are complex64; give real numbers"):
            tables.set_rows("t", torch.ones(40, 6, dtype=torch.complex64))

    def test_rows_that_would_begin_infinite_are_refused(self) -> None:
        """Some, or nearly all of a normal distribution."""
        for std in (1e6, 5e4):
            spec = replace(self.SPECS[0], init_std=std)
            with pytest.raises(ConfigError, match="'t' begins with numbers of up to .*fp16 holds .*a smaller init_std"):
                TableCollection([spec], backend="torch", tier=RowTier(dtype="fp16"))
            TableCollection([spec], backend="torch", tier=RowTier(dtype="bf16"))

    def test_fitted_rows_that_would_be_infinite_are_refused(self) -> None:
        """What a method makes of vectors is looked at, not the vectors: two ids share a row, and factors are small."""
        one = replace(self.SPECS[0], method="hash", budget=0.5)
        tables = TableCollection([one], backend="torch", tier=RowTier(dtype="fp16"))
        (name,) = tables.weights()
        before, given = tables.weights()[name].clone(), torch.zeros(40, 6)
        given[7, 3] = 1e6
        with pytest.raises(ConfigError, match=f"rows of table '{name}' reach [0-9e.+]+, and fp16 holds numbers up to"):
            fit_tables(tables, {"t": GivenRows(ids=torch.arange(40), vectors=given)})
        assert torch.equal(tables.weights()[name], before)
        factors = replace(self.SPECS[0], embedding_dim=8, method="tt_rec", budget=0.8)
        tables = TableCollection([factors], backend="torch", tier=RowTier(dtype="fp16"))
        report = tables.import_rows("t", torch.arange(40), torch.full((40, 8), 1e6))
        assert report.error < 0.01

    def test_a_refusal_of_fit_tables_writes_no_stage_of_another_table(self) -> None:
        searching = replace(self.SPECS[0], name="s", feature_names=["s"], method="pep", budget=0.5)
        tables = TableCollection([*self.SPECS, searching], backend="torch", tier=RowTier(dtype="fp16"))
        before = {name: rows.clone() for name, rows in tables.weights().items()}
        given = {
            name: GivenRows(ids=torch.arange(40), vectors=torch.full((40, 6), size))
            for name, size in (("t", 1e6), ("s", 1.0))
        }
        with pytest.raises(ConfigError, match=r"rows of table 't' reach 1e\+06"):
            fit_tables(tables, given)
        assert all(torch.equal(rows, before[name]) for name, rows in tables.weights().items())

    def test_rows_that_change_hands(self) -> None:
        tables = self.tables()
        before = tables.weights()["t"].clone()
        reset_rows(tables, "t", torch.tensor([3, 5]), draw=0)
        changed = (tables.weights()["t"] != before).any(1).nonzero().squeeze(1)
        assert changed.tolist() == [3, 5]


@pytest.mark.parametrize("method", [name for name in NAMES if name not in ON_GRIDS])
def test_every_method_trains_and_is_served(method: str) -> None:
    """Through its stages, as in fp32: values within roundings of it, the packed form of the same bytes."""
    lookups, nbytes = [], []
    for dtype in ("fp32", "bf16"):
        one = replace(spec(method), embedding_dim=8)
        tables = finished(
            TableCollection([one], backend="torch", optimizer=RowOptimizer(lr=0.01), tier=RowTier(dtype=dtype))
        )
        tables.begin(num_steps=3)
        for seed in range(3):
            out = tables(random_kjt({"a": one.num_embeddings}, batch_size=30, seed=seed)).values()
            out.sin().sum().backward()
            tables.step()
        settle(tables)
        nbytes.append(tables.nbytes("serving"))
        (packed,) = tables.packs()
        assert all(t.dtype not in DTYPES.values() for t in (*packed.parameters(), *packed.buffers()) if t.numel())
        ids = torch.arange(0, one.num_embeddings, 7)
        lookups.append(packed.lookup(ids).detach())
        own = tables.eval()(random_kjt({"a": one.num_embeddings}, batch_size=30, seed=9)).values()
        assert own.dtype == torch.float32
        assert own.isfinite().all()
    assert lookups[0].shape == lookups[1].shape
    assert nbytes[0] == pytest.approx(nbytes[1], rel=0.02)
    scale = float(lookups[0].abs().max())
    assert float((lookups[0] - lookups[1]).abs().mean()) < 0.1 * scale
