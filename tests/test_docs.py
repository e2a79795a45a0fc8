"""Every Python block of the README and of docs/ runs, page by page and in order, in an empty folder."""

import csv
import random
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from torchrec import KeyedJaggedTensor

from embank.pipelines import export_run, prepare
from embank.tables import RowOptimizer, RowTier, TableCollection, TableSpec, save_bundle
from embank.tables.method.registry import METHODS
from embank.tables.serving.codecs.registry import CODECS
from tests.training.runs import train, write_data

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
ALL_PAGES = sorted(
    (*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *(ROOT / "docs").rglob("*.md"))
)
FOLLOWED = {"import.md", "import_tutorial.md", "lm_tutorial.md", "serving_tutorial.md", "vectors_tutorial.md"}
"""Pages whose commands run too, by `tests.pages`."""
PAGES = sorted(
    page
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if BLOCK.search(page.read_text()) and page.name not in FOLLOWED
)

Names = dict[str, Any]


def _specs() -> list[TableSpec]:
    return [TableSpec(name="user", num_embeddings=100, embedding_dim=4, feature_names=["user"])]


def _batch(keys: list[str], *, num_ids: int) -> KeyedJaggedTensor:
    size = 8
    ids = torch.randint(0, num_ids, (len(keys) * size,), generator=torch.Generator().manual_seed(0))
    return KeyedJaggedTensor(keys=keys, values=ids, lengths=torch.ones(len(keys) * size, dtype=torch.int32))


