"""A corpus as ids: a folder with the tokenizer and one stream of ids per split, made once and checked when read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from embank.pipelines.lm.config import CorpusConfig
from embank.pipelines.lm.corpus import SPLITS, Document, read_splits
from embank.pipelines.lm.tokenizer import encode, token_bytes, train_tokenizer
from embank.pipelines.runs.records import short_digest, write_record
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.storage.checksums import file_digest, verify_checksums, write_checksums
from embank.tables.storage.json_text import read_json
from embank.tables.storage.new_folder import new_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FACTS = "corpus.json"
_CURE = "Remove the folder, and it is made again"


@dataclass(frozen=True)
class Corpus:
    """A corpus in its folder.

    Args:
        folder: what `prepare_corpus` wrote.

    Attributes:
        facts: counts of documents, tokens and bytes by split, and the fingerprint.
    """

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Counts by split, vocabulary size, fingerprint."""
        return read_json(self.folder / FACTS)

    @property
    def fingerprint(self) -> str:
        """Of tokenizer and ids: two corpora with the same one are the same."""
        return str(self.facts["fingerprint"])

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer."""
        return int(self.facts["vocab_size"])

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that made the ids."""
        from tokenizers import Tokenizer

        result: Tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return result

    @cached_property
    def token_bytes_V(self) -> Tensor:  # noqa: N802 # a tensor's shape, as everywhere
        """Bytes of text that each id stands for, int64 [V]."""
        return torch.tensor(token_bytes(self.tokenizer))

    def ids(self, split: str, *, most: int | None = None) -> Tensor:
        """The stream of ids of a split, int64 [N]: documents one after the other, `END` before the first and after
        each."""
        stream = np.load(self.folder / f"{split}.npy", mmap_mode="r")
        return torch.from_numpy(stream[:most].astype(np.int64))


def prepare_corpus(config: CorpusConfig, folder: Path) -> Corpus:
    """The corpus of a configuration in a folder; made if the folder does not exist, verified if it does.

    Args:
        config: which text, how it is split, how many ids.
        folder: where it is or will be.

    Raises:
        DataError: there is no text, or too little of it.
        CheckpointError: the folder is damaged.
        WorkError: it can't be written.
    """
    if folder.exists():
        verify_checksums(folder, kind="corpus", cure=_CURE)
        _refuse_other(Corpus(folder), config)
        return Corpus(folder)
    documents = read_splits(config.paths, ratios=config.ratios, seed=config.seed)
    tokenizer = train_tokenizer((d.text for d in documents["train"]), vocab_size=config.vocab_size)
    return write_corpus(documents, config, folder, tokenizer=tokenizer)


def _asked(config: CorpusConfig) -> dict[str, Any]:
    """What decides on a corpus, as JSON has it."""
    paths = None if config.paths is None else list(config.paths)
    return {"paths": paths, "vocab_size": config.vocab_size, "ratios": list(config.ratios), "seed": config.seed}


def _refuse_other(corpus: Corpus, config: CorpusConfig) -> None:
    """Raises ConfigError if a corpus was made from another configuration; names the first difference."""
    made = corpus.facts.get("config", {})
    for key, value in _asked(config).items():
        if made.get(key) != value:
            raise ConfigError(
                f"the corpus '{corpus.folder}' was made with corpus.{key} = {made.get(key)!r}, the configuration says "
                f"{value!r}; give another corpus.folder, or the same {key}"
            )


def write_corpus(
    documents: Mapping[str, Sequence[Document]], config: CorpusConfig, folder: Path, *, tokenizer: "Tokenizer"
) -> Corpus:
    """A corpus of documents that are split already, and a tokenizer; `prepare_corpus` finds it in its folder.

    Args:
        documents: by split.
        config: what it is said to be made from.
        folder: must not exist.
        tokenizer: makes the ids.

    Raises:
        CheckpointError: the folder exists.
        WorkError: it can't be written.
    """
    with new_folder(folder, kind="corpus") as temporary:
        tokenizer.save(str(temporary / "tokenizer.json"))
        facts: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "splits": {}}
        for split in SPLITS:
            ids = stream_of(tokenizer, documents[split])
            np.save(temporary / f"{split}.npy", ids.numpy().astype(np.uint16))
            text_bytes = sum(len(d.text.encode("utf-8", "surrogatepass")) for d in documents[split])
            facts["splits"][split] = {"documents": len(documents[split]), "tokens": len(ids), "bytes": text_bytes}
        facts["config"] = _asked(config)
        facts["fingerprint"] = short_digest(json.dumps([file_digest(f)["sha256"] for f in sorted(temporary.iterdir())]))
        write_record(temporary / FACTS, facts)
        write_checksums(temporary)
    return Corpus(folder)


def stream_of(tokenizer: "Tokenizer", documents: Sequence[Document]) -> Tensor:
    """Ids int64 [N] of documents one after the other, `END` before the first and after each."""
    ids = [0]
    for document in documents:
        ids += encode(tokenizer, document.text)
        ids.append(0)
    return torch.tensor(ids)


def corpus_of_run(run: Path) -> Corpus:
    """The corpus that a run was trained on, from its own folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    folder = run / "corpus"
    if not folder.is_dir():
        raise CheckpointError(f"'{run}' has no corpus; give the folder that `embank lm train --out` wrote")
    verify_checksums(folder, kind="corpus", cure="Restore it, or train again in another --out")
    return Corpus(folder)
