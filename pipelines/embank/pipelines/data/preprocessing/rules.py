"""What is done to raw rows before a model reads them, as a prepared folder says it and as a bundle holds it.

preprocess.json          the schema of the training data, its configuration, what is said of each vocabulary, a row
                         as an example
vocabulary.safetensors   the index of all vocabularies, see `embank.tables.ids.vocabulary_index`
tokens/FEATURE.parquet   the vocabularies themselves: token, kind and count in training of each id; may be left out
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import yaml

from embank.pipelines.config.columns import PrepareConfig, parse_config
from embank.pipelines.data.loading.integrity import is_sealed
from embank.pipelines.data.prepare.numeric_fields import numeric_columns
from embank.pipelines.data.schema import CONFIG_FILE, VOCAB_FOLDER, Schema
from embank.pipelines.data.sources.formats.base import Format, Source, TextOptions, check_column
from embank.pipelines.data.sources.formats.registry import find_format
from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.ids.token_space import refuse_other_token_hash
from embank.tables.ids.vocabulary import Vocabulary
from embank.tables.ids.vocabulary_index import VocabularyIndex
from embank.tables.storage.json_text import read_json
from embank.tables.storage.refusals import cause_of

PREPROCESS, INDEX, TOKENS = "preprocess.json", "vocabulary.safetensors", "tokens"
_VERSION = 1
_SUFFIXES = {".parquet": "parquet", ".parq": "parquet", ".pq": "parquet"}


def token_files(features: Iterable[str]) -> dict[str, str]:
    """The file in `tokens/` of each feature of a bundle, in the order of its manifest: its name, in which a slash is a
    dot; names that would be alike are numbered.

    Example:
        >>> token_files(["item", "emb/item", "emb.item"])
        {'item': 'item.parquet', 'emb/item': 'emb.item.parquet', 'emb.item': 'emb.item.2.parquet'}
    """
    files: dict[str, str] = {}
    for feature in dict.fromkeys(features):
        plain = feature.replace("/", ".")
        file, number = f"{plain}.parquet", 2
        while file in files.values():
            file, number = f"{plain}.{number}.parquet", number + 1
        files[feature] = file
    return files


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From raw rows to ids and numbers.

    Args:
        schema: of the training data.
        config: that prepared it.
        index: of its vocabularies.
        tokens: folder of the vocabularies themselves; None where they were left out.
        example: a raw row that can be scored.
    """

    schema: Schema
    config: PrepareConfig
    index: VocabularyIndex
    tokens: Path | None
    example: Mapping[str, Any]

    @classmethod
    def of_prepared(cls, folder: Path) -> Self | None:
        """The rules of a prepared folder; None where there are none, because its rows were generated.

        Raises:
            DataError: the folder is damaged, or two tokens of a feature have one hash.
        """
        schema = Schema.load(folder)
        if not (folder / CONFIG_FILE).is_file() and not is_sealed(folder, CONFIG_FILE):
            return None
        config = parse_config(_yaml(folder / CONFIG_FILE), origin=str(folder / CONFIG_FILE))
        commonest: dict[str, str | None] = {}

        def vocabularies() -> Iterator[Vocabulary]:
            for name in (field.name for field in schema.categorical if field.has_vocabulary):
                vocabulary = Vocabulary.load(folder / VOCAB_FOLDER / f"{name}.parquet")
                commonest[name] = next(
                    (token for token in vocabulary.decode(range(min(3, len(vocabulary)))) if token), None
                )
                yield vocabulary

        index = VocabularyIndex.of(vocabularies())
        example = _example(schema, config, commonest)
        return cls(schema=schema, config=config, index=index, tokens=folder / VOCAB_FOLDER, example=example)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The rules of a bundle, the index mapped from its file.

        Raises:
            CheckpointError: they are missing, damaged, or of another version.
        """
        from safetensors import SafetensorError, safe_open

        values = read_json(folder / PREPROCESS)
        if values.get("format_version") != _VERSION:
            raise CheckpointError(
                f"'{folder / PREPROCESS}' has format version {values.get('format_version')!r}; this embank reads "
                f"version {_VERSION}. Load the bundle with the embank that wrote it, or export it again"
            )
        try:
            with safe_open(folder / INDEX, framework="pt") as file:
                arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
            schema = Schema.from_json(values["schema"])
            rules = cls(
                schema=schema,
                config=parse_config(values["config"], origin=str(folder / PREPROCESS)),
                index=VocabularyIndex.from_json(values["vocabularies"], arrays),
                tokens=folder / TOKENS if (folder / TOKENS).is_dir() else None,
                example=dict(values["example"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OSError, SafetensorError, ConfigError) as error:
            raise CheckpointError(
                f"what bundle '{folder}' says of raw rows is damaged ({error}). Copy the bundle again or export it "
                "again"
            ) from error
        refuse_other_token_hash(schema.token_hash_version, what=f"bundle '{folder}'", error=CheckpointError)
        rules._refuse_other_features(folder)
        return rules

    def files(self, *, tokens: bool = True) -> dict[str, Callable[[Path], None]]:
        """What a bundle holds of the rules: file names and what writes them.

        Args:
            tokens: the vocabularies themselves too, where they are at hand.
        """
        told = self if tokens else replace(self, example=_example(self.schema, self.config, {}))  # which tells no value
        files: dict[str, Callable[[Path], None]] = {PREPROCESS: told._write_rules, INDEX: self._write_index}
        if tokens and self.tokens is not None:
            for name in self.index.facts:
                source = self.tokens / f"{name}.parquet"
                files[f"{TOKENS}/{name}.parquet"] = lambda path, source=source: shutil.copyfile(source, path)  # type: ignore[misc]
        return files

    def vocabulary(self, feature: str) -> Vocabulary:
        """The tokens of a feature.

        Raises:
            ConfigError: they were left out, or it has none.
        """
        if feature not in self.index.facts:
            raise ConfigError(f"feature {feature!r} has no vocabulary: its ids are hashes")
        if self.tokens is None:
            raise ConfigError(f"the tokens of feature {feature!r} were left out when the bundle was exported")
        return Vocabulary.load(self.tokens / f"{feature}.parquet", name=feature)

    @cached_property
    def format(self) -> Format:
        """The raw format of the training data."""
        return find_format(self.schema.source)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that rows must have."""
        return tuple(self.raw_columns(self.format))

    @property
    def features(self) -> list[str]:
        """The columns that are read as features, once derived."""
        return [*self.config.features, *self.config.numeric]

    def raw_columns(self, format: Format) -> Sequence[str]:
        """Raw columns of a format that the features are derived from."""
        needs = self.format.needs
        return self.features if needs is None else list(dict.fromkeys(needs(self.features)))

    def open(self, paths: Sequence[Path], *, format: str | None = None) -> Source:
        """Raw files whose rows are to be scored; labels may be absent.

        Args:
            paths: files, or what the format takes else.
            format: of the files; by default that of the training data, or Parquet by the files' names.

        Raises:
            ConfigError, DataError: what the format refuses, or a missing column, with the nearest one.
        """
        by_suffix = [path for path in paths if path.suffix in _SUFFIXES]
        others = [path for path in paths if path.suffix not in _SUFFIXES]
        if by_suffix and others and format is None:
            raise DataError(
                f"'{by_suffix[0]}' is named as a Parquet file and '{others[0]}' is not, and files of one call have one "
                "format; score them in two calls"
            )
        name = format or next((_SUFFIXES[path.suffix] for path in by_suffix), None)
        entry = find_format(name or self.schema.source)
        options = TextOptions()
        if entry.needs_config:
            options = TextOptions(separator=self.config.separator, quote=self.config.quote, escape=self.config.escape)
        source = (entry.open_rows or entry.open)(paths, options)
        for column in self.columns:
            check_column(source, column, whose="the model was trained on")
        return source

    def _write_rules(self, path: Path) -> None:
        values = {
            "format_version": _VERSION,
            "schema": self.schema.to_json(),
            "config": self.config.model_dump(),
            "vocabularies": self.index.to_json(),
            "example": dict(self.example),
        }
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _write_index(self, path: Path) -> None:
        import torch
        from safetensors.torch import save_file

        save_file({name: torch.from_numpy(array) for name, array in self.index.arrays().items()}, path)
        path.chmod(path.parent.stat().st_mode & 0o666)

    def _refuse_other_features(self, folder: Path) -> None:
        config, schema = self.config, self.schema
        read = [(name, name in config.multivalued, name not in config.hashed) for name in config.features]
        said = [(field.name, field.multivalued, field.has_vocabulary) for field in schema.categorical]
        if read != said or numeric_columns(config) != [field.name for field in schema.numeric]:
            raise CheckpointError(
                f"bundle '{folder}' has a configuration of other features than its schema. Copy the bundle again or "
                "export it again"
            )
        sizes = {field.name: field.num_embeddings for field in self.schema.categorical if field.has_vocabulary}
        if sizes != {name: facts.num_ids for name, facts in self.index.facts.items()}:
            raise CheckpointError(
                f"bundle '{folder}' has vocabularies of other features or sizes than its schema says. Copy the bundle "
                "again or export it again"
            )


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        cause = cause_of(error) if isinstance(error, OSError) else error
        raise DataError(f"{path} can't be read: {cause}. Prepare the data again.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no configuration. Prepare the data again.")
    return values


def _example(schema: Schema, config: PrepareConfig, commonest: Mapping[str, str | None]) -> dict[str, Any]:
    """A raw row of the commonest values."""
    row: dict[str, Any] = {}
    for field in schema.categorical:
        token = commonest.get(field.name, "a") or "a"
        is_list = field.multivalued and config.multivalued[field.name] is None
        row[field.name] = [token] if is_list else token
    row |= dict.fromkeys(config.numeric, 1.0)
    entry = find_format(schema.source)
    return row if entry.example is None else {**row, **entry.example}
