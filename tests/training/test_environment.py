"""What a run notes of the code that made it."""

import subprocess
from pathlib import Path

import pytest

from embank.pipelines.runs import environment


def git(folder: Path, *arguments: str) -> str:
    user = ["-c", "user.email=a@b", "-c", "user.name=a"]
    return subprocess.run(["git", *user, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_commit_is_that_of_our_checkout_and_no_other_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed below the checkout of a user, embank is none of it: other commits of theirs change no provenance."""
    installed, checkout = tmp_path / "mine/.venv/environment.py", tmp_path / "ours/embank/environment.py"
    for file in (installed, checkout):
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "mine/.gitignore").write_text(".venv")
    for folder in (tmp_path / "mine", tmp_path / "ours"):
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-qm", "first")
    monkeypatch.setattr(environment, "__file__", str(installed))
    assert environment.environment_of("")["git_commit"] is None
    monkeypatch.setattr(environment, "__file__", str(checkout))
    assert environment.environment_of("")["git_commit"] == git(tmp_path / "ours", "rev-parse", "HEAD").strip()
