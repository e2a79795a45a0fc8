"""The small pieces under `prepare`: configuration, stable hashes, order of tokens, vocabularies, moments, the
schema."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.data import naive_prepare as naive

from embank.pipelines.cli.bars import Bars
from embank.pipelines.config.columns import PrepareConfig, merge, parse_config, read_columns
from embank.pipelines.data.describe import describe, describe_folder
from embank.pipelines.data.key_hash import combine_hashes, hash_strings, unit_interval
from embank.pipelines.data.prepare.moments import Moments
from embank.pipelines.data.prepare.prepare import prepare, prepare_from_cli
from embank.pipelines.data.prepare.ranking import order_tokens
from embank.pipelines.data.schema import Schema
from embank.tables.errors import ConfigError, DataError
from embank.tables.ids.mixing import finish_words
from embank.tables.ids.vocabulary import Vocabulary

GOOD: dict[str, Any] = {"label": {"column": "click"}, "categorical": ["a"], "split": {"by": "hash", "key": ["a"]}}

BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    (
        {"categoricl": ["a"]},
        "unknown key 'categoricl'. Did you mean 'categorical'? Known keys here: label, categorical,",
    ),
    (
        {"label": {"colum": "click"}},
        "unknown key 'label.colum'. Did you mean 'column'? Known keys here: column, positive,",
    ),
    (
        {"split": {"by": "hash", "kye": ["a"]}},
        "unknown key 'split.kye'. Did you mean 'key'? Known keys here: ratios, by,",
    ),
    ({"split": {"by": "hsh"}}, "split.by must be one of hash, ratio, time, column, not 'hsh'."),
    ({"split": {"by": "time"}}, "key 'split.column' is missing; it is required."),
    (
        {"split": {"by": "ratio", "ratios": [0.8, 0.2]}},
        "split.ratios: ratios are [0.8, 0.2]; train, valid and test each",
    ),
    (
        {"split": {"by": "ratio", "ratios": [0.8, 0.2, 0]}},
        "split.ratios: ratios are [0.8, 0.2, 0]; train, valid and test",
    ),
    ({"split": {"by": "ratio", "ratios": "even"}}, "split.ratios: ratios are three numbers, such as [0.8, 0.1, 0.1]."),
    ({"min_count": 0}, "min_count is 0; a minimum count is 1 or more."),
    ({"min_count": {"A": 3}}, "min_count names 'A', which is no categorical feature. Did you mean 'a'?"),
    ({"min_count": "x"}, "min_count is 'x': input should be a valid integer."),
    ({"numeric": {"p": "log"}}, "numeric.p is 'log': input should be 'none', 'log1p', 'standard' or 'log_squared'."),
    ({"categorical": "a"}, "categorical is 'a': it must be a list, such as [a]."),
    ({"categorical": []}, "there is no feature; list columns under categorical, multivalued, hashed or numeric."),
    (
        {"categorical": ["label"]},
        "a feature can't be called 'label', a name that prepared files use themselves; rename",
    ),
    (
        {"categorical": ["a/b"]},
        "feature 'a/b' can't be a file name (empty, a slash, or a leading dot); rename the column.",
    ),
    *(
        (features, "feature 'a@b' has '@' in its name, which is reserved; rename the column.")
        for features in ({"categorical": ["a@b"]}, {"multivalued": {"a@b": "|"}}, {"hashed": ["a@b"]})
    ),
    ({"categorical": ["a", "a"]}, "column 'a' is named twice among the features; name it once."),
    ({"numeric": ["click"]}, "the label column 'click' is also a feature, which leaks the answer; remove it there."),
    ({"separator": "ab"}, "separator is 'ab'; it is one ASCII character."),
    ({"separator": '"'}, "separator and quote are both '\"'; they must differ."),
    ({"multivalued": {"g": ""}}, "multivalued.g has an empty separator; give one, such as '|'."),
    ({"label": 5}, "label is 5: it must be a mapping of keys to values."),
    ({"numeric": {"p": 3}}, "numeric.p is 3: it must be a mapping of keys to values."),
    (
        {"numeric": {"p": {"missing": "none"}}},
        "numeric.p.missing is 'none': input should be 'zero', 'mean' or 'indicator'.",
    ),
    (
        {"categorical": [True]},
        "categorical.0 is True: it must be text; write it in quotes if that is what it is called.",
    ),
    (
        {"multivalued": {1: "|"}},
        "multivalued has the key 1: it must be text; write it in quotes if that is what it is called.",
    ),
    ({"split": {"by": "ratio", "ratios": [True, 0.5, 0.5]}}, "split.ratios: ratios are three numbers, such as"),
    ({"min_count": True}, "min_count is True: input should be a valid integer."),
    ({"catalogue": ["a"]}, "unknown key 'catalogue'. Known keys here: label, categorical,"),
    ({"escape": "ab"}, "escape is 'ab'; it is one ASCII character."),
    ({"numeric": [["p"]]}, "numeric is [['p']]: it must be a mapping of keys to values."),
    (
        {"split": {"by": "ratio", "ratios": [float("nan"), 0.5, 0.5]}},
        "split.ratios: ratios are [nan, 0.5, 0.5]; train, valid and",
    ),
    ({"separator": "a" * 5000}, f"separator is '{'a' * 116}...; it is one ASCII character."),
    (
        {"categorical": ["a" * 300]},
        f"feature '{'a' * 116}... has a name of more than 200 bytes, too long for a file's; rename",
    ),
    ({"row_group_rows": 0}, "row_group_rows is 0: input should be greater than or equal to 1."),
]


@pytest.mark.parametrize(("change", "expected"), BAD_CONFIGS, ids=[str(change) for change, _ in BAD_CONFIGS])
def test_bad_configuration(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**GOOD, **change}, origin="columns.yaml")
    assert str(caught.value).startswith(f"columns.yaml: {expected}")


def test_numeric_features_may_have_what_tables_reserve() -> None:
    """No table is looked up by them."""
    assert "a@b" in parse_config({**GOOD, "numeric": ["a@b"]}, origin="columns.yaml").columns


JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    2**64,
    float("nan"),
    float("inf"),
    "",
    "a",
    "\0",
    [],
    [None],
    [1],
    [[1]],
    ["a", "a"],
]
JUNK += [
    {},
    {"a": 1},
    {"a": None},
    {1: 2},
    {"by": "time"},
    {"by": "hash", "seed": -5},
    {"column": 3},
    b"x",
    (1, 2),
    object(),
]


@pytest.mark.parametrize("key", sorted(PrepareConfig.model_fields))
def test_any_value_of_a_key_is_taken_or_refused_in_our_words(key: str) -> None:
    for value in JUNK:
        try:
            parse_config({**GOOD, key: value}, origin="columns.yaml")
        except ConfigError as error:
            assert str(error).startswith("columns.yaml: ")
            assert "instance of" not in str(error)


def test_configuration_files(tmp_path: Path) -> None:
    path = tmp_path / "columns.yaml"
    with pytest.raises(ConfigError, match=r"there is no configuration file .*columns\.yaml"):
        read_columns(path)
    path.write_text("a: [1,")
    with pytest.raises(ConfigError, match=r"(?s)columns\.yaml is not valid YAML.*line 1"):
        read_columns(path)
    path.write_text("- a")
    with pytest.raises(ConfigError, match=r"columns\.yaml: it must be a mapping with the keys label, categorical"):
        read_columns(path)
    path.write_text("labl: {column: y}")
    (tmp_path / "log.csv").write_text("y,c\n1,a\n")
    with pytest.raises(ConfigError, match=r"columns\.yaml: unknown key 'labl'\. Did you mean 'label'\?"):
        prepare_from_cli("csv", [tmp_path / "log.csv"], tmp_path / "out", path)


def test_words_of_yaml_are_column_names(tmp_path: Path) -> None:
    (tmp_path / "columns.yaml").write_text(
        "label: on\ncategorical: [no, y]\nsplit: {by: ratio, ratios: [.5, .25, .25]}\n"
    )
    (tmp_path / "log.csv").write_text("on,no,y\n" + "1,a,b\n0,c,d\n" * 8)
    prepare_from_cli("csv", [tmp_path / "log.csv"], tmp_path / "out", tmp_path / "columns.yaml")
    assert Schema.load(tmp_path / "out").feature_names == ("no", "y")
    prepare_from_cli("csv", [tmp_path / "log.csv"], tmp_path / "again", tmp_path / "out" / "config.yaml")
    (tmp_path / "columns.yaml").write_text("label: on\ncategorical: [no]\nlabel: y\n")
    with pytest.raises(
        ConfigError, match=r"columns\.yaml is not valid YAML: line 3: the key 'label' stands there twice"
    ):
        prepare_from_cli("csv", [tmp_path / "log.csv"], tmp_path / "twice", tmp_path / "columns.yaml")


def test_names_that_only_look_the_same(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("click,cafe\u0301\n1,a\n", encoding="utf-8")
    config = {"label": "click", "categorical": ["caf\u00e9"]}
    with pytest.raises(
        DataError, match=r"It has one that looks the same, with U\+0301 where the configuration has U\+00E9\. Copy the"
    ):
        prepare(config, [tmp_path / "log.csv"], tmp_path / "out")


def test_the_example_of_the_manual_is_valid() -> None:
    example = {
        "label": {"column": "rating", "positive": ">= 4", "negative": "<= 2"},
        "categorical": ["user_id", "item_id", "gender"],
        "multivalued": {"genres": "|"},
        "numeric": {"price": "log1p"},
        "split": {"by": "hash", "key": ["user_id", "item_id"], "ratios": [0.8, 0.1, 0.1], "seed": 0},
        "min_count": 1,
        "group": "user_id",
    }
    config = parse_config(example, origin="example")
    assert config.features == ["user_id", "item_id", "gender", "genres"]
    assert config.columns == ["rating", "user_id", "item_id", "gender", "genres", "price"]
    merged = merge(example, {"label": {"positive": ">= 5"}, "split": {"by": "ratio"}})
    assert merged["label"] == {"column": "rating", "positive": ">= 5", "negative": "<= 2"}
    assert merged["split"] == {"by": "ratio"}


GOLDEN = {
    "": 0xF52A15E9A9B5E89B,
    "a": 0x02C0BDBF481420F8,
    "foobar": 0x404DA9E3B74078C2,
    "Zürich": 0xC65E9341AF283A5D,
    None: 0x9E3779B97F4A7C15,
}


def test_hashes_never_change() -> None:
    assert hash_strings(pl.Series(list(GOLDEN))).tolist() == list(GOLDEN.values())
    parts = [hash_strings(pl.Series([token])) for token in ("196", "242")]
    assert combine_hashes(parts, seed=0, num_rows=1).tolist() == [0x43180B7EFCD0416E]
    assert finish_words(np.array([1], dtype=np.uint64)).tolist() == [0x5692161D100B05E5]


def test_fnv_is_the_published_one() -> None:
    """FNV-1a's published test vectors, before the mixer."""
    value = 0xCBF29CE484222325
    for byte in b"foobar":
        value = ((value ^ byte) * 0x100000001B3) & naive.MASK
    assert value == 0x85944171F73967E8
    assert int(hash_strings(pl.Series(["foobar"]))[0]) == naive.mix64(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=12)), max_size=20), st.integers(-(2**40), 2**40))
