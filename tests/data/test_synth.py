"""Synthetic logs: the planted distributions, the text, determinism, the reported best AUC, prepared folders of exact
size."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import embank.pipelines.data.synth.raw as raw_module
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.data.synth import synth, synth_prepared
from embank.pipelines.data.synth.fields import CRITEO_FIELDS, CRITEO_NUMBERS, table_sizes
from embank.pipelines.data.synth.model import MISSING_NUMBER, MISSING_RANK, UNIT_ROWS, PlantedModel
from embank.pipelines.data.synth.report import BestAUC
from embank.pipelines.data.synth.text import hex_digits, render, tokens
from embank.pipelines.data.synth.zipf import Zipf
from embank.tables.errors import ConfigError, DataError, WorkError
from embank.tables.ids.vocabulary import Vocabulary

PUBLISHED_TOTAL = 33_762_577
SMALL = [12] * 26


@pytest.fixture(scope="module")
def model() -> PlantedModel:
    return PlantedModel(num_tokens=[field.cardinality for field in CRITEO_FIELDS], seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40,000 + 5,000 + 5,000 rows, tables of 20,000 rows in all."""
    path = tmp_path_factory.mktemp("synth") / "data"
    synth_prepared(path, total_rows=20_000, train=40_000, valid=5_000, test=5_000, seed=1)
    return path


