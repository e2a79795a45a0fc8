"""`make bench` goes on after a part that fails, names it, and the page shows the others."""

import sys
from pathlib import Path

import pytest
from tests.scripts import BENCHMARKS, records, script

BENCHMARK = """
import argparse, records
parser = argparse.ArgumentParser()
parser.add_argument("--value", type=float)
records.argument(parser)
args = parser.parse_args()
run = records.begin()
run.records = [records.record("step", "ms", value=args.value)]
records.save("good", run, title="A good one", about="It works.", out=args.out)
"""


def test_a_part_that_fails_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = script("run")
    (tmp_path / "good.py").write_text(f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n" + BENCHMARK)
    (tmp_path / "bad.py").write_text("raise SystemExit('no')")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "RATES", run.Part(script="good.py", trial="--value 1", short=""))
    parts = {
        "bad": run.Part(script="bad.py", trial="", short=""),
        "good": run.Part(script="good.py", trial="--value 2", short=""),
    }
    monkeypatch.setattr(run, "PARTS", parts)
    monkeypatch.setenv(run.floors.GIVEN, "")  # which the run sets
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["run.py", "--size", "trial", "--work", str(tmp_path / "work"), "--out", str(out)])
    with pytest.raises(SystemExit, match="failed: bad; see above"):
        run.main()
    assert "bad: failed with status 1" in capsys.readouterr().out
    assert records.load(out / "good.json").runs[0].records[0].value == 2
    assert "A good one. It works." in (out / "README.md").read_text()


def test_a_missing_peer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = script("run")
    told: list[list[str]] = []
    monkeypatch.setattr(
        run.subprocess,
        "run",
        lambda command, check: told.append(command) or run.subprocess.CompletedProcess(command, 0),
    )
    args = run.argparse.Namespace(size="trial", work=tmp_path, out=tmp_path)
    monkeypatch.setattr(run, "FUXICTR", tmp_path / "none")
    outcome = run.run_part("dlrm_speed", run.PARTS["dlrm_speed"], args)
    assert "measured without FuxiCTR" in outcome.trouble
    assert not outcome.failed
    assert "fuxictr" not in told[-1]
    monkeypatch.setattr(run, "FUXICTR", tmp_path)
    assert run.run_part("dlrm_speed", run.PARTS["dlrm_speed"], args).trouble is None
    assert told[-1][told[-1].index("torchrec") + 1] == "fuxictr"


def test_every_part_has_a_script_and_every_size() -> None:
    run = script("run")
    for part in run.PARTS.values():
        assert (BENCHMARKS / part.script).is_file()
        for size in run.SIZES:
            part.words(size)
