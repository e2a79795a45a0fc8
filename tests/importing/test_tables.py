"""Tables alone: files of vectors and tables as bundles, with tokens, ids or rows as they stand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from embank.pipelines import convert_bundle, import_source, load_model, load_vectors
from embank.pipelines.cli.app import app
from embank.pipelines.data.loading.integrity import seal
from embank.pipelines.vectors.sources import TableVectors
from embank.tables import Bundle, CheckpointError, ConfigError, DataError, load_bundle
from embank.tables.ids.vocabulary import Vocabulary
from embank.tables.storage.checksums import CHECKSUMS
from tests.convert.bundles import trained_bundle_of_a_log
from tests.data.prepared import write_prepared
from tests.pages import embank
from tests.told import Told

ROWS, DIM = 12, 4
TOKENS = [f"t{number}" for number in range(ROWS)]


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))


def word2vec_text(path: Path, rows: Tensor, tokens: list[str] = TOKENS, *, end: str = "\n") -> Path:
    lines = [
        f"{token} {' '.join(str(number) for number in row)}{end}"
        for token, row in zip(tokens, rows.tolist(), strict=True)
    ]
    path.write_text(f"{len(rows)} {rows.shape[1]}\n{''.join(lines)}")
    return path


def word2vec_binary(path: Path, rows: Tensor, *, end: bytes = b"\n") -> Path:
    parts = [token.encode() + b" " + row.numpy().tobytes() + end for token, row in zip(TOKENS, rows, strict=True)]
    path.write_bytes(f"{len(rows)} {rows.shape[1]}\n".encode() + b"".join(parts))
    return path


def parquet(path: Path, rows: Tensor, **columns: Any) -> Path:
    pl.DataFrame({**columns, "vector": rows.tolist()}, schema_overrides={"vector": pl.List(pl.Float32)}).write_parquet(
        path
    )
    return path


def written(path: Path, rows: Tensor) -> dict[str, Path]:
    """The same rows as each kind of file has them."""
    np.save(path / "item.npy", rows.numpy())
    save_file({"item": rows}, path / "item.safetensors")
    torch.save({"net.embeddings.item.weight": rows}, path / "item.pt")
    return {
        "npy": path / "item.npy",
        "safetensors": path / "item.safetensors",
        "parquet": parquet(path / "item.parquet", rows),
        "word2vec": word2vec_text(path / "item.txt", rows),
        "torchrec": path / "item.pt",
    }


def looked_up(bundle: Path, table: str = "item") -> Tensor:
    packs = {spec.name: (spec, pack) for spec, pack in load_bundle(bundle).packed_tables()}
    spec, pack = packs[table]
    return pack.lookup(torch.arange(spec.num_embeddings))


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet", "word2vec", "torchrec"])
def test_rows_as_they_stand(kind: str, rows: Tensor, tmp_path: Path) -> None:
    done = import_source(written(tmp_path, rows)[kind], tmp_path / "out", kind=kind)
    assert torch.equal(looked_up(tmp_path / "out"), rows)
    (table,) = done.tables
    assert (table.name, table.ids, table.by, table.missing, table.surplus, table.error) == (
        "item",
        ROWS,
        "row",
        0,
        0,
        0,
    )
    assert Bundle(tmp_path / "out", verify=True).facts["imported"]["from"] == kind


@pytest.mark.parametrize("how", ["text", "text with spaces at the end", "binary", "binary without line feeds"])
def test_word2vec_and_its_tokens(how: str, rows: Tensor, tmp_path: Path) -> None:
    if "text" in how:
        word2vec_text(tmp_path / "words", rows, end=" \n" if "spaces" in how else "\n")
    else:
        word2vec_binary(tmp_path / "words", rows, end=b"" if "without" in how else b"\n")
    import_source(tmp_path / "words", tmp_path / "out", kind="word2vec")
    found = load_vectors(tmp_path / "out")
    assert torch.equal(found.lookup(["t7", "t0"]), rows[[7, 0]])
    with pytest.raises(DataError, match="no key 'dog'"):
        found.lookup(["dog"])
    import_source(tmp_path / "out", tmp_path / "again", kind="embank", codec="int8")  # tokens go along
    assert torch.allclose(load_vectors(tmp_path / "again").lookup(["t7", "t0"]), rows[[7, 0]], atol=0.02)


def test_a_table_that_two_features_read(rows: Tensor, tmp_path: Path) -> None:
    names = {"item": "item", "last_item": "item"}
    import_source(written(tmp_path, rows)["torchrec"], tmp_path / "out", kind="torchrec", names=names)
    assert torch.equal(looked_up(tmp_path / "out", "last_item"), looked_up(tmp_path / "out", "item"))


def test_small_in_the_same_step(rows: Tensor, tmp_path: Path) -> None:
    many = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "item.npy", many.numpy())
    with pytest.raises(
        ConfigError, match="--codec has codec 'dedup' and a budget, but how many bytes that takes is only"
    ):
        import_source(tmp_path / "item.npy", tmp_path / "out", kind="npy", method="hash", budget=0.5, codec="dedup")
    np.save(tmp_path / "few.npy", np.ones((3, 2), dtype=np.float32))
    few = import_source(tmp_path / "few.npy", tmp_path / "few", kind="npy", codec="int8")
    assert few.tables[0].codec == load_vectors(tmp_path / "few").codec == "fp32", "of so few numbers"
    done = import_source(tmp_path / "item.npy", tmp_path / "out", kind="npy", method="hash", budget=0.5)
    (table,) = done.tables
    assert table.method == "hash"
    assert table.nbytes <= 0.5 * 400 * 8 * 4
    error = (looked_up(tmp_path / "out") - many).norm() / many.norm()
    assert table.error == pytest.approx(float(error), abs=1e-6)
    assert 0.3 < table.error < 1  # each row is the mean of two
    coded = import_source(tmp_path / "item.npy", tmp_path / "coded", kind="npy", codec="int8").tables[0]
    assert 0 < coded.error < 0.01
    assert coded.nbytes < 0.4 * 400 * 8 * 4


def test_rows_that_codes_can_not_cut_are_told(tmp_path: Path) -> None:
    """As `embank compress` tells it."""
    np.save(tmp_path / "item.npy", np.random.default_rng(0).normal(size=(100, 13)).astype(np.float32))
    told = Told()
    import_source(tmp_path / "item.npy", tmp_path / "out", kind="npy", codec="pq", reporter=told)
    (said,) = [note for note in told.notes if "codec 'pq'" in note]
    assert said.startswith("table 'item': codec 'pq': 13 columns can't be cut into 6 parts of one width")


def test_one_budget_for_several_tables(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"user": 1000, "item": 400, "day": 7}
    save_file(
        {name: torch.randn(size, 8, generator=generator) for name, size in sizes.items()}, tmp_path / "all.safetensors"
    )
    done = import_source(tmp_path / "all.safetensors", tmp_path / "out", kind="safetensors", method="hash", budget=0.25)
    assert sum(table.nbytes for table in done.tables) <= 0.25 * sum(sizes.values()) * 8 * 4
    assert {table.name: table.method for table in done.tables} == {"user": "hash", "item": "hash", "day": "full"}


def test_a_column_of_ids(rows: Tensor, tmp_path: Path) -> None:
    order = [3, 1, 0, 2, 11, 10, 9, 8, 7, 6, 5, 14]
    parquet(tmp_path / "item.parquet", rows, id=order)
    done = import_source(tmp_path / "item.parquet", tmp_path / "out", kind="parquet")
    found = looked_up(tmp_path / "out")
    assert torch.equal(found[order], rows)
    assert found.shape[0] == 15
    assert not found[[4, 12, 13]].any()  # which no row is of
    assert (done.tables[0].by, done.tables[0].missing, done.tables[0].surplus) == ("id", 3, 0)


def ours(folder: Path, tokens: list[str | None], *, missing_id: int | None = None) -> Path:
    """A prepared folder's vocabulary of `item`, and no more."""
    write_prepared(folder, rows={"train": 8, "valid": 8, "test": 8}, single={"item": len(tokens)})
    series = pl.Series(tokens, dtype=pl.String)
    counts = np.arange(len(tokens), 0, -1)
    Vocabulary("item", series, counts, missing_id=missing_id).save(folder / "vocab/item.parquet")
    (folder / CHECKSUMS).unlink()
    seal(folder)
    return folder


