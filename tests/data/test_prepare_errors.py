"""What `prepare` says about bad input: the file, the line, the column, the value, and what to do."""

import gzip
import json
import logging
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embank.pipelines.config.columns import parse_config
from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.sources.formats import blocks, text
from embank.pipelines.data.sources.formats.base import TextOptions, check_column
from embank.pipelines.data.sources.formats.generic import open_csv
from embank.tables.errors import ConfigError, DataError

CONFIG: dict[str, Any] = {
    "label": {"column": "click"},
    "categorical": ["user"],
    "numeric": ["price"],
    "split": {"by": "ratio", "ratios": [0.6, 0.2, 0.2]},
}
HEADER = "click,user,price\n"
LINES = [f"{number % 2},u{number},{number}.5\n" for number in range(20)]


def with_line(line: str, *, at: int = 12) -> str:
    """A good file in which line number `at` (1-based, the header is 1) is replaced."""
    lines = [HEADER, *LINES]
    lines[at - 1] = line
    return "".join(lines)


def message(tmp_path: Path, content: str | bytes, config: dict[str, Any] | None = None, **options: Any) -> str:
    """The error about a file of this content, with the folder's name cut out; nothing may be left behind."""
    path = tmp_path / options.pop("name", "log.csv")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((DataError, ConfigError)) as caught:
        prepare({**CONFIG, **(config or {})}, [path], tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == [path]
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_the_good_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEADER + "".join(LINES))
    assert prepare(CONFIG, [tmp_path / "log.csv"], tmp_path / "out").splits[0].num_rows == 12


CELLS = [
    (
        "0,u10\n",
        "log.csv, line 12: the line has 2 cells, but 3 are expected (click, user, price): '0,u10'. Complete or",
    ),
    (
        "0,u10,1,2\n",
        "log.csv, line 12: the line has 4 cells, but 3 are expected (click, user, price): '0,u10,1,2'. Quote",
    ),
    ("\n", "log.csv, line 12: the line is empty, but 3 cells are expected (click, user, price). Delete the line."),
    (
        '0,u"1,2"0,1\n',
        'log.csv, line 12: a quote (") inside cell 2 of \'0,u"1,2"0,1\'. Double it and quote the whole cell.',
    ),
    (
        '0,"u"10,1\n',
        'log.csv, line 12: a quote (") inside cell 2 of \'0,"u"10,1\'. Double it and quote the whole cell.',
    ),
    (
        '0,"u10,1\n',
        'log.csv, line 12: a quote (") is opened and not closed. Close it, double it if it belongs to the text',
    ),
    ("0,u10,cheap\n", "log.csv, line 12: column 'price' is 'cheap': it is no number; mend the cell, leave it empty if"),
    (
        "0,u10,nan\n",
        "log.csv, line 12: column 'price' is 'nan': a numeric feature needs finite numbers; leave the cell empty",
    ),
    ("0,u10,-inf\n", "log.csv, line 12: column 'price' is '-inf': a numeric feature needs finite numbers"),
    (
        "0,u10,1e99\n",
        "log.csv, line 12: column 'price' is '1e99', beyond 32-bit floats. Use the transform log1p, or mend",
    ),
    (
        "2,u10,1\n",
        "log.csv, line 12: label 'click' is '2': expected 0 or 1; mend the line, or give a rule such as `positive:",
    ),
    ("yes,u10,1\n", "log.csv, line 12: label 'click' is 'yes': expected 0 or 1"),
    (",u10,1\n", "log.csv, line 12: label 'click' is missing: expected 0 or 1"),
]


@pytest.mark.parametrize(("line", "expected"), CELLS, ids=[repr(line) for line, _ in CELLS])
@pytest.mark.parametrize("block_bytes", [64, 2**20])
def test_bad_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: str, block_bytes: int) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    assert message(tmp_path, with_line(line)).startswith(expected)


