"""The tutorial of docs/search.md and examples/search.py, word for word, on a small data set in MovieLens' layout."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from tests.pages import embank
from tests.test_demo import write_raw

from embank.pipelines.runs.records import read_record

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    """What the tutorial tells to type."""
    (block,) = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/search.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the examples; raw data stands where the tutorial's first command, which needs the network,
    would put it."""
    path = tmp_path_factory.mktemp("tutorial")
    shutil.copytree(ROOT / "examples", path / "examples")
    config = yaml.safe_load((ROOT / "examples/movielens.yaml").read_text())
    config["train"]["epochs"] = 2
    (path / "examples/movielens.yaml").write_text(yaml.safe_dump(config))
    write_raw(path / "data/raw")
    return path


def test_the_tutorial_runs_word_for_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    first, *others = commands()
    assert first[:4] == ["embank", "data", "get", "movielens-100k"]
    for program, *words in others:
        assert program == "embank"
        embank(*words)
    assert "**best**" in (folder / "searches/first/results.md").read_text()
    result = read_record(folder / "runs/searched/result.json")
    assert result["serving_ratio"] is None or result["serving_bytes"] > 0
    assert (folder / "bundles/searched").is_dir()


def test_the_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    embank("prepare", "--format", "movielens", "--input", "data/raw", "--out", "data/example")
    monkeypatch.setattr("sys.argv", ["search.py", "data/example"])
    runpy.run_path("examples/search.py", run_name="__main__")
    told = capsys.readouterr().out
    assert told.count("trials, best score") == 2
    assert "150 trials" in told
    assert "# deepfm on example: widths" in told
