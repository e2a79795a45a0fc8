"""From files to ids: splits by document, no text twice, a tokenizer of the training split, bytes that add up."""

from pathlib import Path

import numpy as np
import pytest
import torch

from embank.pipelines.lm.corpus import (
    PART_BYTES,
    Document,
    read_documents,
    read_splits,
    split_documents,
    standard_library,
)
from embank.pipelines.lm.tokenizer import END, decode, encode, token_bytes, train_tokenizer
from embank.pipelines.lm.tokens import Corpus, prepare_corpus
from embank.tables import CheckpointError, ConfigError, DataError
from tests.lm.small import lm_config

pytestmark = pytest.mark.slow


def test_standard_library_has_sources_and_no_tests() -> None:
    names = {path.name for path in standard_library()}
    assert {"argparse.py", "decoder.py"} <= names
    assert not any("test" in path.parts for path in standard_library())


def test_files_are_documents_and_copies_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    (tmp_path / "c.txt").write_text("two")
    (tmp_path / "d.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "e.txt").write_text("  \n")
    (tmp_path / ".hidden").write_text("three")
    assert [d.text for d in read_documents([tmp_path])] == ["one", "two"]


def test_long_files_are_cut_at_blank_lines(tmp_path: Path) -> None:
    book = "".join(f"{number:0999}\n\n" for number in range(200))
    (tmp_path / "book.txt").write_text(book)
    parts = [d.text for d in read_documents([tmp_path / "book.txt"])]
    assert "".join(parts) == book
    assert all(part.endswith("\n\n") and PART_BYTES <= len(part) < PART_BYTES + 1001 for part in parts[:-1])


def test_a_single_file_is_cut_until_no_split_is_empty(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("".join(f"{number:0199}\n\n" for number in range(1000)))
    splits = read_splits([tmp_path / "book.txt"], ratios=(0.9, 0.05, 0.05), seed=0)
    assert all(splits.values())
    assert sum(len(d.text) for members in splits.values() for d in members) == 201 * 1000
    (tmp_path / "line.txt").write_text("a word " * 30_000)
    with pytest.raises(DataError, match="no document is in split .*, of 1 in all; give more text .*lines.$"):
        read_splits([tmp_path / "line.txt"], ratios=(0.9, 0.05, 0.05), seed=0)


def test_no_text_and_missing_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no UTF-8 text in '.*'; give text files"):
        read_documents([tmp_path])
    with pytest.raises(DataError, match=r"'.*gone' is no file or folder"):
        read_documents([tmp_path / "gone"])


def _documents(count: int) -> list[Document]:
    return [Document(name=str(i), text=f"text {i}") for i in range(count)]


def test_a_document_keeps_its_split_whatever_else_there_is() -> None:
    few = split_documents(_documents(300), ratios=(0.8, 0.1, 0.1), seed=3)
    many = split_documents(_documents(600), ratios=(0.8, 0.1, 0.1), seed=3)
    for split, members in few.items():
        assert {d.text for d in members} <= {d.text for d in many[split]}
    assert sum(map(len, many.values())) == 600
    assert 0.74 < len(many["train"]) / 600 < 0.86
    assert [d.text for d in many["train"]] != sorted(d.text for d in many["train"])


def test_another_seed_splits_otherwise_and_an_empty_split_is_refused() -> None:
    one, other = (split_documents(_documents(300), ratios=(0.8, 0.1, 0.1), seed=seed) for seed in (0, 1))
    assert {d.text for d in one["test"]} != {d.text for d in other["test"]}
    with pytest.raises(DataError, match="no document is in split .* or another corpus.seed"):
        split_documents(_documents(3), ratios=(0.8, 0.1, 0.1), seed=0)


@pytest.mark.parametrize("text", ["", "plain words", "naïve ☃ \U0001f600\n\ttabs", f"a {END} b", "\x00\x7f"])
def test_every_text_comes_back(text: str) -> None:
    tokenizer = train_tokenizer(["some words to merge, words to merge"] * 3, vocab_size=270)
    ids = encode(tokenizer, text)
    assert 0 not in ids
    assert decode(tokenizer, ids) == text
    assert sum(token_bytes(tokenizer)[id] for id in ids) == len(text.encode())


def test_streams_hold_the_documents_with_ends_between(corpus: Corpus, texts: Path) -> None:
    documents = split_documents(read_documents([texts]), ratios=(0.7, 0.15, 0.15), seed=0)
    for split, members in documents.items():
        ids = corpus.ids(split)
        pieces = decode(corpus.tokenizer, ids.tolist())
        assert pieces == "".join(d.text for d in members)
        assert int((ids == 0).sum()) == len(members) + 1
        facts = corpus.facts["splits"][split]
        assert facts["bytes"] == int(corpus.token_bytes_V[ids].sum()) == len(pieces.encode())
        assert facts["tokens"] == len(ids)


def test_the_tokenizer_saw_the_training_split_only(texts: Path, tmp_path: Path) -> None:
    config = lm_config(texts).corpus
    documents = split_documents(read_documents([texts]), ratios=config.ratios, seed=config.seed)
    alone = train_tokenizer((d.text for d in documents["train"]), vocab_size=config.vocab_size)
    made = prepare_corpus(config, tmp_path / "corpus")
    assert made.tokenizer.get_vocab() == alone.get_vocab()


def test_a_corpus_is_made_once_and_found_again(corpus: Corpus, texts: Path, tmp_path: Path) -> None:
    again = prepare_corpus(lm_config(texts).corpus, corpus.folder)
    afresh = prepare_corpus(lm_config(texts).corpus, tmp_path / "corpus")
    assert again.fingerprint == corpus.fingerprint == afresh.fingerprint
    with pytest.raises(ConfigError, match=r"was made with corpus.vocab_size = 300, the configuration says 310"):
        prepare_corpus(lm_config(texts, corpus={"vocab_size": 310}).corpus, corpus.folder)
    np.save(afresh.folder / "valid.npy", np.zeros(4, dtype=np.uint16))
    with pytest.raises(CheckpointError, match=r"valid.npy' has .* Remove the folder"):
        prepare_corpus(lm_config(texts).corpus, afresh.folder)


def test_ids_are_cut(corpus: Corpus) -> None:
    assert torch.equal(corpus.ids("train", most=7), corpus.ids("train")[:7])
