"""Two ranks train what one process trains: dense parts by their mean gradient, rows spread over both."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import Ranks
from tests.lm.jobs import stop_on_rank, train_on_rank
from tests.lm.small import timeless, train_lm

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["none", "engram", "stem"])
def test_two_ranks_are_one_process(two: Ranks, texts: Path, tmp_path: Path, kind: str) -> None:
    sections: dict[str, Any] = {"memory": {"kind": kind}, "train": {"eval_every": 12}}
    alone = train_lm(texts, tmp_path / "alone", **sections)
    first, second = two.run(train_on_rank, texts, tmp_path / "both", False, sections)
    assert first["bits_per_byte"] == second["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-4)
    assert first["valid_bits_per_byte"] == pytest.approx(alone["valid_bits_per_byte"], rel=1e-4)


def test_a_run_goes_on_with_another_number_of_ranks(two: Ranks, texts: Path, tmp_path: Path) -> None:
    from embank.pipelines.runs.folder import RunFolder

    sections: dict[str, Any] = {"memory": {"kind": "engram"}, "train": {"checkpoint_every": 10}}
    whole, _ = two.run(train_on_rank, texts, tmp_path / "run", False, sections)
    folder = RunFolder(tmp_path / "run")
    folder.result.unlink()
    assert len(folder.saved()) == 1  # the last one, which is the best one
    again = train_lm(texts, tmp_path / "run", resume=True, **sections)
    assert again["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=1e-5)


def test_columns_over_two_ranks_are_one_process(two: Ranks, texts: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "memory": {"kind": "stem"},
        "train": {"row_optimizer": "adagrad", "row_lr": 0.05},
        "rows": {"cut": "columns"},
    }
    alone = train_lm(texts, tmp_path / "alone", **sections)
    first, second = two.run(train_on_rank, texts, tmp_path / "both", False, sections)
    assert first["bits_per_byte"] == second["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-4)
    uneven = {**sections, "model": {"hidden": 21}, "rows": {"cut": "columns", "backend": "torch"}}
    said = two.run(train_on_rank, texts, tmp_path / "uneven", False, uneven)
    assert all("dim 21 can't be cut evenly into 2 columns" in message for message in said)


def test_ranks_leave_out_other_embeddings_and_go_on_with_theirs(two: Ranks, texts: Path, tmp_path: Path) -> None:
    from embank.pipelines.lm.state import SavedLm
    from embank.pipelines.runs.folder import RunFolder

    sections: dict[str, Any] = {"model": {"embedding_dropout": 0.5}}
    whole = two.run(train_on_rank, texts, tmp_path / "whole", False, sections)
    drawn = SavedLm(RunFolder(tmp_path / "whole").saved()[-1]).dense["generators"]
    assert len(drawn) == 2
    assert not drawn[0].equal(drawn[1])
    stopped = two.run(stop_on_rank, texts, tmp_path / "parts", 9, sections)
    assert all("--resume" in said for said in stopped)
    parts = two.run(train_on_rank, texts, tmp_path / "parts", True, sections)
    assert [timeless(result) for result in parts] == [timeless(result) for result in whole]


def test_uneven_batches_are_refused(two: Ranks, texts: Path, tmp_path: Path) -> None:
    said = two.run(train_on_rank, texts, tmp_path / "run", False, {"train": {"batch_size": 3}})
    assert all("train.batch_size is 3, which 2 ranks can't share evenly" in message for message in said)