def _readme(folder: Path) -> Names:
    """A batch, its targets, and bundles where the tour has left them: one of tables, one of the columns file."""
    save_bundle(folder / "runs/hash/bundle", TableCollection(_specs()))
    [columns] = re.findall(r"^```yaml\n# columns.yaml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.M)
    _shop(folder, yaml.safe_load(columns), name="clicks")
    kjt = _batch(["user", "item", "last_item"], num_ids=1000)
    return {"kjt": kjt, "batches": [(torch.rand(8, 13), kjt, torch.ones(8))] * 2}


def _data(folder: Path) -> Names:
    """The prepared folder of the columns file."""
    write_data(folder / "data/clicks", single={"user_id": 5})
    return {}


def _sharding(folder: Path) -> Names:
    return {"torch": torch, "specs": _specs(), "optimizer": RowOptimizer()}


def _tiers(folder: Path) -> Names:
    return {
        "Path": Path,
        "RowTier": RowTier,
        "TableCollection": TableCollection,
        "specs": _specs(),
        "kjt": _batch(["user"], num_ids=100),
    }


def _shop(folder: Path, columns: dict[str, Any], *, name: str) -> None:
    """A log, `tomorrow.csv`, a run on the log, and its bundle."""
    rng = random.Random(0)

    def write(file: Path, num_rows: int) -> None:
        with file.open("w", newline="") as opened:
            log = csv.writer(opened)
            log.writerow(["ts", "user_id", "item_id", "gender", "genres", "tags", "price", "rating", "click"])
            for row in range(num_rows):
                genres = "|".join(rng.sample(["Drama", "War", "Comedy"], row % 3))
                tags = "|".join(rng.sample(["sport", "leather", "used"], row % 3))
                price = "" if row % 5 == 0 else rng.randrange(100)
                user, item, gender = f"u{rng.randrange(20)}", f"i{rng.randrange(30)}", rng.choice("FM")
                log.writerow([row, user, item, gender, genres, tags, price, 1 + 4 * (row % 2), row % 2])

    write(folder / "log.csv", 400)
    write(folder / "tomorrow.csv", 30)
    prepare(columns, folder / "log.csv", folder / "data" / name, format="csv")
    train(folder / "data" / name, folder / "runs" / name, tables={"dim": 4}, train={"epochs": 1})
    export_run(folder / "runs" / name, out=folder / "bundles" / name)


def _serving(folder: Path) -> Names:
    columns = {
        "label": "click",
        "categorical": ["user_id", "item_id"],
        "multivalued": {"tags": "|"},
        "numeric": {"price": {"transform": "log1p", "missing": "indicator"}},
        "split": {"by": "ratio", "ratios": [0.8, 0.1, 0.1]},
    }
    _shop(folder, columns, name="shop")
    return {}


SETUP: dict[str, Callable[[Path], Names]] = {
    "README.md": _readme,
    "docs/data.md": _data,
    "docs/serving.md": _serving,
    "docs/sharding.md": _sharding,
    "docs/tiers.md": _tiers,
}
"""What a page's first block takes for granted, because the text before it says so."""


@pytest.fixture(name="alone")
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder, the environment of a torchrun with one rank, and a registry that forgets what a page adds to
    it."""
    monkeypatch.chdir(tmp_path)
    for registry in (METHODS, CODECS):
        monkeypatch.setattr(registry, "local", dict(registry.local))
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(key, value)
    yield tmp_path
    if dist.is_initialized():
        dist.destroy_process_group()


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_run(page: Path, alone: Path) -> None:
    setup = SETUP.get(name_of(page))
    names: Names = {"__name__": "docs"} | (setup(alone) if setup else {})
    text = page.read_text()
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        # Blank lines before the code, so that a traceback names the line of the page.
        exec(compile("\n" * line + block[1], str(page), "exec"), names)


def test_no_block_is_missed() -> None:
    """A fence that is indented or misspelt would be skipped in silence."""
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text()
        assert len(BLOCK.findall(text)) == len(re.findall(r"```[ \t]*(?:python|py)\b", text)), page


PRIVATE = re.compile(
    r"\b(?:from|import)\s+embank\.(?!tables\.(?:memory|torchrec)\s+import)\w+\.\w+|\bfrom\s+embank[\w.]+\s+import\s+[^\n]*\b_\w+"
)
"""An import from inside a package, or of a name that it keeps to itself."""


def test_pages_and_examples_import_public_names() -> None:
    """From `embank.tables`, its `memory` and `torchrec`, `embank.compression` and so on, never from a path inside
    them."""
    sources = [*ALL_PAGES, *(ROOT / "examples").rglob("*.py")]
    private = {name_of(source): found for source in sources if (found := PRIVATE.findall(source.read_text()))}
    assert not private
    assert PRIVATE.search("from embank.tables.specs import TableSpec")
    assert PRIVATE.search("from embank.tables import _HOME")
    assert PRIVATE.search("from embank.tables.memory.session import MemorySession")
    assert not PRIVATE.search("from embank.tables.memory import MemorySession")


@pytest.mark.parametrize("package", ["tables", "compression", "ctr_models", "pipelines", "search"])
def test_public_names_exist(package: str) -> None:
    module = import_module(f"embank.{package}")
    names = getattr(module, "__all__", [])  # a package without any has no public names yet
    for name in names:
        assert getattr(module, name) is not None, name
    assert set(getattr(module, "_HOME", names)) == set(names)


ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


@pytest.mark.parametrize("package", ["tables", "compression", "search", "ctr_models", "pipelines"])
def test_the_tree_of_the_architecture_names_every_folder(package: str) -> None:
    home = ROOT / package / "embank" / package
    (listed,) = re.findall(rf"^{package}/embank/{package}/\n((?:  .*\n)+)", ARCHITECTURE, flags=re.MULTILINE)
    named = {line.split()[0].rstrip("/") for line in listed.splitlines()}
    modules = (path for path in home.rglob("*.py") if path.parent != home)
    assert named == {path.parent.relative_to(home).as_posix() for path in modules}


def test_the_answers_of_the_architecture_are_where_it_says() -> None:
    answers = re.findall(r"^\|[^|]*\| `(embank\.[\w.]+)` \| (.*) \|$", ARCHITECTURE, flags=re.MULTILINE)
    assert len(answers) > 10
    for module, names in answers:
        for name in re.findall(r"`([\w.]+)`", names):
            found: Any = import_module(module)
            for part in name.split("."):
                found = getattr(found, part)


def test_lines_are_at_most_120_characters_long() -> None:
    """Of every page; but for the tables that `embank sweep` and benchmarks write."""
    long = {
        f"{name_of(page)}:{number}": len(line)
        for page in ALL_PAGES
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if len(line) > 120 and not (page.name in ("leaderboard.md", "tables.md") and line.startswith("|"))
    }
    assert not long


def test_links_lead_somewhere() -> None:
    """Of every page to files of this repository."""
    for page in ALL_PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"
