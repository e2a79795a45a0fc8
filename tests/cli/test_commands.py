"""The command line: exit codes, messages, and the road from raw rows to a report."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.processes import embank
from tests.training.runs import raw_config, write_data

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--help"], 0, "train"),
        (["train", "--help"], 0, "Example"),
        (["bogus"], 2, "No such command"),
        (["train"], 2, "Missing"),
        (
            ["train", "missing.yaml", "--out", "run"],
            2,
            "embank: there is no configuration file 'missing.yaml'; give the path of a YAML file",
        ),
        (["inspect", "nothing"], 2, "embank: 'nothing' holds no run and no bundle"),
        (["serve", "nothing"], 2, "embank: 'nothing' holds no bundle and no run"),
        (["data", "get", "movielens", "--out", "x"], 2, "Did you mean 'movielens-100k'?"),
        (["prepare", "--format", "criteo", "--input", "gone.txt", "--out", "x"], 2, "there is no file gone.txt"),
        (["prepare", "--like", "gone", "--input", "gone.txt", "--out", "x"], 2, "'gone' holds no run, no bundle and"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_exit_codes(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = embank(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["search"], ["sweep", "--models", "fm", "--methods", "hash", "--budgets", ".5"]])
def test_a_wrong_value_is_told_by_where_it_was_set(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw_config(Path("data"))))
    done = embank(command[0], "run.yaml", *command[1:], "--set", "train.lr=x", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "embank: run.yaml with --set train.lr=x: train.lr is 'x'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_from_rows_to_a_report(tmp_path: Path) -> None:
    lines = [f"{i % 2},u{i % 7},i{i % (3 + i % 2)},{'a|b' if i % 2 else 'c'},{i % 11}" for i in range(400)]
    (tmp_path / "log.csv").write_text("click,user,item,tags,price\n" + "\n".join(lines) + "\n")
    columns = {
        "label": {"column": "click"},
        "categorical": ["user", "item"],
        "multivalued": {"tags": "|"},
        "numeric": {"price": "log1p"},
        "split": {"by": "hash", "ratios": [0.8, 0.1, 0.1]},
    }
    (tmp_path / "columns.yaml").write_text(yaml.safe_dump(columns))
    config = raw_config(Path("data"), model={"name": "deepfm", "hidden_units": [8]})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    steps = [
        ["prepare", "--format", "csv", "--input", "log.csv", "--config", "columns.yaml", "--out", "data"],
        ["data", "describe", "data"],
        ["train", "run.yaml", "--out", "run", "--set", "train.epochs=2"],
        ["evaluate", "run", "--data", "data", "--split", "valid"],
        ["inspect", "run"],
        ["export", "run", "--out", "shipped/tables"],
        ["evaluate", "shipped/tables", "--data", "data", "--split", "valid"],
        ["inspect", "shipped/tables"],
        ["prepare", "--like", "run", "--input", "log.csv", "--out", "monday", "--split", "test"],
    ]
    said = []
    for step in steps:
        done = embank(*step, cwd=tmp_path)
        assert done.returncode == 0, f"{step}: {done.stderr}"
        said.append(done.stdout)
    assert "tags" in said[1]
    assert "test AUC" in said[2]
    assert "auc" in said[3]
    assert "all checksums match" in said[4]
    assert "shipped/tables: 6 tables" in said[5]
    assert [line for line in said[6].splitlines() if "auc" in line] == [
        line for line in said[3].splitlines() if "auc" in line
    ]
    assert (tmp_path / "shipped" / "tables.evaluations.jsonl").is_file()
    assert "all checksums match" in said[7]
    assert "rows 8 x 4 float32" in said[7]
    assert "vocabularies and transforms of run 'run'" in said[8]
    again = embank(*steps[2], cwd=tmp_path)
    assert again.returncode == 2
    assert "already holds a run; continue it with --resume" in again.stderr
    failed = embank(
        "train",
        "run.yaml",
        "--out",
        "bad",
        "--set",
        "train.table_lr=1e38",
        "--set",
        "train.table_optimizer=sgd",
        cwd=tmp_path,
    )
    assert failed.returncode == 1
    assert "the loss is" in failed.stderr or "not finite" in failed.stderr


def test_debug_may_stand_anywhere(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", rows={"train": 50, "valid": 0, "test": 10})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw_config(data)))
    for arguments in (["--debug", "train"], ["train", "--debug"]):
        done = embank(*arguments, tmp_path / "run.yaml", "--out", tmp_path / "run")
        assert "Traceback" in done.stderr
        assert "has no rows in its valid split" in done.stderr


def test_shells_complete_commands() -> None:
    """What bash asks when Tab is pressed after `embank s`."""
    script = Path(sys.executable).with_name("embank")
    asked = {"_EMBANK_COMPLETE": "complete_bash", "COMP_WORDS": "embank s", "COMP_CWORD": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([script], env=asked, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["search", "serve", "sweep"]


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchrec":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize(
    "code",
    [
        "from embank.tables import TableCollection",
        "from embank.tables import PipelinedTables",
        "from embank.pipelines.cli import main; sys.argv = ['embank', 'train', 'none.yaml', '--out', 'x']; main()",
    ],
)
def test_without_torchrec_it_says_what_to_install(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "torchrec is not installed; " in done.stderr
    assert "pip install --no-deps torchrec==" in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import embank.compression",
        "from embank.pipelines.cli import main; sys.argv = ['embank', 'methods']; main()",
    ],
)
def test_what_trains_nothing_does_without_torchrec(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