def test_hashes_equal_the_slow_way(tokens: list[str | None], seed: int) -> None:
    hashes = hash_strings(pl.Series(tokens, dtype=pl.String))
    assert hashes.tolist() == [naive.hash_token(token) for token in tokens]
    assert hash_strings(pl.Series(["x", *tokens], dtype=pl.String).slice(1)).tolist() == hashes.tolist()
    rows = unit_interval(combine_hashes([hashes, hashes], seed=seed, num_rows=len(tokens)))
    slow = [naive.hash_row([naive.hash_token(token)] * 2, seed) for token in tokens]
    assert rows.tolist() == slow


def test_hash_splits_are_even() -> None:
    parts = [hash_strings(pl.Series([str(number) for number in range(100_000)]))]
    position = unit_interval(combine_hashes(parts, seed=3, num_rows=100_000))
    share = np.histogram(position, bins=20, range=(0, 1))[0] / 100_000
    assert np.abs(share - 0.05).max() < 5 * (0.05 * 0.95 / 100_000) ** 0.5


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text("ab\0é", max_size=11), unique=True, max_size=40), st.randoms(), st.booleans())
def test_tokens_are_ordered_by_count_then_bytes(tokens: list[str], random: Any, has_missing: bool) -> None:
    everything: list[str | None] = [*tokens, *([None] if has_missing else [])]
    random.shuffle(everything)
    counts = np.array([random.randrange(1, 4) for _ in everything], dtype=np.int64)
    order = order_tokens(pl.Series(everything, dtype=pl.String), counts)
    keys = [(-int(counts[i]), b"" if (t := everything[i]) is None else b"\1" + t.encode()) for i in order]
    assert keys == sorted(keys)
    assert sorted(order.tolist()) == list(range(len(everything)))


