"""How text files are read: quotes, escapes, line ends and headers, against rows that were written by hand or cell by
cell."""

import gzip
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from embank.pipelines.data.prepare.prepare import prepare
from embank.pipelines.data.sources.formats import text
from embank.pipelines.data.sources.formats.base import TextOptions
from embank.pipelines.data.sources.formats.generic import open_csv, open_tsv
from embank.tables.errors import ConfigError, DataError

Row = tuple[str | None, ...]
QUOTED_BY_BACKSLASH = '1,"3.5\\" disk",a1\n0,x,a2\n0,"5\\" nail",a3\n'
HEADER = "click,title,item\n"


def read(
    path: Path,
    content: str | bytes,
    columns: Sequence[str] = ("click", "title", "item"),
    *,
    tsv: bool = False,
    **options: str | None,
) -> list[Row]:
    """The named columns of a file of this content, row by row."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = (open_tsv if tsv else open_csv)([path], TextOptions(**options))
    return [row for chunk in source.chunks(list(columns)) for row in chunk.frame.rows()]


def refusal(path: Path, content: str, columns: Sequence[str] = ("click", "title", "item"), **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, content, columns, **options)
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.fixture(name="log")
def _log(tmp_path: Path) -> Path:
    return tmp_path / "log.csv"


ESCAPED_ROWS = [
    (r'1,"3.5\" disk",a1', ("1", '3.5" disk', "a1")),
    (r'0,"\"",a2', ("0", '"', "a2")),
    (r'0,"C:\\",a3', ("0", "C:\\", "a3")),
    (r'0,"a\\\"b, \\\\\", c",a4', ("0", r"a\"b, \\" + '", c', "a4")),
    ('0,"two\\"\nlines",a5', ("0", 'two"\nlines', "a5")),
    (r'0,"a \d \n b",a6', ("0", r"a \d \n b", "a6")),
    (r"0,a\b\\c,\N", ("0", r"a\b\\c", r"\N")),
    ('0,"",a8', ("0", None, "a8")),
    ('0,"doubled ""too""",a9', ("0", 'doubled "too"', "a9")),
]