def test_bad_line_in_gzip_and_after_cells_with_newlines(tmp_path: Path) -> None:
    content = with_line("0,u10\n").replace("u3,", '"u\n3",')
    assert message(tmp_path, gzip.compress(content.encode()), name="log.csv.gz").startswith(
        "log.csv.gz, line 13: the line"
    )
    content = with_line("0,u10,x\n").replace("u3,", '"u\n3",')
    assert message(tmp_path, content, name="log.csv.gz").startswith("log.csv.gz, line 13: column 'price' is 'x'")


def test_one_short_line_and_one_long_line_do_not_cancel(tmp_path: Path) -> None:
    content = with_line("0,u10\n").replace("1,u3,3.5", "1,u3,3.5,9")
    assert "log.csv, line 5: the line has 4 cells" in message(tmp_path, content)


def test_label_rules(tmp_path: Path) -> None:
    label = {"column": "click", "positive": "> 0"}
    assert message(tmp_path, with_line("x,u,1\n"), {"label": label}).startswith(
        "log.csv, line 12: label 'click' is 'x': expected a number, which the label rules need; mend or delete the "
        "line."
    )
    both = {"column": "click", "positive": ">= 1", "negative": "<= 1"}
    assert message(tmp_path, with_line("0,u,1\n"), {"label": both}) == (
        "log.csv, line 3: label 'click' is '1': it matches both label rules; make them exclude each other."
    )
    none = {"column": "click", "positive": "> 5", "negative": "< -5"}
    assert message(tmp_path, with_line("0,u,1\n"), {"label": none}) == (
        "log.csv: the label rules drop all 20 rows. Change label.positive or label.negative."
    )
    wrong = {"column": "click", "positive": "4+"}
    assert message(tmp_path, with_line("0,u,1\n"), {"label": wrong}) == (
        "label.positive is '4+'; a rule is an operator (>= <= > < == !=) and a number, such as \">= 4\", or == or != "
        "and a word, such as "
        '"== yes".'
    )


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEADER)
    with pytest.raises(DataError, match=r"there is no file .*/logs\.csv\. Did you mean 'log\.csv'\? Check --input\."):
        prepare(CONFIG, [tmp_path / "logs.csv"], tmp_path / "out")
    with pytest.raises(DataError, match=r"is a folder\. Name the files in it"):
        prepare(None, [tmp_path], tmp_path / "out", format="criteo")
    (tmp_path / "link.csv").symlink_to("nowhere.csv")
    with pytest.raises(DataError, match=r"link\.csv is a link to nowhere\.csv, which is not there\. Check --input\."):
        prepare(CONFIG, tmp_path / "link.csv", tmp_path / "out")
    for path in ("/dev/null", "/dev/zero"):
        with pytest.raises(DataError, match=rf"{path} is a device or a pipe, and input is read twice\."):
            prepare(CONFIG, path, tmp_path / "out")
    with pytest.raises(DataError, match=r"no input file is given"):
        prepare(CONFIG, [], tmp_path / "out")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.csv").write_text(HEADER + "".join(LINES))

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    for format in ("csv", "parquet", "criteo"):
        with pytest.raises(DataError, match=r"log\.csv can't be read: Permission denied\. Check its permissions"):
            prepare(CONFIG if format != "criteo" else None, str(tmp_path / "log.csv"), tmp_path / "out", format=format)


def test_empty_file_and_header_only(tmp_path: Path) -> None:
    assert message(tmp_path, "") == "log.csv is empty. Check that the file is complete."
    assert message(tmp_path, "\n\n") == "log.csv is empty. Check that the file is complete."
    assert message(tmp_path, HEADER) == "log.csv has a header but no rows. Check that the file is complete."
    assert message(tmp_path, HEADER.strip()) == "log.csv has a header but no rows. Check that the file is complete."
    (tmp_path / "train.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.txt is empty\. Check that the file is complete\."):
        prepare(None, [tmp_path / "train.txt"], tmp_path / "out", format="criteo")


