"""benchmarks/gpu/methods.py on a CPU: it runs, and finds what differs."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.scripts import by_case, run_of, script

from embank.tables import RowTier

WORDS = ["--device", "cpu", "--methods", "full"]


@pytest.fixture(name="methods")
def _methods() -> ModuleType:
    return script("gpu/methods")


@pytest.mark.slow
def test_a_cpu_computes_what_a_cpu_computes(methods: ModuleType, tmp_path: Path) -> None:
    methods.main([*WORDS, "--out", str(tmp_path)])
    run = run_of(tmp_path / "gpu_methods.json")
    assert run.machine.device == "cpu"
    assert len(run.detail["outcomes"]) == 2 * 2 * 2  # rows of four bytes and of two, kinds, tiers
    for outcome in run.detail["outcomes"]:
        assert outcome["numbers"] > 1200 * 12
        assert outcome["largest"] == outcome["tipped"] == 0
    figures = by_case(run, "bags, host: largest difference")
    assert {case: record.value for case, record in figures.items()} == {("full", "fp32"): 0, ("full", "bf16"): 0}


def test_rows_that_differ_end_the_run(methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(_method: str, where: RowTier, **_: int) -> list[torch.Tensor]:
        """2 of 100 numbers are others on the host tier."""
        numbers = torch.zeros(100)
        numbers[:2] = 1e-3 * (where.name == "host")
        return [numbers]

    monkeypatch.setitem(methods.KINDS, "bags", differs)
    monkeypatch.setitem(methods.KINDS, "sequences", lambda *_args, **_: [torch.zeros(100)])
    with pytest.raises(SystemExit, match="^differ: full, fp32, bags, host; full, bf16, bags, host$"):
        methods.main([*WORDS, "--out", str(tmp_path)])
    told = run_of(tmp_path / "gpu_methods.json").detail["outcomes"]
    assert [outcome["tipped"] for outcome in told[:4]] == [0, 0.02, 0, 0]


def test_an_error_and_other_shapes_end_the_run(
    methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.KINDS, "bags", lambda _m, where, **_: [torch.zeros(2 + (where.name == "host"))])

    def fails(*_args: object, **_: int) -> list[torch.Tensor]:
        raise RuntimeError("no kernel")

    monkeypatch.setitem(methods.KINDS, "sequences", fails)
    with pytest.raises(SystemExit, match="full, fp32, bags, host; full, fp32, sequences, device; full, fp32, seq"):
        methods.main([*WORDS, "--out", str(tmp_path)])
    errors = [outcome.get("error", "") for outcome in run_of(tmp_path / "gpu_methods.json").detail["outcomes"][:4]]
    assert "tensors of [torch.Size([3])] instead of [torch.Size([2])]" in errors[1]
    assert "no kernel" in errors[2]


def test_numbers_that_are_none_are_found(methods: ModuleType) -> None:
    with pytest.raises(ValueError, match="not finite"):
        methods.compared([torch.zeros(2)], [torch.tensor([0.0, torch.nan])])


def test_a_difference_is_relative_to_the_number(methods: ModuleType) -> None:
    told = methods.compared([torch.tensor([0.0, 999.0])], [torch.tensor([0.5, 1000.0])])
    assert told["largest"] == 0.5
    assert told["tipped"] == 1.0
