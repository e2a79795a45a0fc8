"""What is in a prepared folder: `embank data describe DIR`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embank.pipelines.data.loading.integrity import verify_prepared
from embank.pipelines.data.prepare.distinct import KEPT
from embank.pipelines.data.prepare.like import Likeness
from embank.pipelines.data.schema import IS_MISSING, VOCAB_FOLDER, CategoricalField, NumericField, Schema, Split
from embank.tables.errors import DataError
from embank.tables.ids.vocabulary import UNKNOWN_ID, Vocabulary
from embank.tables.storage.resources import refuse_exhausted

REFERENCE_DIM = 16
NAMED = 8
"""Features that a message names at most."""


@dataclass(frozen=True, kw_only=True)
class FeatureDescription:
    """One categorical feature.

    Attributes:
        num_embeddings: ids, the unknown one included; None without a vocabulary, as everything that needs one.
        num_values: without a vocabulary, different values in the training part (see `CategoricalField`).
        unknown_share: split to the share of its ids that are unknown; splits without rows are left out.
        trains_unknown: whether training has unknown values, so that the unknown row learns something. None without a
            vocabulary.
        top_share: share of the most frequent id in the training part.
        bytes_at_dim_16: bytes of its plain fp32 table of dim 16.
    """

    name: str
    num_embeddings: int | None
    num_values: int | None
    multivalued: bool
    min_count: int | None
    unknown_share: dict[str, float]
    trains_unknown: bool | None
    top_share: float | None
    bytes_at_dim_16: int | None


@dataclass(frozen=True, kw_only=True)
class Description:
    """A prepared folder, as data; `render` makes it readable."""

    schema: Schema
    features: tuple[FeatureDescription, ...]
    likeness: Likeness | None = None

    @property
    def bytes_at_dim_16(self) -> int:
        """Bytes of all plain fp32 tables of dim 16: those of features with a vocabulary."""
        return sum(feature.bytes_at_dim_16 or 0 for feature in self.features)

    def render(self) -> str:
        """The description as text tables."""
        schema = self.schema
        parts = [
            f"format {schema.source}, label {schema.label or 'none'}, group {schema.group or 'none'}, "
            f"fingerprint {schema.fingerprint[:16]}",
            _table(["split", "rows", "positive", "share"], [_split_cells(self.schema, i) for i in range(3)]),
            _table(
                ["feature", "ids", "values", "min count", "unknown valid", "unknown test", "top-1", "MiB at dim 16"],
                [_feature_cells(feature) for feature in self.features] + [_total_cells(self)],
            ),
        ]
        if hashed := [feature for feature in self.features if feature.num_embeddings is None]:
            seen = ", ".join(f"{feature.name} {_values_seen(feature)}" for feature in hashed)
            parts.append(f"no vocabulary (ids are hashes of tokens); different values in training: {seen}")
        untrained = [f.name for f in self.features if f.trains_unknown is False and any(f.unknown_share.values())]
        if untrained:
            parts.append(untrained_unknown(untrained, which=" with new values in valid or test"))
        if self.likeness is not None:
            parts.append(like_in_words(self.likeness))
            parts.append(_table(*like_cells(self.likeness)))
        if schema.numeric:
            kinds = ", ".join(_numeric_in_words(field) for field in schema.numeric)
            parts.append(f"numeric: {kinds}")
        return "\n\n".join(parts) + "\n"


def describe(path: str | Path) -> Description:
    """Read a prepared folder's schema, vocabularies, and the ids of its valid and test parts.

    Raises:
        DataError: the folder is not prepared data or is damaged.
    """
    path = Path(path)
    schema = Schema.load(path)
    likeness = Likeness.load(path)
    verify_prepared(path, schema, splits=("valid", "test"))
    filled = [split for split in ("valid", "test") if schema.split(split).num_rows]
    shares = {split: _unknown_shares(path / split, schema) for split in filled}
    features = tuple(
        _describe_feature(path, field, {split: share.get(field.name, 0.0) for split, share in shares.items()})
        for field in schema.categorical
    )
    return Description(schema=schema, features=features, likeness=likeness)


def describe_folder(path: str | Path) -> str:
    """The text that `embank data describe` prints.

    Raises:
        DataError: the folder is not prepared data or is damaged.
    """
    return describe(path).render()


def like_in_words(likeness: Likeness) -> str:
    """Where a folder's vocabularies come from, and what it can be used for."""
    use = (
        "evaluation takes it, and training if it has training rows"
        if likeness.has_tokens
        else "its bundle was exported without tokens, so there are no vocabularies here: bundles can be evaluated on "
        "it, runs can't, and nothing can be trained on it"
    )
    return (
        f"vocabularies and transforms of {likeness.kind} '{likeness.path}', fingerprint {likeness.fingerprint[:16]}; "
        f"raw format {likeness.format}; {use}"
    )


