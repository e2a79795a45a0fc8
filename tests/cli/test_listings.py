"""What the command line lists and makes, without a process of its own: names, data sets, generated logs."""

from importlib.metadata import version
from pathlib import Path

from typer.testing import CliRunner

from embank.ctr_models import MODELS
from embank.pipelines.cli.app import app
from embank.pipelines.data.sources.catalog import DATASETS
from embank.tables import registered_methods


def said(*arguments: object) -> list[str]:
    """The lines of a command that succeeds."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return [line.rstrip() for line in done.stdout.splitlines()]


def test_the_version() -> None:
    assert said("--version") == [f"embank {version('embank')}"]


def test_every_method_has_its_line() -> None:
    lines = said("methods")
    assert [line.split()[0] for line in lines[1:]] == registered_methods()
    words = [" ".join(line.split()) for line in lines]
    assert "tt_rec Tensor-train tables: a row is a product of three small matrices." in words
    assert all(len(line.split()) > 5 for line in lines[1:])


def test_every_codec_of_rows_has_its_line_with_its_bytes() -> None:
    lines = [line.split() for line in said("codecs")]
    assert {"int4", "pca[N][+CODEC]", "binary[N]", "sparse"} <= {line[0] for line in lines}
    assert "product" not in {line[0] for line in lines}  # made while its method trains
    (int4,) = [line for line in lines if line[0] == "int4"]
    assert int4[1] == "0.141"
    assert all(len(line) > 5 for line in lines[1:])


def test_every_model_has_its_line() -> None:
    lines = said("models")
    assert [line.split()[0] for line in lines[1:]] == list(MODELS)
    assert all(len(line.split()) > 3 for line in lines[1:])


def test_every_data_set_has_its_line() -> None:
    lines = said("data", "list")
    for dataset in DATASETS.values():
        assert any(line.startswith(dataset.name) and dataset.summary in line for line in lines), dataset.name


def test_a_generated_log_reads_as_criteo_and_tells_the_best_auc(tmp_path: Path) -> None:
    out = tmp_path / "log.tsv"
    lines = said("data", "synth", "--rows", 500, "--out", out, "--scale", 0.001, "--seed", 3)
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert len(rows) == 500
    assert {len(row) for row in rows} == {1 + 13 + 26}
    assert {row[0] for row in rows} == {"0", "1"}
    assert any("best" in line and "AUC" in line for line in lines), lines
