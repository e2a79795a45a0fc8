"""What floors count, against what torch counts; and rates that are handed on."""

import os
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.scripts import records, script
from torch.utils.flop_counter import FlopCounterMode

from embank.ctr_models import Inputs, build_network


@pytest.fixture(name="floors")
def _floors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delenv("EMBANK_BENCH_FLOORS", raising=False)
    return script("floors")


def test_operations_of_dlrm_are_those_that_torch_counts(floors: ModuleType) -> None:
    rows, dense, fields, dim, bottom, top = 8, 13, 5, 4, [16, 8], [12, 6]
    inputs = Inputs(names=tuple(f"f{k}" for k in range(fields)), dims=(dim,) * fields, num_dense=dense)
    network = build_network("dlrm", inputs=inputs, bottom=bottom, top=top)
    dense_BI, values_BE = torch.rand(rows, dense), torch.rand(rows, fields * dim, requires_grad=True)
    shape = {"rows": rows, "dense": dense, "fields": fields, "dim": dim, "bottom": bottom, "top": top}
    with FlopCounterMode(display=False) as forward:
        logits_B = network(dense_BI, values_BE, torch.zeros(rows, 0))
    assert floors.dlrm_flops(**shape) == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        logits_B.sum().backward()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert floors.dlrm_step_flops(**shape) == both


def test_rows_of_a_step_are_read_and_written_with_their_state(floors: ModuleType) -> None:
    assert floors.step_row_bytes(distinct=10, dim=16) == 10 * 2 * (64 + 4)


def test_rates_are_measured_or_given(floors: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "MATRIX", 64)
    threads = torch.get_num_threads()
    found = floors.measured(1, mib=1, rounds=2)
    assert torch.get_num_threads() == threads
    assert {"copy", "triad", "gather", "matmul fp32"} <= set(found)
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in found.values())
    run = records.begin()
    run.records = [floors.rate_record("copy", 1, [2e9, 3e9])]
    path = records.save("floors", run, title="t", about="a", out=tmp_path)
    monkeypatch.setitem(os.environ, floors.GIVEN, str(path))
    given = floors.rates(1)
    assert given.per_second == {"copy": pytest.approx(3e9)}
    work = given.work("copy", 6e6, "bytes")
    assert (work.amount, work.unit, work.rate, work.rate_of) == (6e6, "bytes", 3e9, "a copy in memory, 1 thread")
    assert given.work("gather", 1, "rows") is None
