"""What a folder is prepared like: the rules and vocabularies of a run, a bundle or a prepared folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from embank.pipelines.config.run import refuse_language_model
from embank.pipelines.data.loading.integrity import verify_prepared
from embank.pipelines.data.preprocessing.rules import PREPROCESS, Preprocessing
from embank.pipelines.data.schema import CONFIG_FILE, SCHEMA_FILE, VOCAB_FOLDER, Schema
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.ids.token_hash import token_ids
from embank.tables.serving.bundle import Bundle, is_bundle


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Rules and vocabularies that other rows are prepared by.

    Args:
        path: as it was given.
        kind: what it is, in words.
        rules: of its training data.
    """

    path: Path
    kind: str
    rules: Preprocessing

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens a run, a bundle or a prepared folder, its checksums verified. Of a run its bundle is read.

        Raises:
            CheckpointError: there is nothing of that kind, or it is damaged.
            ConfigError: it has no rules for raw rows, or is a language model's run.
            DataError: the prepared folder is damaged.
        """
        path = Path(path)
        if is_bundle(path):
            return cls(path=path, kind="bundle", rules=_of_bundle(path, path))
        if is_bundle(path / "bundle"):
            return cls(path=path, kind="run", rules=_of_bundle(path / "bundle", path))
        if (path / SCHEMA_FILE).is_file():
            return cls(path=path, kind="prepared folder", rules=_of_prepared(path))
        refuse_language_model(path)
        if (path / "environment.json").is_file():
            raise ConfigError(
                f"run '{path}' is not complete, so it has no bundle with its rules. Give --like the prepared folder "
                f"that data.path of '{path / CONFIG_FILE}' names, or finish the run with --resume"
            )
        raise CheckpointError(f"'{path}' holds no run, no bundle and no prepared folder; give --like one of these")

    @property
    def has_tokens(self) -> bool:
        """Whether the vocabularies themselves are at hand."""
        return self.rules.tokens is not None

    def id_of_code(self, feature: str, tokens: pl.Series) -> npt.NDArray[np.int32]:
        """Ids of provisional codes, [codes + 1]; the token at position i has code i + 1, code 0 is the missing value.

        Tokens that the vocabulary lacks become unknown.
        """
        index = self.rules.index
        ids = np.empty(len(tokens) + 1, dtype=np.int32)
        ids[0] = index.missing_id(feature)
        ids[1:] = index.find(feature, token_ids(tokens))
        return ids

    def copy_vocabularies(self, folder: Path) -> None:
        """Copies the vocabularies with their counts into a folder; makes none where they were left out."""
        if self.rules.tokens is None:
            return
        (folder / VOCAB_FOLDER).mkdir()
        for name in self.rules.index.facts:
            shutil.copyfile(self.rules.tokens / f"{name}.parquet", folder / VOCAB_FOLDER / f"{name}.parquet")


def _of_bundle(bundle: Path, path: Path) -> Preprocessing:
    if not (bundle / PREPROCESS).is_file():
        raise ConfigError(
            f"the bundle '{bundle}' has no {PREPROCESS}: it holds tables only, its data was generated, or an earlier "
            "version wrote it. Give --like the prepared folder that the model was trained on"
        )
    Bundle(bundle)
    rules = Preprocessing.load(bundle)
    if rules.tokens is None or rules.index.facts.keys() <= {file.stem for file in rules.tokens.iterdir()}:
        return rules
    raise CheckpointError(f"bundle '{bundle}', given as '{path}', lacks vocabularies of its schema. Export it again")


def _of_prepared(path: Path) -> Preprocessing:
    schema = Schema.load(path)
    names = [field.name for field in schema.categorical if field.has_vocabulary]
    if names and not (path / VOCAB_FOLDER).is_dir():
        raise ConfigError(
            f"'{path}' has no vocabularies: it was prepared like a bundle without tokens. Give --like that bundle"
        )
    verify_prepared(path, schema, splits=())
    rules = Preprocessing.of_prepared(path)
    if rules is None:
        raise ConfigError(
            f"'{path}' has no {CONFIG_FILE}: its rows were generated, so there are no rules for raw rows. Give --like "
            "a folder that `embank prepare` wrote"
        )
    return rules
