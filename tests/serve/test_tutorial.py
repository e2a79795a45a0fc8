"""The tutorial runs as it stands, and says what it says it does."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from tests.pages import HAS_CURL, ROOT, Followed, says


@pytest.mark.slow
def test_the_tutorial_runs_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Followed(ROOT / "docs/serving_tutorial.md") as page:
        said = page.follow()
    _, _, train, _, _, scores, _, answer, refusal, *said = said
    _, evaluated, drift, _, _, before, after, _, delta, reloaded, other, new = said
    assert 0.77 < float(re.findall(r"test AUC +([\d.]+)", train)[0]) < 0.81
    assert 1.6 < float(re.findall(r"calibration +([\d.]+)", evaluated)[0]) < 2.2
    assert re.search(r"item_id .* much .*\n", drift)
    losses = [float(re.findall(r"logloss +([\d.]+)", text)[0]) for text in (before, after)]
    assert losses == [pytest.approx(0.39, abs=0.02), pytest.approx(0.34, abs=0.02)]
    frame = pl.read_csv("scores.csv")
    assert (frame.columns, len(frame)) == (["user_id", "item_id", "score"], 4000)
    if HAS_CURL:
        first, second, third = (json.loads(text) for text in (answer, other, reloaded))
        assert first["scores"] == pytest.approx([float(scores[1:].split()[0])], abs=1e-7)
        assert second["scores"] == pytest.approx([float(new.strip("[]\n"))], abs=1e-7)
        assert second["scores"] != pytest.approx(first["scores"], abs=1e-3)
        assert second["version"] == third["version"] != first["version"]
        assert f"version {first['version']} to {second['version']}" in delta
        assert json.loads(refusal)["field"] == "tags"


def test_what_a_page_shows_is_compared() -> None:
    assert says("a  1.5\nb 22,000 bytes of 3f9a5b6c7d8e\n", "b 7 bytes of 111111111111\n")
    assert says('{"scores":[0.5],"version":"deadbeef0000"}', '{"scores":[0.014733679934835153],"version":...')
    assert says("one\ntwo 3 and more\nthree\n", "two 4 ...\nthree\n")
    assert not says("one\ntwo 3 and more\nthree\n", "two 4\nthree\n")
    assert not says("b 22 bytes", "b 22 rows")
