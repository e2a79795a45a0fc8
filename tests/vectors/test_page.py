"""The tutorial of vectors as its reader follows it."""

from pathlib import Path

import pytest

from tests.pages import ROOT, Followed


@pytest.mark.slow
def test_the_page_says_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Followed(ROOT / "docs/vectors_tutorial.md") as page:
        said = page.follow()
    assert "int4 *" in said[1]