def like_cells(likeness: Likeness) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: shares of unknown values and of rows where a feature is missing, by split."""
    splits = list(likeness.splits)
    header = ["feature", *(f"{what} {split}" for split in splits for what in ("unknown", "missing"))]
    rows = []
    for name in likeness.features:
        shares = [likeness.share(split, name, what) for split in splits for what in ("unknown", "missing")]
        rows.append([name, *("" if share is None else f"{share:.2%}" for share in shares)])
    return header, rows


def untrained_unknown(names: Sequence[str], *, which: str = "") -> str:
    """What becomes of new values of features whose training part has none that is unknown; `which` says how these were
    chosen."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"training never sees the unknown value in {len(names)} feature{'s' * (len(names) != 1)}{which} "
        f"({', '.join(names[:NAMED])}{more}): new values "
        "read a row as it was initialised. min_count: 2 trains it with the values that occur once"
    )


def _describe_feature(path: Path, field: CategoricalField, unknown_share: dict[str, float]) -> FeatureDescription:
    if not field.has_vocabulary:
        return FeatureDescription(
            name=field.name,
            num_embeddings=None,
            num_values=field.num_values,
            multivalued=field.multivalued,
            min_count=None,
            unknown_share={},
            trains_unknown=None,
            top_share=None,
            bytes_at_dim_16=None,
        )
    if not (path / VOCAB_FOLDER).is_dir():
        return _without_counts(field, unknown_share)
    file = path / VOCAB_FOLDER / f"{field.name}.parquet"
    vocabulary = Vocabulary.load(file, name=field.name)
    if len(vocabulary) != field.num_embeddings:
        raise DataError(
            f"{file} has {len(vocabulary)} ids, but schema.json says {field.num_embeddings}. Prepare the data again."
        )
    return FeatureDescription(
        name=field.name,
        num_embeddings=field.num_embeddings,
        num_values=None,
        multivalued=field.multivalued,
        min_count=field.min_count,
        unknown_share=unknown_share,
        trains_unknown=bool(vocabulary.counts[UNKNOWN_ID] > 0),
        top_share=float(vocabulary.counts.max() / max(1, vocabulary.counts.sum())),
        bytes_at_dim_16=field.num_embeddings * REFERENCE_DIM * 4,
    )


def _without_counts(field: CategoricalField, unknown_share: dict[str, float]) -> FeatureDescription:
    """Of a folder that was prepared like a bundle without tokens: what the schema says."""
    training = field.training
    return FeatureDescription(
        name=field.name,
        num_embeddings=field.num_embeddings,
        num_values=None,
        multivalued=field.multivalued,
        min_count=field.min_count,
        unknown_share=unknown_share,
        trains_unknown=None if training is None or training.unknown is None else training.unknown > 0,
        top_share=None if training is None else max(training.shares, default=0.0),
        bytes_at_dim_16=field.num_embeddings * REFERENCE_DIM * 4,
    )


def _unknown_shares(folder: Path, schema: Schema) -> dict[str, float]:
    """Of the features with a vocabulary."""
    names = [field.name for field in schema.categorical if field.has_vocabulary]
    unknown, total = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise DataError(f"{folder} holds no part files. Prepare the data again.")
    for part in parts:
        for batch in _batches(part, names):
            for name in names:
                ids = batch.column(batch.schema.get_field_index(name))
                ids_N = (ids.flatten() if pa.types.is_list(ids.type) else ids).to_numpy(zero_copy_only=False)
                unknown[name] += int(np.count_nonzero(ids_N == UNKNOWN_ID))
                total[name] += len(ids_N)
    return {name: unknown[name] / max(1, total[name]) for name in names}


def _batches(part: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(str(part)) as file:
            yield from file.iter_batches(columns=columns)
    except (pa.ArrowException, OSError) as error:
        refuse_exhausted(error, doing="reading the training part")
        raise DataError(f"{part} is damaged ({error}). Prepare the data again.") from error


def _split_cells(schema: Schema, index: int) -> list[str]:
    split = schema.splits[index]
    return [split.name, f"{split.num_rows:,}", f"{split.num_positive:,}", positive_share(split)]


def positive_share(split: Split) -> str:
    """The share of positive rows, or a dash where there are no rows."""
    return f"{split.num_positive / split.num_rows:.4f}" if split.num_rows else "-"


def _feature_cells(feature: FeatureDescription) -> list[str]:
    values = "many" if feature.multivalued else "one"
    if feature.num_embeddings is None or feature.bytes_at_dim_16 is None:
        return [feature.name, "no vocabulary", values, "", "", "", "", ""]
    return [
        feature.name,
        f"{feature.num_embeddings:,}",
        values,
        str(feature.min_count),
        *(f"{feature.unknown_share[s]:.2%}" if s in feature.unknown_share else "" for s in ("valid", "test")),
        "" if feature.top_share is None else f"{feature.top_share:.2%}",
        f"{feature.bytes_at_dim_16 / 2**20:,.2f}",
    ]


def _values_seen(feature: FeatureDescription) -> str:
    about = "" if (feature.num_values or 0) < KEPT else "about "
    return "unknown" if feature.num_values is None else f"{about}{feature.num_values:,}"


def _numeric_in_words(field: NumericField) -> str:
    if field.transform == IS_MISSING:
        return f"{field.name} (1 where it is missing)"
    return f"{field.name} ({field.transform}, {field.fill:.4g} where missing)"


def _total_cells(description: Description) -> list[str]:
    ids = sum(feature.num_embeddings or 0 for feature in description.features)
    return ["total", f"{ids:,}", "", "", "", "", "", f"{description.bytes_at_dim_16 / 2**20:,.2f}"]


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Columns of text, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