def make_vocabulary() -> Vocabulary:
    tokens = pl.Series([None, "b", None, "a"], dtype=pl.String)
    return Vocabulary("item", tokens, np.array([4, 9, 5, 5]), missing_id=2)


def test_vocabulary_round_trip(tmp_path: Path) -> None:
    vocabulary = make_vocabulary()
    vocabulary.save(tmp_path / "item.parquet")
    loaded = Vocabulary.load(tmp_path / "item.parquet")
    assert (loaded.name, len(loaded), loaded.missing_id) == ("item", 4, 2)
    assert loaded.counts.tolist() == [4, 9, 5, 5]
    assert loaded.encode(["a", None, "zzz", "b", ""]).tolist() == [3, 2, 0, 1, 0]
    assert loaded.encode(pl.Series([], dtype=pl.String)).tolist() == []
    assert loaded.decode([3, 2, 0, 1]) == ["a", None, None, "b"]
    without = Vocabulary("item", pl.Series([None, "b"], dtype=pl.String), np.array([0, 1]))
    assert without.encode([None, "b"]).tolist() == [0, 1]


def test_vocabulary_errors(tmp_path: Path) -> None:
    vocabulary = make_vocabulary()
    with pytest.raises(
        DataError, match=r"vocabulary 'item' has ids 0 to 3, but id 4 occurs \(position 1\)\. The data and"
    ):
        vocabulary.decode([0, 4])
    with pytest.raises(DataError, match="id -1 occurs"):
        vocabulary.check_ids(np.array([-1]))
    with pytest.raises(DataError, match=r"there is no vocabulary .*none\.parquet"):
        Vocabulary.load(tmp_path / "none.parquet")
    vocabulary.save(tmp_path / "item.parquet")
    data = (tmp_path / "item.parquet").read_bytes()
    (tmp_path / "item.parquet").write_bytes(data[:-20])
    with pytest.raises(DataError, match=r"vocabulary .*item\.parquet is damaged"):
        Vocabulary.load(tmp_path / "item.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(
        DataError, match=r"other\.parquet has columns \['a'\], a vocabulary has \['token', 'kind', 'count'\]"
    ):
        Vocabulary.load(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="has no id 0 for the unknown value"):
        Vocabulary("item", pl.Series(["a"]), np.array([1]))
    with pytest.raises(DataError, match="has 2 tokens but 1 counts"):
        Vocabulary("item", pl.Series([None, "a"]), np.array([1]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=9), min_size=1, max_size=6))