@pytest.fixture(scope="module")
def two_units(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a log of one unit and 300 rows."""
    out = tmp_path_factory.mktemp("whole") / "log"
    synth(rows=UNIT_ROWS + 300, out=out, scale=0.001)
    return out.read_bytes().splitlines()


# Zipf


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 1.1, 2.0])
@pytest.mark.parametrize("num_ranks", [1, 3, 500, 100_000])
def test_zipf_has_the_exact_probabilities(num_ranks: int, alpha: float) -> None:
    grid = (np.arange(1 << 20) + 0.5) / (1 << 20)
    counts = np.bincount(Zipf(num_ranks, alpha).ranks(grid), minlength=num_ranks)
    assert len(counts) == num_ranks
    weights = np.arange(1, num_ranks + 1, dtype=np.float64) ** -alpha
    expected = np.cumsum(weights) / weights.sum() * len(grid)
    # An even grid is off by a point at most; the closed-form tail adds a relative 1e-6 or so.
    assert np.max(np.abs(np.cumsum(counts) - expected)) < 3


@given(num_ranks=st.integers(1, 10**9), alpha=st.floats(0, 5), uniform=st.floats(0, 1, exclude_max=True))
def test_zipf_stays_in_range_and_rises(num_ranks: int, alpha: float, uniform: float) -> None:
    low, high = Zipf(num_ranks, alpha).ranks(np.array([uniform / 2, uniform]))
    assert 0 <= low <= high < num_ranks


# Sizes


def test_the_published_sizes() -> None:
    assert table_sizes(PUBLISHED_TOTAL) == tuple(field.cardinality for field in CRITEO_FIELDS)


@given(total=st.integers(78, 10**9))
def test_sizes_sum_to_the_total(total: int) -> None:
    sizes = table_sizes(total)
    assert sum(sizes) == total
    assert min(sizes) >= 3


def test_sizes_keep_small_fields_and_shrink_large_ones_in_proportion() -> None:
    sizes = dict(zip([field.name for field in CRITEO_FIELDS], table_sizes(1_000_000), strict=True))
    published = {field.name: field.cardinality for field in CRITEO_FIELDS}
    assert all(sizes[name] == size for name, size in published.items() if size <= 20_000)
    assert sizes["C10"] == 20_000
    assert sizes["C4"] / sizes["C12"] == pytest.approx(published["C4"] / published["C12"], rel=1e-4)


# The model


def test_effects_depend_on_seed_field_and_id_alone(model: PlantedModel) -> None:
    ranks = np.arange(-1, 1000, dtype=np.int32)
    small = PlantedModel(num_tokens=SMALL, seed=3, alpha=2.0)
    other = PlantedModel(num_tokens=SMALL, seed=4)
    assert np.array_equal(model.effects(5, ranks), small.effects(5, ranks))
    assert not np.array_equal(model.effects(5, ranks), other.effects(5, ranks))
    assert not np.array_equal(model.effects(5, ranks), model.effects(6, ranks))


def test_effects_are_nearly_normal(model: PlantedModel) -> None:
    effects = model.effects(2, np.arange(200_000, dtype=np.int32)) / np.sqrt(1.4 / 26)
    assert abs(effects.mean()) < 0.01
    assert effects.std() == pytest.approx(1, abs=0.01)


def test_rates_and_frequencies_are_as_planted(model: PlantedModel) -> None:
    units = [model.draw(1, unit) for unit in range(4)]
    num_rows = 4 * UNIT_ROWS
    for index, field in enumerate(CRITEO_FIELDS):
        ranks = np.concatenate([unit.ranks[index] for unit in units])
        assert np.mean(ranks == MISSING_RANK) == pytest.approx(field.missing, abs=0.01)
        present = ranks[ranks != MISSING_RANK]
        top, second = np.mean(present == 0), np.mean(present == 1)
        assert top / second == pytest.approx(2**1.1, abs=6 / np.sqrt(second * num_rows))
    for index, column in enumerate(CRITEO_NUMBERS):
        numbers = np.concatenate([unit.numbers[index] for unit in units])
        assert np.mean(numbers == MISSING_NUMBER) == pytest.approx(column.missing, abs=0.01)
        assert numbers[numbers != MISSING_NUMBER].min() == column.lowest
    labels = np.concatenate([unit.labels for unit in units])
    assert labels.mean() == pytest.approx(0.25, abs=0.01)


def test_the_click_rate_can_be_asked_for() -> None:
    unit = PlantedModel(num_tokens=SMALL, seed=0, click_rate=0.03).draw(1, 0)
    assert unit.probabilities.mean() == pytest.approx(0.03, abs=0.003)


def test_the_best_auc_is_right(model: PlantedModel) -> None:
    unit = model.draw(1, 0)
    auc = BestAUC()
    for start in range(0, UNIT_ROWS, 1000):
        auc.add(unit.probabilities[start : start + 1000], unit.labels[start : start + 1000])
    best, expected = auc.best(), auc.expected()
    assert best is not None
    assert expected is not None
    assert auc.error() < 1e-4
    assert best == pytest.approx(roc_auc_score(unit.labels, unit.probabilities), abs=auc.error() + 1e-12)
    rng = np.random.default_rng(0)
    redrawn = [roc_auc_score(rng.random(UNIT_ROWS) < unit.probabilities, unit.probabilities) for _ in range(40)]
    assert expected == pytest.approx(np.mean(redrawn), abs=4 * np.std(redrawn) / np.sqrt(40))


def test_the_best_auc_of_one_class_is_none() -> None:
    auc = BestAUC()
    auc.add(np.array([0.2, 0.3]), np.array([0, 0], dtype=np.int8))
    assert auc.best() is None
    assert auc.expected() is not None


# Text


def test_lines_are_as_a_slow_writer_would_write_them(model: PlantedModel) -> None:
    unit = model.draw(1, 0)
    words = [tokens(ranks, seed=9, field=field.name) for field, ranks in zip(CRITEO_FIELDS, unit.ranks, strict=True)]
    lines = render(unit, 100, 700, seed=9).decode().splitlines()
    for row, line in zip(range(100, 700), lines, strict=True):
        cells = [str(unit.labels[row])]
        cells += ["" if column[row] == MISSING_NUMBER else str(column[row]) for column in unit.numbers]
        cells += [
            "" if ranks[row] == MISSING_RANK else f"{word[row]:08x}"
            for ranks, word in zip(unit.ranks, words, strict=True)
        ]
        assert line == "\t".join(cells)


def test_numbers_of_all_lengths(model: PlantedModel) -> None:
    unit = model.draw(1, 0)
    values = [0, 1, 9, 10, 999, 9_999, 10_000, 10_001, 123_456, 99_999_999, -1, -2, -10_000, MISSING_NUMBER]
    unit.numbers[1][: len(values)] = values
    lines = render(unit, 0, len(values), seed=0).decode().splitlines()
    assert [line.split("\t")[2] for line in lines] == [str(value) for value in values[:-1]] + [""]


def test_tokens_are_distinct_within_a_field() -> None:
    ranks = np.arange(200_000, dtype=np.int32)
    words = tokens(ranks, seed=0, field="C3")
    assert len(np.unique(words)) == len(ranks)
    assert hex_digits(words[:2]).tobytes().decode() == f"{words[0]:08x}{words[1]:08x}"
    assert not np.array_equal(words, tokens(ranks, seed=0, field="C4"))
    assert not np.array_equal(words, tokens(ranks, seed=1, field="C3"))


def test_the_file_reads_as_criteo(tmp_path: Path) -> None:
    report = synth(rows=20_000, out=tmp_path / "day.txt", seed=2, scale=0.03)
    frame = pl.read_csv(tmp_path / "day.txt", separator="\t", has_header=False, infer_schema_length=None)
    assert frame.shape == (20_000, 40)
    labels = frame.to_series(0)
    assert report.rows == 20_000
    assert report.clicks == labels.sum()
    assert report.click_rate == pytest.approx(labels.mean())
    assert report.bytes == (tmp_path / "day.txt").stat().st_size
    text = (tmp_path / "day.txt").read_text()
    assert all(re.fullmatch(r"([01])(\t(-?\d+)?){13}(\t([0-9a-f]{8})?){26}", line) for line in text.splitlines())
    columns = list(zip(*(line.split("\t") for line in text.splitlines()), strict=True))
    for index, field in enumerate(CRITEO_FIELDS):
        distinct = set(columns[14 + index]) - {""}
        assert report.distinct[field.name] == len(distinct) <= report.table_sizes[field.name]
    assert sum(report.table_sizes.values()) == round(0.03 * PUBLISHED_TOTAL)
    assert report.best_auc is not None
    assert 0.75 < report.best_auc < 0.85
    assert json.loads((tmp_path / "day.txt.json").read_text()) == asdict(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["day.txt", "day.txt.json"]


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, UNIT_ROWS + 300), chunk_rows=st.integers(100, 30_000))
def test_content_depends_neither_on_chunks_nor_on_what_follows(
    tmp_path_factory: pytest.TempPathFactory, two_units: list[bytes], rows: int, chunk_rows: int
) -> None:
    out = tmp_path_factory.mktemp("chunks") / "log"
    synth(rows=rows, out=out, scale=0.001, chunk_rows=chunk_rows)
    assert out.read_bytes().splitlines() == two_units[:rows]


def test_seeds_differ(tmp_path: Path) -> None:
    for seed in (0, 1):
        synth(rows=100, out=tmp_path / str(seed), seed=seed, scale=0.001)
    assert (tmp_path / "0").read_bytes() != (tmp_path / "1").read_bytes()


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(raw_module, "render", full)
    with pytest.raises(WorkError, match="no space left"):
        synth(rows=100, out=tmp_path / "log", scale=0.001)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    out = tmp_path / "log"
    out.write_text("mine")
    with pytest.raises(DataError, match=r"log exists. Give another name, or overwrite it with --overwrite"):
        synth(rows=10, out=out, scale=0.001)
    assert out.read_text() == "mine"
    synth(rows=10, out=out, scale=0.001, overwrite=True)
    assert len(out.read_text().splitlines()) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows is 0; use 1 or more"),
        ({"like": "avazu"}, "no synthetic log like 'avazu'; use 'criteo'"),
        ({"scale": 0.0}, "scale is 0.0; use a number above 0"),
        ({"scale": 1e-7}, "the total table size is 3; 26 tables need at least 78 rows"),
        ({"alpha": -1.0}, "alpha is -1.0; use an exponent from 0"),
        ({"click_rate": 1.0}, "click_rate is 1.0; use a share between 0 and 1"),
        ({"seed": -1}, "seed is -1; use 0 or more"),
        ({"chunk_rows": 0}, "chunk_rows is 0"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        synth(**{"rows": 10, "out": tmp_path / "x", **arguments})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# Prepared folders


def test_a_prepared_folder_loads(folder: Path) -> None:
    schema = Schema.load(folder)
    assert sum(field.num_embeddings for field in schema.categorical) == 20_000
    assert [split.num_rows for split in schema.splits] == [40_000, 5_000, 5_000]
    for split in schema.splits:
        batches = list(Loader(folder, split.name, batch_size=4096, shuffle=split.name == "train").epoch(0))
        labels = np.concatenate([batch.labels.numpy() for batch in batches])
        assert len(labels) == split.num_rows
        assert labels.sum() == split.num_positive
        assert min(int(batch.sparse.values().min()) for batch in batches) >= 1


def test_vocabularies_are_ranked_by_training_counts(folder: Path) -> None:
    schema = Schema.load(folder)
    train = pl.read_parquet(folder / "train" / "*.parquet")
    for field, shape in zip(schema.categorical, CRITEO_FIELDS, strict=True):
        vocabulary = Vocabulary.load(folder / "vocab" / f"{field.name}.parquet")
        counts = np.bincount(train[field.name].to_numpy(), minlength=field.num_embeddings)
        assert np.array_equal(vocabulary.counts, counts)
        assert np.all(np.diff(counts[1:]) <= 0)
        assert vocabulary.tokens.drop_nulls().n_unique() == field.num_embeddings - 1 - (shape.missing > 0)
        if shape.missing:
            assert vocabulary.missing_id is not None
            assert counts[vocabulary.missing_id] == pytest.approx(shape.missing * 40_000, rel=0.1)


def test_the_prepared_report(folder: Path) -> None:
    report = json.loads((folder / "synth.json").read_text())
    assert report["total_rows"] == 20_000
    assert list(report["splits"]) == ["train", "valid", "test"]
    for split in report["splits"].values():
        assert split["best_auc"] == pytest.approx(split["expected_auc"], abs=0.03)
        assert 0.75 < split["expected_auc"] < 0.85


def test_a_prepared_folder_is_deterministic_and_not_overwritten(tmp_path: Path, folder: Path) -> None:
    arguments = {"total_rows": 20_000, "train": 40_000, "valid": 10, "test": 0}
    synth_prepared(tmp_path / "a", **arguments, seed=1)
    assert Schema.load(tmp_path / "a").fingerprint == Schema.load(folder).fingerprint
    assert pl.read_parquet(tmp_path / "a/train/*.parquet").equals(pl.read_parquet(folder / "train/*.parquet"))
    assert list(Loader(tmp_path / "a", "test", batch_size=8, shuffle=False).epoch(0)) == []
    with pytest.raises(DataError, match="a is not empty"):
        synth_prepared(tmp_path / "a", **arguments)
    with pytest.raises(ConfigError, match="train, valid, test are -1, 0, 0 rows"):
        synth_prepared(tmp_path / "b", total_rows=20_000, train=-1, valid=0, test=0)