@pytest.mark.parametrize("kind", ["word2vec", "parquet", "npy"])
def test_tokens_in_our_order(kind: str, rows: Tensor, tmp_path: Path) -> None:
    """Two of ours it has not, one of its own we have not; without tokens of its own, a file says them."""
    tokens = [None, "t5", "new", "t0", None, *TOKENS[6:]]
    data = ours(tmp_path / "data", tokens, missing_id=4)
    file, vocab = {
        "word2vec": (word2vec_text(tmp_path / "item.txt", rows), [str(data)]),
        "parquet": (parquet(tmp_path / "item.parquet", rows, name=TOKENS), [str(data)]),
        "npy": (tmp_path / "item.npy", [f"item={data}"]),
    }[kind]
    if kind == "npy":
        np.save(file, rows.numpy())
        with pytest.raises(DataError, match=r"has 11 rows, and the array of .* has 12: it belongs to another table"):
            import_source(file, tmp_path / "out", kind=kind, vocab=vocab)
        return
    done = import_source(
        file, tmp_path / "out", kind=kind, vocab=vocab, id_column="name" if kind == "parquet" else None
    )
    found = looked_up(tmp_path / "out")
    assert torch.equal(found[[1, 3, 5, 10]], rows[[5, 0, 6, 11]])
    assert not found[[0, 2, 4]].any()
    assert (done.tables[0].by, done.tables[0].missing, done.tables[0].surplus) == ("token", 3, 4)


