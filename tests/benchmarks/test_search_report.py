"""The comparison of searched tables with baselines: at equal bytes, paired by seed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report() -> ModuleType:
    source = importlib.util.spec_from_file_location("search_report", ROOT / "benchmarks/search_report.py")
    assert source is not None
    assert source.loader is not None
    module = importlib.util.module_from_spec(source)
    sys.modules["search_report"] = module
    source.loader.exec_module(module)
    return module


def line(report: ModuleType, nbytes: float, *aucs: float) -> object:
    return report.Line(name="hash", budget=None, nbytes=nbytes, by_seed=dict(enumerate(aucs)), validation=0.5)


def test_sizes_between_two_lines_are_interpolated_over_the_logarithm(report: ModuleType) -> None:
    lines = [line(report, 100, 0.6, 0.62), line(report, 400, 0.8, 0.82)]
    figures, is_equal = report.at_bytes(lines, 200)
    assert is_equal
    assert figures == {0: pytest.approx(0.7), 1: pytest.approx(0.72)}
    assert report.at_bytes(lines, 104) == ({0: 0.6, 1: 0.62}, True)
    assert report.at_bytes(lines, 50) == ({0: 0.6, 1: 0.62}, False)


def test_differences_are_paired_by_seed(report: ModuleType) -> None:
    searched = line(report, 100, 0.70, 0.75)
    assert report.difference(searched, [line(report, 101, 0.69, 0.73)]) == "+0.0150 ± 0.0071"
    assert report.difference(searched, [line(report, 900, 0.69, 0.73)]).endswith("(hash has no such size)")
    assert report.difference(searched, []) == "-"