def test_wrong_header(tmp_path: Path) -> None:
    content = with_line("0,u,1\n").replace("user", "user_id")
    assert message(tmp_path, content) == (
        "log.csv has no column 'user', which the configuration names under categorical. Did you mean 'user_id'? "
        "Its columns: click, user_id, price."
    )
    for key, value, role in (
        ("label", {"column": "clck"}, "label.column"),
        ("numeric", {"prise": "log1p"}, "numeric"),
        ("split", {"by": "time", "column": "when"}, "split"),
        ("group", "usr", "group"),
    ):
        assert f"which the configuration names under {role}." in message(tmp_path, with_line("0,u,1\n"), {key: value})
    twice = with_line("0,u,1\n").replace("price", "user")
    assert message(tmp_path, twice).startswith("log.csv, line 1: the header names column 'user' twice.")
    unnamed = with_line("0,u,1\n").replace("price", "")
    assert message(tmp_path, unnamed).endswith("Its columns: click, user, (column 3, no name).")


def test_files_of_different_layout(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "".join(LINES))
    (tmp_path / "b.csv").write_text("click,user,cost\n" + "".join(LINES))
    with pytest.raises(DataError, match=r"b\.csv, line 1: the header differs from that of .*a\.csv in column 'cost'"):
        prepare(CONFIG, [tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out")


def test_other_encodings(tmp_path: Path) -> None:
    content = with_line("0,caf\u00e9,1\n")
    offset = content.encode("latin-1").index(b"\xe9")
    assert message(tmp_path, content.encode("latin-1")) == (
        f"log.csv, line 12: byte 0xE9 at offset {offset} of the file is not UTF-8. Convert the file, for example with "
        "`iconv -f latin1 -t utf-8 log.csv`."
    )
    assert "is text in UTF-16; save it as UTF-8" in message(tmp_path, content.encode("utf-16"))
    assert "line 1: byte 0xFC at offset 2" in message(tmp_path, b"cl\xfcck,user,price\n1,a,1\n")


def test_files_of_other_kinds(tmp_path: Path) -> None:
    assert message(tmp_path, b"PK\x03\x04rest") == "log.csv is a zip archive; unpack it first."
    assert "is a Parquet file; use --format parquet" in message(tmp_path, b"PAR1....")
    whole = gzip.compress((HEADER + "".join(LINES * 9)).encode())
    assert re.match(r"log\.csv is damaged: .*Copy or download", message(tmp_path, whole[:60]))
    assert "is no Parquet file, which begins with PAR1. Give text with `--format csv`" in message(
        tmp_path, with_line("0,u,1\n"), format="parquet"
    )
    assert message(tmp_path, b"", format="parquet") == "log.csv is empty. Check that the file is complete."


def test_a_quote_that_never_closes_in_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_MAX_QUOTED_BYTES", 100)
    monkeypatch.setattr(text, "BLOCK_BYTES", 50)
    content = with_line('0,"u,1\n', at=4) + "".join(LINES * 20)
    assert message(tmp_path, content).startswith('log.csv, line 4: a quote (") is opened and not closed.')
    assert "no such quote" not in message(tmp_path, content, {"quote": None, "numeric": ["prize"]})


def test_features_without_values_in_training(tmp_path: Path) -> None:
    empty = HEADER + "".join(line.replace(f"u{i},", ",") if i < 12 else line for i, line in enumerate(LINES))
    assert message(tmp_path, empty) == (
        "log.csv: column 'user' has no value in any training row (all cells are empty), so nothing can be learnt from "
        "it. "
        "Remove it from the configuration."
    )
    empty = HEADER + "".join(f"{i % 2},u,\n" for i in range(20))
    assert message(tmp_path, empty).startswith("log.csv: column 'price' has no value in any training row")
    assert message(tmp_path, empty, {"numeric": {"price": "standard"}}).startswith(
        "log.csv: column 'price' has no value"
    )
    bags = {"numeric": [], "multivalued": {"price": "|"}}
    assert message(tmp_path, empty, bags).startswith("log.csv: column 'price' has no value in any training row")


@pytest.mark.parametrize("separator", [",", "|"])
@pytest.mark.parametrize("role", ["multivalued", "hashed"])
@pytest.mark.parametrize(
    ("bags", "said"),
    [('"[1, 2]"', "'[1, 2]', and all"), ("\"['a', 'b']\"", "\"['a', "), ('"{1,2}"', "'{1,2}', and all")],
)
def test_bags_written_as_lists(tmp_path: Path, separator: str, role: str, bags: str, said: str) -> None:
    """As pandas, JSON and PostgreSQL write them: '[1' and '2]' would be tokens."""
    log = HEADER + "".join(f"{i % 2},,{i}\n{i % 2},{bags},{i}\n" for i in range(10))
    config = {"categorical": [], "multivalued": {"user": separator}} | (
        {"hashed": ["user"]} if role == "hashed" else {}
    )
    assert message(tmp_path, log, config).startswith(f"log.csv, line 3: multi-valued column 'user' is {said}")


@pytest.mark.parametrize("bags", [["[a]", "[b]"], ["[a b]", "c"], ["[a", "b]"]])
def test_bags_that_may_be_words_in_brackets(tmp_path: Path, bags: list[str]) -> None:
    lines = [f"{i % 2},{bags[i // 2 % 2]},{i}\n" for i in range(40)]
    (tmp_path / "log.csv").write_text(HEADER + "".join(lines))
    config = {**CONFIG, "categorical": [], "multivalued": {"user": " "}}
    assert prepare(config, [tmp_path / "log.csv"], tmp_path / "out").splits[0].num_rows == 24


@pytest.mark.parametrize(("separator", "written"), [(";", '";"'), ("\t", '"\\t"'), ("|", '"|"')])
def test_names_with_another_separator(tmp_path: Path, separator: str, written: str) -> None:
    log = (HEADER + "".join(LINES)).replace(",", separator)
    said = message(tmp_path, log)
    other = ", or give --format tsv" if separator == "\t" else ""
    assert f"The names are separated by {separator!r}: set `separator: {written}` in the configuration{other}." in said
    assert "is Excel's word about the separator and no header. Delete it." in message(tmp_path, "sep=;\n" + log)


def test_a_minimum_count_that_no_value_reaches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.csv").write_text(HEADER + "".join(LINES))
    with caplog.at_level(logging.WARNING):
        prepare({**CONFIG, "min_count": 2}, [tmp_path / "log.csv"], tmp_path / "out")
    assert "no value of column 'user' occurs 2 times in training (min_count), so all of them are unknown" in caplog.text


def test_splits_that_can_not_be_used(tmp_path: Path) -> None:
    few = HEADER + "".join(LINES[:2])
    assert message(tmp_path, few, {"split": {"by": "ratio"}}) == (
        "log.csv: the valid split has no rows (train 2, valid 0, test 0). Change `split` or give more rows."
    )
    ones = HEADER + "".join(f"{int(i < 12)},u,1\n" for i in range(20))
    assert message(tmp_path, ones) == (
        "log.csv: all 12 training rows have label 1, so there is nothing to learn. Check `label`, or use another "
        "`split` "
        "(rows may be sorted by label)."
    )
    column = {"split": {"by": "column", "column": "user"}}
    assert message(tmp_path, with_line("0,u,1\n"), column).startswith(
        "log.csv, line 2: split column 'user' is 'u0'; expected train, valid or test."
    )


def test_times_that_can_not_be_used(tmp_path: Path) -> None:
    split = {"split": {"by": "time", "column": "price"}, "numeric": []}
    assert message(tmp_path, with_line("0,u,noon\n"), split).startswith(
        "log.csv, line 12: time column 'price' is 'noon': expected a number, as in the first row. Mend or delete"
    )
    dates = HEADER + "".join(f"{i % 2},u{i},2024-05-{31 if i < 5 else 32}\n" for i in range(20))
    assert message(tmp_path, dates, split).startswith(
        "log.csv, line 7: time column 'price' is '2024-05-32': expected a date such as 2024-05-31 12:00:00 (or a "
        "number, the"
    )
    same = HEADER + "".join(f"{i % 2},u{i},{i // 10}\n" for i in range(20))
    assert message(tmp_path, same, split) == (
        "time column 'price' has 2 different values; a split by time needs at least 3, because rows of one time stay "
        "together. Split by ratio or by hash."
    )


def test_parquet_types_and_values(tmp_path: Path) -> None:
    def error(config: dict[str, Any], **columns: Any) -> str:
        pl.DataFrame({"click": [0, 1] * 5, "price": [1.0] * 10, **columns}).write_parquet(tmp_path / "log.parquet")
        with pytest.raises(DataError) as caught:
            prepare({**CONFIG, **config}, [tmp_path / "log.parquet"], tmp_path / "out", format="parquet")
        return str(caught.value).replace(f"{tmp_path}/", "")

    users = [f"u{i}" for i in range(10)]
    assert error({}, user=users, price=[1.0] * 7 + [float("nan")] * 3).startswith(
        "log.parquet, row 8: column 'price' is nan"
    )
    assert "column 'user' has type List(Int64), which is no single token; list it under multiv" in error(
        {}, user=[[1]] * 10
    )
    bags = {"categorical": [], "multivalued": {"user": None}}
    assert "multi-valued column 'user' has type String and no separator; give a separator" in error(bags, user=users)
    assert "multi-valued column 'user' has type Int64 and no separator; list it under cat" in error(
        bags, user=range(10)
    )
    assert "log.parquet, row 3: label 'click' is 3: expected 0 or 1" in error({}, user=users, click=[0, 1, 3] + [0] * 7)
    assert "column 'price' has type List(Float64), which is no number" in error({}, user=users, price=[[1.0]] * 10)


def test_a_class_missing_from_validation_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "".join(f"{int(i % 2 and i < 12)},u,1\n" for i in range(20)))
    prepare(CONFIG, [path], tmp_path / "out")
    assert "the valid split has one class only, so its AUC is undefined" in caplog.text


@pytest.mark.parametrize("name", ["*", "^x.*$", "^$"])
@pytest.mark.parametrize(
    "role",
    [
        {"label": {"column": "NAME"}},
        {"categorical": ["NAME"]},
        {"multivalued": {"NAME": "|"}},
        {"numeric": ["NAME"]},
        {"hashed": ["NAME"]},
        {"group": "NAME"},
        {"split": {"by": "hash", "key": ["user", "NAME"]}},
        {"split": {"by": "time", "column": "NAME"}},
        {"split": {"by": "column", "column": "NAME"}},
    ],
    ids=lambda role: next(iter(role)),
)
def test_names_that_polars_takes_for_patterns(name: str, role: dict[str, Any]) -> None:
    values = json.loads(json.dumps(CONFIG | role).replace("NAME", name))
    with pytest.raises(ConfigError) as caught:
        parse_config(values, origin="columns.yaml")
    assert str(caught.value) == (
        f"columns.yaml: column {name!r} can't be read, as polars takes such a name for a pattern; rename the column."
    )


def test_patterns_are_refused_and_what_looks_like_one_is_not(tmp_path: Path) -> None:
    """Columns that nobody uses may be called anything; one that is kept, as `predict --keep` does, is checked too."""
    for name in ("^u", "u$", "a*", "**"):
        frame = pl.DataFrame({"click": [row % 2 for row in range(60)], name: [f"i{row % 3}" for row in range(60)]})
        frame.with_columns(**{"*": pl.lit("unused"), "^.*$": 1}).write_csv(tmp_path / "log.csv")
        config = {"label": "click", "categorical": [name], "split": {"by": "ratio"}}
        prepare(config, tmp_path / "log.csv", tmp_path / f"out{name}")
    source = open_csv([tmp_path / "log.csv"], TextOptions())
    with pytest.raises(
        DataError, match=r"log\.csv: column '\^\.\*\$' can't be read, as .* rename the column in the file"
    ):
        check_column(source, "^.*$", whose="is to be kept")


def test_a_file_called_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame = pl.DataFrame({"click": [row % 2 for row in range(60)], "user": [f"u{row % 3}" for row in range(60)]})
    with Path("s3:x.parquet").open("wb") as file:
        frame.write_parquet(file)
    config = {"label": "click", "categorical": ["user"], "split": {"by": "ratio"}}
    assert prepare(config, "s3:x.parquet", "out", format="parquet").splits[0].num_rows == 48
