"""The method and the codec of docs/methods.md as a package of somebody else's: installed, and nothing else edited, they
are wherever ours are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.training.runs import raw_config, write_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = "[embank.methods]\nmodulo = embank_modulo:Modulo\n\n[embank.codecs]\nhalves = embank_modulo:Halves\n"
TESTS = "modulo and not odd and not wise or modulo and row_wise and equals or halves and (tt_rec or mgqe)"
"""Of the contract suites: all of the method on one process, one case on two, and the codec under methods of ours."""
LOADS = """
import sys
import torch
from embank.compression import build_table
from embank.tables import load_bundle, registered_codecs

bundle = load_bundle(sys.argv[1])
print([(spec.method, pack.manifest()["spine"]) for spec, pack in bundle.packed_tables()])
print("halves" in registered_codecs())
table = build_table(method="modulo", num_embeddings=100, embedding_dim=4, budget=0.5)
ids = torch.arange(100)
plain, halves = table.pack(), table.pack(codec="halves")
print(plain.nbytes(), halves.nbytes(), torch.equal(halves.lookup(ids), plain.lookup(ids).half().float()))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and what `pip` would note of it."""
    folder = tmp_path_factory.mktemp("site")
    page = (ROOT / "docs/methods.md").read_text()
    blocks = [
        re.search(rf"^## {title}\n.*?^```python\n(.*?)^register_", page, flags=re.DOTALL | re.MULTILINE)
        for title in ("Adding one", "Adding a codec")
    ]
    (folder / "embank_modulo.py").write_text("\n".join(block[1] for block in blocks if block))
    info = folder / "embank_modulo-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: embank-modulo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def python(site: Path, *arguments: object) -> str:
    """What a Python that has the package prints.

    Raises:
        AssertionError: it ended with an error.
    """
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


def test_the_contracts_hold(site: Path) -> None:
    files = [f"tests/contracts/test_{name}.py" for name in ("methods", "export", "codecs", "sharding")]
    printed = python(site, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files, "-k", TESTS)
    passed = re.search(r"(\d+) passed", printed)
    assert passed, printed
    assert int(passed[1]) >= 27, printed


def test_it_is_listed_swept_and_served(site: Path, tmp_path: Path) -> None:
    """From the list of methods to a bundle that another process loads."""
    assert re.search(r"^\W*modulo\W.*negated", python(site, "-m", "embank", "methods"), flags=re.MULTILINE)
    config, out = tmp_path / "run.yaml", tmp_path / "sweep"
    config.write_text(yaml.safe_dump(raw_config(write_data(tmp_path / "data"), train={"epochs": 1})))
    sweep = ("--methods", "modulo", "--budgets", "0.5", "--seeds", "0", "--out", out)
    python(site, "-m", "embank", "sweep", config, *sweep)
    assert "modulo" in (out / "leaderboard.csv").read_text()
    (bundle,) = out.glob("**/bundle")
    methods, is_codec, packed = python(site, "-c", LOADS, bundle).splitlines()
    assert "('modulo', 'Modulo')" in methods
    assert is_codec == "True"
    assert packed == f"{4 * 50 * 4} {2 * 50 * 4} True"
