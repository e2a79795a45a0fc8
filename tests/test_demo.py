"""The demo from fetching to the picture, on a small data set in MovieLens' layout."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
NUM_USERS, NUM_ITEMS = 40, 30


def write_raw(folder: Path) -> None:
    """2,000 ratings that follow users' and items' tastes, as `embank data get movielens-100k` would leave them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    taste, quality = rng.normal(size=NUM_USERS), rng.normal(size=NUM_ITEMS)
    users, items = rng.integers(0, NUM_USERS, 2000), rng.integers(0, NUM_ITEMS, 2000)
    ratings = np.where(taste[users] + quality[items] + rng.normal(size=2000) / 2 > 0, 5, 1)
    files = {
        "inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
        + [f"{u}\t{i}\t{r}\t{t}" for t, (u, i, r) in enumerate(zip(users, items, ratings, strict=True))],
        "user": ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
        + [f"{u}\t{20 + u % 30}\t{'MF'[u % 2]}\tother\t1000{u}" for u in range(NUM_USERS)],
        "item": ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
        + [f"{i}\tFilm {i}\t199{i % 9}\tDrama War" for i in range(NUM_ITEMS)],
    }
    for kind, lines in files.items():
        (folder / f"ml-100k.{kind}").write_text("\n".join(lines) + "\n")


def test_the_demo_ends_with_a_table_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = importlib.util.spec_from_file_location("embank_demo", ROOT / "examples/demo.py")
    assert source is not None
    assert source.loader is not None
    demo = importlib.util.module_from_spec(source)
    source.loader.exec_module(demo)
    config = yaml.safe_load((ROOT / "examples/movielens.yaml").read_text())
    config["train"] |= {"epochs": 8, "num_threads": 1}
    config["data"]["batch_size"] = 64
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    write_raw(tmp_path / "demo" / "raw")
    monkeypatch.setattr(demo, "CONFIG", tmp_path / "small.yaml")
    monkeypatch.setattr(demo, "SEEDS", "0")
    monkeypatch.setattr(demo, "BUDGETS", "0.5")
    monkeypatch.setattr(sys, "argv", ["demo.py", str(tmp_path / "demo")])
    demo.main()
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    aucs = {line[0]: float(line[2]) for line in lines if line and line[0] in ("full", "hash", "mgqe")}
    assert set(aucs) == {"full", "hash", "mgqe"}, lines
    assert aucs["full"] > 0.8
    assert all(auc > 0.65 for auc in aucs.values()), aucs
    assert (tmp_path / "demo/sweep/pareto.png").stat().st_size > 10_000
