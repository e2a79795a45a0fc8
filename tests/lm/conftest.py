"""A corpus and a trained run that several tests look at."""

from pathlib import Path

import pytest

from embank.pipelines.lm.tokens import Corpus, prepare_corpus
from tests.lm.small import lm_config, train_lm, write_texts


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("lm") / "texts")


@pytest.fixture(scope="session")
def corpus(texts: Path) -> Corpus:
    return prepare_corpus(lm_config(texts).corpus, texts.parent / "corpus")


@pytest.fixture(scope="session")
def run(texts: Path) -> Path:
    """An Engram run that is complete."""
    train_lm(texts, texts.parent / "run", memory={"kind": "engram", "conv": True})
    return texts.parent / "run"
