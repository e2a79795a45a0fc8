"""Scripts of benchmarks/ as modules, and the results that they write."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))  # scripts import each other as they do when they run
import records  # noqa: E402


def script(name: str) -> ModuleType:
    """The script benchmarks/NAME.py, loaded but not run."""
    found = importlib.util.spec_from_file_location(name.replace("/", "_"), BENCHMARKS / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def run_of(path: Path) -> records.Run:
    """The single run of a result file."""
    (run,) = records.load(path).runs
    return run


def by_case(run: records.Run, metric: str) -> dict[tuple[object, ...], records.Record]:
    """The records of a metric, by the values of their cases."""
    return {tuple(record.case.values()): record for record in run.records if record.metric == metric}