@pytest.mark.slow
def test_moments_equal_numpy(blocks: list[list[float]]) -> None:
    moments = Moments()
    for block in blocks:
        moments.add(np.array([*block, np.nan]))
    values = [value for block in blocks for value in block]
    if values:
        assert moments.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)
        assert moments.std == pytest.approx(np.std(values) or 1.0, rel=1e-6, abs=1e-6) or np.std(values) < 1e-6


def write_log(path: Path, num_rows: int = 400) -> Path:
    rng = np.random.default_rng(0)
    lines = [
        f"{rng.integers(2)},{rng.integers(60):x},{'|'.join(map(str, rng.integers(9, size=2)))}\n"
        for _ in range(num_rows)
    ]
    path.write_text("click,a,tags\n" + "".join(lines))
    return path


@pytest.mark.slow
def test_thread_count_does_not_matter(tmp_path: Path) -> None:
    raw = write_log(tmp_path / "log.csv")
    config = {**GOOD, "multivalued": {"tags": "|"}}
    prepare(config, [raw], tmp_path / "here")
    code = (
        f"from embank.pipelines.data.prepare.prepare import prepare; prepare({config!r}, [{str(raw)!r}], "
        f"{str(tmp_path / 'there')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "POLARS_MAX_THREADS": "1"})
    assert naive.folder_bytes(tmp_path / "here") == naive.folder_bytes(tmp_path / "there")


def test_fingerprint_follows_the_vocabularies(tmp_path: Path) -> None:
    raw = write_log(tmp_path / "log.csv")
    same = [prepare(GOOD, [raw], tmp_path / name).fingerprint for name in "ab"]
    other = prepare({**GOOD, "min_count": 5}, [raw], tmp_path / "c").fingerprint
    assert same[0] == same[1] != other


def test_schema_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*none\. Give the --out folder of `embank prepare`"):
        Schema.load(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no schema\.json, so it is not a prepared folder"):
        Schema.load(tmp_path)
    schema = prepare(GOOD, [write_log(tmp_path / "log.csv")], tmp_path / "out")
    with pytest.raises(DataError, match=r"there is no split 'tets'; this data has train, valid, test"):
        schema.split("tets")
    file = tmp_path / "out" / "schema.json"
    text = file.read_text()
    for changed, said in (
        (text[:-30], r"can't be read"),
        (
            text.replace('"format_version": 2', '"format_version": 3'),
            r"has format version 3; this embank reads version 2",
        ),
        (text.replace('"splits"', '"spltis"'), r"schema\.json is damaged \('splits'\)"),
    ):
        file.write_text(changed)
        with pytest.raises(DataError, match=said):
            Schema.load(tmp_path / "out")


def test_describe(tmp_path: Path) -> None:
    config = {**GOOD, "multivalued": {"tags": "|"}, "min_count": {"a": 8}, "split": {"by": "ratio"}}
    schema = prepare(config, [write_log(tmp_path / "log.csv")], tmp_path / "out")
    description = describe(tmp_path / "out")
    feature = description.features[0]
    test_ids = [row["a"] for row in naive.read_rows(tmp_path / "out", "test")]
    counts = [count for _, _, count in naive.read_vocabulary(tmp_path / "out", "a")]
    assert feature.unknown_share["test"] == test_ids.count(0) / len(test_ids) > 0
    assert feature.top_share == max(counts) / sum(counts)
    assert feature.bytes_at_dim_16 == schema.categorical[0].num_embeddings * 64
    words = describe_folder(tmp_path / "out")
    assert "train   320" in words
    assert "many" in words
    (tmp_path / "out" / "vocab" / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.parquet' has 7 bytes where [\d,]+ were written"):
        describe_folder(tmp_path / "out")


def test_rich_progress_shows_stages_and_speed(tmp_path: Path) -> None:
    raw, shown = write_log(tmp_path / "log.csv"), io.StringIO()
    bars = Bars(Console(file=shown, width=120), keep=True)
    prepare(GOOD, [raw], tmp_path / "out", reporter=bars)
    bars.close()
    assert [stage for stage in ("reading", "ranking", "writing") if stage in shown.getvalue()] == [
        "reading",
        "ranking",
        "writing",
    ]
    assert "100%" in shown.getvalue()