@pytest.mark.parametrize("block_bytes", [16, 2**20])
def test_quotes_escaped_by_a_backslash(log: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    content = HEADER + "".join(line + "\n" for line, _ in ESCAPED_ROWS)
    assert read(log, content, escape="\\") == [row for _, row in ESCAPED_ROWS]
    assert read(log, gzip.compress(content.replace("\n", "\r\n").encode()), escape="\\") == [
        row for _, row in ESCAPED_ROWS
    ]


@pytest.mark.parametrize("columns", [("click", "title", "item"), ("click", "item")], ids=["used", "not used"])
@pytest.mark.parametrize("copies", [1, 333])
def test_escaped_quotes_are_refused_where_no_escape_is_stated(log: Path, columns: Sequence[str], copies: int) -> None:
    content = HEADER + QUOTED_BY_BACKSLASH * copies
    assert refusal(log, content, columns) == (
        'log.csv, line 2: a quote (") inside cell 2 of \'1,"3.5\\\\" disk",a1\'. Set `escape: "\\\\"` in the '
        'configuration if `\\"` '
        "stands for a quote; else double it and quote the whole cell. If quotes are plain characters in this file, "
        "set `quote: null`."
    )
    assert read(log, content, columns, escape="\\") == [
        tuple(row[name] for name in columns)
        for row in [
            {"click": "1", "title": '3.5" disk', "item": "a1"},
            {"click": "0", "title": "x", "item": "a2"},
            {"click": "0", "title": '5" nail', "item": "a3"},
        ]
        * copies
    ]


@pytest.mark.parametrize("tsv", [False, True])
def test_quotes_inside_cells_are_refused(log: Path, tsv: bool) -> None:
    def inside(line: str) -> str:
        content = HEADER + "1,x,a1\n" + line + '\n0,"y",a3\n' * 40
        return refusal(log, content.replace(",", "\t") if tsv else content, tsv=tsv)

    separator = "\t" if tsv else ","
    for line, cell in (
        ('0,"3.5" disk",a2', 2),
        ('0,3.5" disk,a2', 2),
        ('0,x,a2 "b"', 3),
        ('0,"x" ,a2', 2),
        ('0, "x",a2', 2),
    ):
        shown = line.replace(",", separator)
        cure = "Remove the white space before it, or double" if ', "' in line else "Double"
        assert inside(line).startswith(
            f'log.csv, line 3: a quote (") inside cell {cell} of {shown!r}. {cure} it and quote'
        )
    assert "line 3: a quote" in refusal(log, HEADER + '1,"a\nb"c,x\n0,y,z\n')
    assert "inside cell 2 of 'b\"c,x'" in refusal(log, HEADER + '1,"a\nb"c,x\n0,y,z\n')


def test_a_plain_quote_at_a_cells_edge_does_not_swallow_lines(log: Path) -> None:
    lines = [f"{number % 2}\tquery {number}\ta{number}\n" for number in range(100)]
    lines[3], lines[60] = '1\t"cheap\ta3\n', '0\tshoes"\ta60\n'
    content = "click\ttitle\titem\n" + "".join(lines)
    assert refusal(log, content, tsv=True) == (
        "log.csv, line 5: the quote (\") in '1\\t\"cheap\\ta3' is closed in a later "
        "line, and each of these lines has 3 cells of its own. Set `quote: null` in the configuration if quotes are "
        "plain characters in "
        "this file, `escape: '\"'` if quotes inside cells are doubled and this is one cell with line ends in it."
    )
    rows = read(log, content, tsv=True, quote=None)
    assert (len(rows), rows[3], rows[60]) == (100, ("1", '"cheap', "a3"), ("0", 'shoes"', "a60"))
    assert len(read(log, content, tsv=True, escape='"')) == 100 - 57


def test_a_backslash_at_the_end_of_a_quoted_cell_is_text(log: Path) -> None:
    content = HEADER + '0,"C:\\",a1\n1,"D:\\","E:\\"\n'
    assert read(log, content) == [("0", "C:\\", "a1"), ("1", "D:\\", "E:\\")]
    json = HEADER + '1,"{""say"": ""\\""hi\\""""}",a1\n'
    assert read(log, json) == [("1", '{"say": "\\"hi\\""}', "a1")]


def write_cells(rows: Sequence[Row], dialect: str) -> str:
    """Rows as Spark and MySQL (escaped), spreadsheets (doubled), or exports without quoting (plain) write them."""

    def cell(words: str) -> str:
        if dialect == "plain" or not set(words) & set('",\n\\'):
            return words
        if dialect == "doubled":
            return '"' + words.replace('"', '""') + '"'
        return '"' + words.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return HEADER + "".join(",".join(cell(words or "") for words in row) + "\n" for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_no_dialect_swallows_lines(log: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever wrote a file: told how, it is read cell by cell; not told, it has its rows or is refused."""
    rng = random.Random(seed)
    monkeypatch.setattr(text, "BLOCK_BYTES", rng.choice([7, 40, 2**20]))
    dialect = rng.choice(["escaped", "doubled", "plain"])
    alphabet = ["a", "b ", '"', "\\"] + ([] if dialect == "plain" else [",", "\n"])
    weights = [6, 2, rng.choice([1, 3]), rng.choice([0, 2]), 1, 1][: len(alphabet)]
    rows = [
        (str(number % 2), *("".join(rng.choices(alphabet, weights, k=rng.randrange(5))).strip() for _ in range(2)))
        for number in range(rng.choice([3, 12]))
    ]
    content, want = write_cells(rows, dialect), [tuple(cell or None for cell in row) for row in rows]
    stated = {"escaped": {"escape": "\\"}, "doubled": {"escape": '"'}, "plain": {"quote": None}}[dialect]
    assert read(log, content, **stated) == want
    try:
        assert len(read(log, content)) == len(rows)
    except DataError as error:
        assert str(log) in str(error)


def test_headers_with_line_ends_without_names_and_with_a_name_twice(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    content = '"","clicked\n(yes or no)",title,note,note\n0,1,a,x,y\n1,0,b,x,\n'
    rows = [("1", "a"), ("0", "b")]
    assert read(log, content, ["clicked\n(yes or no)", "title"]) == rows
    assert read(log, content.replace("\n", "\r\n"), ["clicked\n(yes or no)", "title"]) == rows
    source = open_csv([log], TextOptions())
    assert (source.columns[0], source.columns[3:], source.twice) == (
        "(column 1, no name)",
        ("note", "note (column 5)"),
        {"note"},
    )
    with pytest.raises(DataError, match=r"log\.csv, line 4: the line has 4 cells, but 5 are expected"):
        read(log, content.replace("1,0,b,x,", "1,0,b,x"), ["title"])
    with pytest.raises(
        DataError, match=r"log\.csv, line 1: the line is empty, and should hold the names of the columns"
    ):
        read(log, "\n" + content, ["title"])


@pytest.mark.parametrize("block_bytes", [16, 2**20])
def test_lines_that_end_in_carriage_returns(log: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    rows = [(str(number % 2), f"t{number}", 'two\n"lines"') for number in range(20)]
    content = write_cells(rows, "doubled")
    assert read(log, content.replace("\n", "\r")) == rows
    assert read(log, content.replace("\n", "\r").rstrip("\r")) == rows
    plain = write_cells([(a, b, "c") for a, b, _ in rows], "doubled")
    assert read(log, gzip.compress(plain.replace("\n", "\r\r\n").encode())) == [(a, b, "c") for a, b, _ in rows]


def test_files_without_rows_among_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    contents = {
        "0.csv": "",
        "1.csv": HEADER,
        "2.csv": HEADER + "1,a,b\n",
        "3.csv": HEADER.strip(),
        "4.csv": HEADER + "0,c,d\n",
    }
    paths = [tmp_path / name for name in contents]
    for path in paths:
        path.write_text(contents[path.name])
    source = open_csv(paths, TextOptions())
    rows = [row for chunk in source.chunks(["click", "title", "item"]) for row in chunk.frame.rows()]
    assert rows == [("1", "a", "b"), ("0", "c", "d")]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / name}.csv has no rows" for name in "013"
    ]
    with pytest.raises(DataError, match=r"1\.csv has a header but no rows \(nor have 1 more files\)\. Check that"):
        list(open_csv([paths[1], paths[3]], TextOptions()).chunks(["click"]))
    with pytest.raises(DataError, match=r"0\.csv is empty\. Check that the file is complete"):
        open_csv([paths[0], paths[0]], TextOptions())


def test_white_space_around_cells_is_not_part_of_them(log: Path) -> None:
    content = HEADER + '1,  a ,"  "\n0,\u00a0a\t,"  b c  "\n'
    assert read(log, content) == [("1", "a", None), ("0", "a", "b c")]


def test_cells_too_many_where_quotes_have_no_meaning(log: Path) -> None:
    message = refusal(log, HEADER + '1,"a,b",c\n', quote=None)
    assert message.endswith("Quotes have no meaning here, so no cell can hold a separator (','). Mend the line.")


def test_published_layouts_have_a_dialect_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\t".join(["1", *["5"] * 13, *["a"] * 26]) + "\n")
    for key, value in (("separator", ","), ("quote", None), ("escape", "\\")):
        with pytest.raises(
            ConfigError, match=rf"^{key} is .*, but format 'criteo' has separators and quotes of its own\. Remove"
        ):
            prepare({key: value}, [tmp_path / "train.txt"], tmp_path / "out", format="criteo")


UNQUOTED_ROWS = [
    ("1\tplain\ta1", ("1", "plain", "a1")),
    ("0\ttwo\\\tcells\ta2", ("0", "two\tcells", "a2")),
    ("0\ttwo\\\nlines\ta3", ("0", "two\nlines", "a3")),
    (r"1	by\tletters\nC:\\new\\\\	\N", ("1", "by\tletters\nC:\\new\\\\", "\\N")),
    (r'0	say "hi\d"	a5\\', ("0", 'say "hi\\d"', "a5\\")),
]


@pytest.mark.parametrize("block_bytes", [16, 2**20])
def test_escapes_without_quotes(log: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    lines, rows = [line for line, _ in UNQUOTED_ROWS], [row for _, row in UNQUOTED_ROWS]
    content = HEADER.replace(",", "\t") + "".join(line + "\n" for line in lines)
    assert read(log, content, tsv=True, quote=None, escape="\\") == rows
    message = refusal(log, content + "1\tx\\\ty\n", tsv=True, quote=None, escape="\\")
    assert message.startswith("log.csv, line 8: the line has 2 cells, but 3 are expected")
    message = refusal(log, content + "1\t\x1d\\\\\ty\n", tsv=True, quote=None, escape="\\")
    assert message.startswith("log.csv holds the control character 0x1D")


@pytest.mark.parametrize("seed", range(20))
def test_escaped_cells_come_back(log: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(text, "BLOCK_BYTES", rng.choice([7, 40, 2**20]))
    rows = [
        (str(number % 2), *("".join(rng.choices('a\\,\n"tn', k=rng.randrange(6))).strip() for _ in range(2)))
        for number in range(12)
    ]
    cells = [[cell.replace("\\", "\\\\").replace(",", "\\,").replace("\n", "\\\n") for cell in row] for row in rows]
    content = HEADER + "".join(",".join(row) + "\n" for row in cells)
    assert read(log, content, quote=None, escape="\\") == [tuple(cell or None for cell in row) for row in rows]


@pytest.mark.parametrize("block_bytes", [4, 5, 7, 2**20])
@pytest.mark.parametrize("behind", ["", "\n", "\n\n\n"])
def test_the_last_cell_may_end_in_an_escaped_line_end(
    log: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, behind: str
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    options = {"quote": None, "escape": "\\"}
    two = ("title", "item")
    assert read(log, "title,item\n1,x\\\n" + behind, two, **options) == [("1", "x")], "white space at an edge"
    assert read(log, "title,item\n1,x\\\n" + behind + "\n", two, **options) == [("1", "x")]
    assert read(log, "title,item\n1,x\\\ny\\\n\n2,z" + behind, two, **options) == [("1", "x\ny"), ("2", "z")]
    assert read(log, "title,item\n1,x\\\\\n" + behind, two, **options) == [("1", "x\\")], "a backslash, and an end"
