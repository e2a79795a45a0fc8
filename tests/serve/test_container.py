"""The container recipe names what there is: files, versions, commands, options, paths. Nothing here runs docker."""

import ast
import fnmatch
import json
import re

import typer
import typer.core

from embank.pipelines.cli.app import app
from embank.pipelines.serve.metrics import PATHS
from embank.pipelines.serve.settings import Settings
from embank.tables.version import embank_version
from tests.pages import ROOT

RECIPE = ROOT / "examples/serving/Dockerfile"
LINES = re.sub(r"^#.*\n", "", RECIPE.read_text(), flags=re.MULTILINE).replace("\\\n", "").splitlines()
WHEEL = f"dist/embank-{embank_version()}-py3-none-any.whl"


def instructions(name: str) -> list[str]:
    """What stands behind an instruction, wherever it occurs."""
    return [line.removeprefix(name).strip() for line in LINES if line.startswith(f"{name} ")]


def test_copied_files_are_there_and_reach_the_builder() -> None:
    ignored, *kept = [
        line
        for line in RECIPE.with_name("Dockerfile.dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert ignored == "*"
    sources = [copy.split()[0] for copy in instructions("COPY")]
    assert [f"!{source}" for source in sources] == kept
    for source in sources:
        assert (ROOT / source).is_file() or fnmatch.fnmatch(WHEEL, source)


def test_pip_installs_what_make_installs() -> None:
    installs = [run for run in instructions("RUN") if "pip install" in run]
    [torch] = re.findall(r"torch==\S+", (ROOT / "Makefile").read_text())
    assert installs[0].endswith(f" {torch}")
    assert all("--no-deps" in run for run in installs[1:])
    placed = {copy.split()[1] for copy in instructions("COPY")}
    assert all(run.split()[-1].startswith(tuple(placed)) for run in installs[1:])
    assert re.search(r"requires-python = \">=3\.11\"", (ROOT / "pyproject.toml").read_text())
    assert instructions("FROM") == ["python:3.11-slim"]


def test_the_command_takes_these_options() -> None:
    assert [json.loads(text) for text in instructions("ENTRYPOINT")] == [["embank"]]
    [words] = [json.loads(text) for text in instructions("CMD")]
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    serve = command.commands[words[0]]
    given = serve.make_context("serve", words[1:]).params
    assert (str(given["bundle"]), given["host"]) == ("/bundle", "0.0.0.0")
    assert instructions("EXPOSE") == [str(given["port"])] == [str(Settings().port)]


def test_its_health_is_asked_for_where_it_is_told() -> None:
    [check] = [line.split("CMD", 1)[1] for line in LINES if line.startswith("HEALTHCHECK ")]
    program, option, code = json.loads(check)
    assert (program, option) == ("python", "-c")
    ast.parse(code)
    [(port, path)] = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", code)
    assert path in PATHS
    assert int(port) == Settings().port


def test_it_does_not_run_as_root() -> None:
    order = [line.split()[0] for line in LINES if line.strip()]
    [user] = instructions("USER")
    assert int(user) > 0
    assert any(f"useradd --create-home --uid {user} " in run for run in instructions("RUN"))
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert "RUN" not in order[order.index("USER") :]
