"""`embank delta` and `embank apply`: what they print, and their exit codes."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from embank.pipelines.cli.app import app
from embank.tables.errors import CheckpointError
from tests.deltas.bundles import chain, files


def test_from_bundle_to_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = chain(tmp_path, 1)
    runner = CliRunner()
    done = runner.invoke(app, ["delta", str(old), str(new), "--out", str(tmp_path / "d")])
    assert done.exit_code == 0, done.output
    printed = done.output + capsys.readouterr().out
    assert "a      1,000        3         0    108" in printed
    assert "of the bundle's" in printed
    done = runner.invoke(app, ["apply", str(old), str(tmp_path / "d"), "--out", str(tmp_path / "result")])
    assert done.exit_code == 0, done.output
    assert files(tmp_path / "result") == files(new)
    done = runner.invoke(app, ["apply", str(new), str(tmp_path / "d"), "--out", str(tmp_path / "again")])
    assert isinstance(done.exception, CheckpointError)
    assert done.exception.exit_code == 2
    assert "the bundle already has it" in str(done.exception)