@pytest.mark.parametrize("kind", ["word2vec", "parquet", "embank"])
@pytest.mark.parametrize("vocab", ["other.txt", "other.json", "other.parquet"])
def test_tokens_of_the_file_itself_stand(kind: str, vocab: str, rows: Tensor, tmp_path: Path) -> None:
    other = [TOKENS[1], TOKENS[0], *TOKENS[2:]]
    (tmp_path / "other.txt").write_text("".join(f"{token}\n" for token in other))
    (tmp_path / "other.json").write_text(json.dumps(other))
    pl.DataFrame({"token": other}).write_parquet(tmp_path / "other.parquet")
    if kind == "parquet":
        source = parquet(tmp_path / "item.parquet", rows, name=TOKENS)
    else:
        source = word2vec_text(tmp_path / "item", rows)
    if kind == "embank":
        import_source(source, tmp_path / "bundle", kind="word2vec", name="item")
        source = tmp_path / "bundle"
    with pytest.raises(ConfigError, match=rf"the file names its tokens itself .*{vocab}' would.*leave --vocab out"):
        import_source(source, tmp_path / "out", kind=kind, vocab=[str(tmp_path / vocab)])
    data = ours(tmp_path / "data", [None, *other])
    import_source(source, tmp_path / "out", kind=kind, vocab=[str(data)])
    assert torch.equal(looked_up(tmp_path / "out")[1:3], rows[[1, 0]])


def test_a_list_of_tokens_beside_ids(rows: Tensor, tmp_path: Path) -> None:
    """It names rows by their order, and so only where that is the ids'."""
    (tmp_path / "tokens.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    how: dict[str, Any] = {"kind": "parquet", "vocab": [str(tmp_path / "tokens.txt")]}
    parquet(tmp_path / "item.parquet", rows, id=[0, 2, 1, *range(3, ROWS)])
    with pytest.raises(ConfigError, match="column 'id', row 1 is id 2, and .*tokens.txt' names rows by their order"):
        import_source(tmp_path / "item.parquet", tmp_path / "out", **how)
    parquet(tmp_path / "item.parquet", rows, id=range(ROWS))
    import_source(tmp_path / "item.parquet", tmp_path / "out", **how)
    assert torch.equal(load_vectors(tmp_path / "out").lookup(["t7"]), rows[[7]])


def test_ids_in_floats(rows: Tensor, tmp_path: Path) -> None:
    order = [3, 1, 0, 2, *range(4, ROWS)]
    for name, kind in (("id", pl.Float64), ("item_id", pl.Float32)):
        parquet(tmp_path / "item.parquet", rows, **{name: pl.Series(order, dtype=kind)})
        assert import_source(tmp_path / "item.parquet", tmp_path / name, kind="parquet").tables[0].by == "id"
        assert torch.equal(looked_up(tmp_path / name)[order], rows)
    parquet(tmp_path / "item.parquet", rows, popularity=[number + 0.5 for number in order])  # which are no ids
    assert import_source(tmp_path / "item.parquet", tmp_path / "out", kind="parquet").tables[0].by == "row"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("id", pl.Series([0.5, *range(1, ROWS)]), "is double, and row 0 is no whole number; keys are"),
        (
            "id",
            pl.Series([0.0, None, *map(float, range(2, ROWS))]),
            "is double, and row 1 is no whole number; keys are",
        ),
        ("item_id", pl.Series(range(ROWS)).cast(pl.Decimal(10, 0)), "is decimal128.10, 0."),
        ("movie", pl.Series([token.encode() for token in TOKENS]), "is (large_)?binary"),
    ],
)
def test_keys_of_other_types(name: str, values: pl.Series, message: str, rows: Tensor, tmp_path: Path) -> None:
    path = parquet(tmp_path / "item.parquet", rows, **{name: values})
    for option in (None, name):
        with pytest.raises(DataError, match=rf"item.parquet': column '{name}' .*{message}.*to integers.*--id-column"):
            import_source(path, tmp_path / "out", kind="parquet", id_column=option)
    assert import_source(path, tmp_path / "out", kind="parquet", id_column="").tables[0].by == "row"


def test_an_empty_token_of_a_column(rows: Tensor, tmp_path: Path) -> None:
    path = parquet(tmp_path / "item.parquet", rows, name=["", *TOKENS[1:]])
    with pytest.raises(DataError, match="column 'name', row 0: the token is empty"):
        import_source(path, tmp_path / "out", kind="parquet")


def test_a_bundle_of_tables_scores_nothing(rows: Tensor, tmp_path: Path) -> None:
    import_source(written(tmp_path, rows)["npy"], tmp_path / "out", kind="npy")
    with pytest.raises(ConfigError, match="has tables only, and no model"):
        load_model(tmp_path / "out")


@pytest.mark.slow
def test_what_embank_convert_wrote_comes_back(tmp_path: Path) -> None:
    bundle = trained_bundle_of_a_log(tmp_path)
    convert_bundle(bundle, to="parquet", out=tmp_path / "parquet")
    done = import_source(tmp_path / "parquet", tmp_path / "again", kind="parquet", vocab=[str(tmp_path / "prepared")])
    assert {table.by for table in done.tables} == {"token"}
    assert sum(table.missing + table.surplus for table in done.tables) == 0
    for table in done.tables:
        assert torch.equal(looked_up(tmp_path / "again", table.name), looked_up(bundle, table.name)), table.name
    alone = import_source(tmp_path / "parquet", tmp_path / "ids", kind="parquet", id_column="id")
    assert {table.by for table in alone.tables} == {"id"}
    import_source(bundle, tmp_path / "tables", kind="embank")  # whose tokens go along, those of unknown values null
    known = [TableVectors(path, table="user").keys() for path in (bundle, tmp_path / "tables")]
    assert known[0] is not None
    assert known[0].to_list() == known[1].to_list()  # type: ignore[union-attr]
    kept = Vocabulary.load(tmp_path / "tables/tokens/user.parquet")
    assert kept.encode(["u3"]).tolist() == [known[0].to_list().index("u3")]


def test_tables_for_a_training(rows: Tensor, tmp_path: Path) -> None:
    """One table of vectors begins a run of a model whose other parts begin anew."""
    data = ours(tmp_path / "data", [None, *reversed(TOKENS)])
    word2vec_text(tmp_path / "words.txt", rows)
    config = f"data: {{path: {data}, batch_size: 4}}\nmodel: {{name: fm}}\ntables: {{dim: {DIM}}}\n"
    (tmp_path / "fm.yaml").write_text(config)
    said = embank(
        *("import", tmp_path / "words.txt", "--from", "word2vec", "--table", "item"),
        *("--config", tmp_path / "fm.yaml", "--out", tmp_path / "run"),
    )
    assert "initial values: first_order/item" in said
    assert not (tmp_path / "run/bundle").exists()
    assert json.loads((tmp_path / "run/import.json").read_text())["tables"][0]["missing"] == 1
    embank(
        "train",
        tmp_path / "fm.yaml",
        "--from",
        tmp_path / "run",
        "--out",
        tmp_path / "trained",
        "--set",
        "train.table_lr=0",
    )
    assert torch.equal(looked_up(tmp_path / "trained/bundle")[1:], rows.flip(0))  # at a learning rate of 0


BAD: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("npy", {}, {"kind": "parquets"}, "no source 'parquets'; did you mean 'parquet'"),
    ("npy", {}, {"kind": "parquet"}, "is not named .parquet"),
    ("npy", {}, {"tensor": "x"}, "--tensor 'x' is of other sources than 'npy'"),
    ("npy", {}, {"vocab": ["nowhere"]}, "there is no 'nowhere', which --vocab names"),
    ("npy", {"short.txt": "a\nb\n"}, {"vocab": ["short.txt"]}, "'short.txt' has 2 rows, and the array of .* has 12"),
    (
        "npy",
        {"twice.txt": "a\nb\na\n"},
        {"vocab": ["twice.txt"]},
        "'twice.txt', lines 1 and 3: .*token 'a'",
    ),
    ("npy", {"latin.txt": b"caf\xe9\n"}, {"vocab": ["latin.txt"]}, "'latin.txt', line 1: .*is not UTF-8 .byte 3"),
    ("npy", {"v.json": "{"}, {"vocab": ["v.json"]}, "'v.json' can't be read as JSON"),
    ("npy", {"v.json": '{"item": {"a": 1, "b": 1}}'}, {"vocab": ["v.json"]}, "tokens 'a' and 'b' both have row 1"),
    (
        "npy",
        {"v.json": '{"itm": {"a": 1}}'},
        {"vocab": ["v.json"]},
        "no vocabulary of 'item': name .*FEATURE=item; did you mean 'itm'.$",
    ),
    ("npy", {}, {"order": ["a"]}, "--order is of whole models"),
    ("npy", {}, {"names": {"x": "itm"}}, "no table 'itm'.*did you mean 'item'"),
    ("npy", {}, {"budget": 0.5, "method": "hsh"}, "hsh.*hash"),
    ("npy", {}, {"codec": "int9"}, "int9"),
    ("npy", {}, {"method": "hash"}, "--method hash needs a size; give --budget"),
    ("npy", {}, {"method": "hash", "budget": 2}, "--budget is 2; .* in .0, 1."),
    ("npy", {}, {"budget": 0}, "--budget is 0; .* in .0, 1."),
    ("npy", {"gap.txt": "a\n\nb\n"}, {"vocab": ["gap.txt"]}, "'gap.txt', line 2: the token is empty"),
    ("word2vec", {}, {"kind": "torchrec"}, "is no file of torch.save, or truncated|can't be read as tensors alone"),
    ("torchrec", {}, {"kind": "fuxictr"}, "no tables of FuxiCTR.*It has net.embeddings.item.weight"),
    ("torchrec", {}, {"kind": "word2vec"}, "line 1: .* is not the number of vectors"),
]


@pytest.mark.parametrize(("kind", "files", "changes", "message"), BAD)
def test_refused(
    kind: str,
    files: dict[str, Any],
    changes: dict[str, Any],
    message: str,
    rows: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, rows)[kind]
    for name, content in files.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises((ConfigError, DataError), match=message):
        import_source(path, tmp_path / "out", **{"kind": kind, **changes})
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_nothing_is_written_over(rows: Tensor, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        import_source(written(tmp_path, rows)["npy"], tmp_path / "out", kind="npy")


def test_vectors_that_are_no_numbers(rows: Tensor, tmp_path: Path) -> None:
    rows[7, 2] = float("nan")
    for kind, path in written(tmp_path, rows).items():
        with pytest.raises(DataError, match="row 7: number 2 is nan"):
            import_source(path, tmp_path / "out", kind=kind)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_wrote(rows: Tensor, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    said = embank(
        "import", written(tmp_path, rows)["npy"], "--from", "npy", "--table", "word", "--out", tmp_path / "out"
    )
    assert "word" in said
    assert "1 tables, 192 bytes" in said
    for options in (["--table", "a", "--table", "b"], ["--table", "a="], ["--set", "train.lr=1"], ["--pooling", "max"]):
        done = CliRunner().invoke(app, ["import", str(tmp_path / "item.npy"), "--from", "npy", "--out", "x", *options])
        assert isinstance(done.exception, ConfigError), options


def test_names_that_differ_in_a_slash_keep_their_tokens(tmp_path: Path) -> None:
    """In keys, and in a conversion."""
    for name in ("x", "y"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i}\n" for i in range(30)))
    save_file({"a/b": torch.randn(30, 4), "a.b": torch.randn(30, 4)}, tmp_path / "t.safetensors")
    vocab = [f"a/b={tmp_path / 'x.txt'}", f"a.b={tmp_path / 'y.txt'}"]
    import_source(tmp_path / "t.safetensors", tmp_path / "imported", kind="safetensors", vocab=vocab)
    convert_bundle(tmp_path / "imported", to="parquet", out=tmp_path / "out")
    parts = {own["name"]: own["parts"] for own in json.loads((tmp_path / "out/manifest.json").read_text())["tables"]}
    for table, first in (("a/b", "x0"), ("a.b", "y0")):
        keys = TableVectors(tmp_path / "imported", table=table).keys()
        assert keys is not None
        tokens = pl.concat([pl.read_parquet(tmp_path / "out" / part) for part in parts[table]])["token"]
        assert first in keys.to_list()
        assert keys.to_list() == tokens.to_list()


def test_ids_beyond_int64_are_refused_by_their_row(tmp_path: Path) -> None:
    rows = [[0.0, 1.0], [1.0, 0.0]]
    pl.DataFrame({"id": pl.Series([1, 2**63 + 5], dtype=pl.UInt64), "vector": rows}).write_parquet(
        tmp_path / "v.parquet"
    )
    with pytest.raises(DataError, match=r"row 1: id 9223372036854775813 is beyond int64"):
        import_source(tmp_path / "v.parquet", tmp_path / "out", kind="parquet")
    assert not (tmp_path / "out").exists()
