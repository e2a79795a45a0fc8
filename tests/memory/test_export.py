"""Exports of a memory: the same rows elsewhere, or a refusal."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from embank.tables import CheckpointError, ConfigError, RowTier, register_codec
from embank.tables.memory import (
    MemoryTables,
    StemLayout,
    TokenCompression,
    export_memory,
    import_rows,
    open_memory,
)
from embank.tables.method.base import Held
from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.registry import CODECS, encode
from embank.tables.storage.checksums import write_checksums
from tests.memory.small import compression, engram, memory, stem, tokenizer, tokens, train, weights_of


@pytest.fixture(name="trained", scope="module")
def _trained() -> MemoryTables:
    tables = memory()
    train(tables, steps=3)
    return tables


@pytest.fixture(name="exported", scope="module")
def _exported(trained: MemoryTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "export"
    export_memory(trained, folder)
    return folder


def test_rows_come_back_bit_for_bit(trained: MemoryTables, exported: Path, tmp_path: Path) -> None:
    opened = open_memory(exported, tokenizer(), num_layers=4)
    on_disk = open_memory(exported, tokenizer(), tier=RowTier(name="disk", directory=tmp_path))
    for tables in (opened, on_disk):
        assert all(torch.equal(rows, weights_of(tables)[name]) for name, rows in weights_of(trained).items())
        assert torch.equal(tables(tokens())["engram"][3], trained(tokens())["engram"][3])
    train(opened, steps=1)


def test_a_file_for_each_layer_order_and_head_says_what_it_is(trained: MemoryTables, exported: Path) -> None:
    names = {path.stem for path in (exported / "rows").iterdir()}
    assert names == set(weights_of(trained))
    rows = load_file(exported / "rows" / "engram.layer3.order3.head1.safetensors")["rows"]
    hash = trained.layouts["engram"].hash
    assert torch.equal(rows, weights_of(trained)["engram.layer3.order3.head1"])
    assert len(rows) == hash.primes[3][3]
    facts = json.loads((exported / "manifest.json").read_text())["memory"]["engram"]["hash"]
    assert facts["layer_base"] == 0
    assert facts["primes"]["3"] == list(hash.primes[3])
    assert facts["multipliers"]["1"] == list(hash.multipliers[1])
    assert facts["offsets"]["1"] == [0, *torch.tensor(hash.primes[1][:-1]).cumsum(0).tolist()]
    assert (facts["compressed_vocab_size"], facts["pad_id"], facts["seed"]) == (20, 2, 0)
    assert torch.equal(load_file(exported / "tokens.safetensors")["ids"], trained.compression.ids_V)


@pytest.mark.parametrize(("codec", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_shorter_rows_come_back_rounded(trained: MemoryTables, tmp_path: Path, codec: str, dtype: torch.dtype) -> None:
    export_memory(trained, tmp_path / codec, codec=codec)
    opened = open_memory(tmp_path / codec, tokenizer())
    for name, rows in weights_of(trained).items():
        assert torch.equal(weights_of(opened)[name], rows.to(dtype).float())


class Steps(Coded):
    """Rows in steps of a power of two, as a codec outside of embank may hold them."""

    held = Held(facts=("step",))

    def __init__(self, rows_RD: torch.Tensor) -> None:
        super().__init__()
        self.step = 2.0**-7
        self.register_buffer("codes", (rows_RD / self.step).round().clamp(-128, 127).to(torch.int8))

    @classmethod
    def encode(cls, rows_RD: torch.Tensor) -> "Steps":
        return cls(rows_RD)

    def take(self, rows_N: torch.Tensor) -> torch.Tensor:
        return self.codes.index_select(0, rows_N).float() * self.step


def test_rows_of_any_codec(trained: MemoryTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CODECS, "local", dict(CODECS.local))
    register_codec("steps", Steps)
    export_memory(trained, tmp_path / "export", codec="steps")
    opened = open_memory(tmp_path / "export", tokenizer())
    for name, rows in weights_of(trained).items():
        assert torch.equal(weights_of(opened)[name], Steps(rows).take(torch.arange(len(rows))))
    monkeypatch.setattr(CODECS, "local", {})
    with pytest.raises(CheckpointError, match="has rows of codec 'steps', which is not registered here; install"):
        open_memory(tmp_path / "export", tokenizer())


@pytest.mark.parametrize("codec", ["pca3+int4", "pq4", "binary1", "lowrank3+int4", "dedup40+int4", "int8_rowwise"])
def test_rows_of_codecs_with_numbers_and_parts(trained: MemoryTables, tmp_path: Path, codec: str) -> None:
    export_memory(trained, tmp_path / "export", codec=codec)
    opened = open_memory(tmp_path / "export", tokenizer())
    for name, rows in weights_of(trained).items():
        assert torch.equal(weights_of(opened)[name], encode(rows, codec=codec).take(torch.arange(len(rows))))


def test_codecs_that_rows_alone_can_not_be_coded_by_are_refused(trained: MemoryTables, tmp_path: Path) -> None:
    for codec, told in (
        ("product", "codec 'product' is made while its method trains"),
        ("pca8+product", "'product' is made while its method trains; choose another inner codec"),
        ("int8+int4", "'int8' holds no other codec"),
        ("rows", "there is no codec 'rows'; known codecs: (?!.*(product|stepped))"),
    ):
        with pytest.raises(ConfigError, match=told):
            export_memory(trained, tmp_path / "export", codec=codec)
    assert list(tmp_path.iterdir()) == []


def test_rows_beyond_the_type_of_a_tier_are_refused(tmp_path: Path) -> None:
    """Before the first of them is written: the table is the last one."""
    tables, tier = memory(), RowTier(dtype="fp16")
    tables.collections["stem"].set_rows("stem.layer2", torch.full((40, 24), 1e6))
    export_memory(tables, tmp_path / "export")
    told = (
        "rows of table 'stem.layer2' in the export '.*/export' reach 1e\\+06, and fp16 holds numbers up to 65504; hold"
    )
    with pytest.raises(ConfigError, match=told):
        open_memory(tmp_path / "export", tokenizer(), tier=tier, backend="torch")
    half = MemoryTables([engram(), stem()], tier=tier, backend="torch")
    before = weights_of(half)
    with pytest.raises(ConfigError, match=told):
        import_rows(half, tmp_path / "export")
    assert all(torch.equal(rows, before[name]) for name, rows in weights_of(half).items())


def test_a_memory_without_compression_is_opened_as_such(tmp_path: Path) -> None:
    plain = TokenCompression.from_tokenizer(tokenizer(), compress=False)
    tables = MemoryTables([StemLayout(stem().config, plain)])
    export_memory(tables, tmp_path / "export")
    opened = open_memory(tmp_path / "export", tokenizer())
    assert opened.compression.size == 40
    assert torch.equal(opened(tokens())["stem"][1], tables(tokens())["stem"][1])


def test_another_tokenizer_is_refused(exported: Path) -> None:
    with pytest.raises(CheckpointError, match="was trained with a tokenizer of 40 tokens; this one has 41"):
        open_memory(exported, tokenizer(41))
    changed = tokenizer()
    changed.add_tokens(["new"])
    with pytest.raises(CheckpointError, match="was trained with a tokenizer of 40 tokens; this one has 41"):
        open_memory(exported, changed)
    with pytest.raises(ConfigError, match="there is no layer 3 for engram tables: layer ids are 0-based, 0 .. 2"):
        open_memory(exported, tokenizer(), num_layers=3)


def test_a_path_without_an_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no export of a memory at '.*/nowhere'. "):
        open_memory(tmp_path / "nowhere", tokenizer())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("hash", "seed"), 1, "has an n-gram hash with seed 1; here it is 0"),
        (("hash", "pad_id"), 3, "has an n-gram hash with pad_id 3; here it is 2"),
        (("hash", "layer_base"), 1, "has an n-gram hash with layer_base 1; here it is 0"),
        (("hash", "layer_ids"), [2, 4], r"has an n-gram hash with layer_ids \[2, 4\]"),
        (("hash", "compressed_vocab_size"), 21, "has an n-gram hash with compressed_vocab_size 21"),
        (("hash", "multipliers"), {}, r"has an n-gram hash with multipliers \{\}"),
        (("hash", "primes"), {"1": [54]}, "a head of layer 1 has 54 rows, which is no prime"),
        (("hash", "offsets"), {}, "has an n-gram hash with offsets"),
        (("hash", "stop_rule"), "none", "has an n-gram hash with stop_rule none"),
        (("tokenizer", "digest"), "0" * 64, "was trained with a tokenizer whose vocabulary has the digest '0000"),
        (("tokenizer", "size"), 21, "was trained with a tokenizer of 21 compressed ids; this one has 20"),
        (("memory_dim",), 64, "has a memory_dim of 64; here it is 32"),
        (("kind",), "stem", "has tables of kind 'stem', not 'engram'"),
    ],
)
def test_any_difference_in_the_manifest_is_refused(
    exported: Path, tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    folder = copied(exported, tmp_path)
    facts = json.loads((folder / "manifest.json").read_text())
    part = facts["memory"]["engram"]
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(facts))
    (folder / "checksums.json").unlink()
    write_checksums(folder)
    tables = memory()
    before = weights_of(tables)
    with pytest.raises(CheckpointError, match=message):
        import_rows(tables, folder)
    assert all(torch.equal(rows, before[name]) for name, rows in weights_of(tables).items())


@pytest.mark.parametrize("hash", ["x", None, 3])
def test_a_manifest_of_another_form_is_refused(exported: Path, tmp_path: Path, hash: object) -> None:
    folder = copied(exported, tmp_path)
    facts = json.loads((folder / "manifest.json").read_text())
    facts["memory"]["engram"]["hash"] = hash
    (folder / "manifest.json").write_text(json.dumps(facts))
    (folder / "checksums.json").unlink()
    write_checksums(folder)
    with pytest.raises(CheckpointError, match="copy' has a manifest of another form: .* Export the memory again"):
        open_memory(folder, tokenizer())


def copied(exported: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    (folder / "rows").mkdir(parents=True)
    for file in exported.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(exported)).write_bytes(file.read_bytes())
    return folder


def test_damaged_and_foreign_folders_are_refused(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path)
    rows = folder / "rows" / "stem.layer1.safetensors"
    rows.write_bytes(rows.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="it is truncated or altered. Export the memory again"):
        open_memory(folder, tokenizer())
    with pytest.raises(CheckpointError, match="is not a complete export of a memory"):
        open_memory(tmp_path, tokenizer())
    other = copied(exported, tmp_path / "other")
    facts = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**facts, "format_version": 9}))
    (other / "checksums.json").unlink()
    write_checksums(other)
    with pytest.raises(CheckpointError, match="has format version 9; this embank reads version 1. Export"):
        open_memory(other, tokenizer())
    with pytest.raises(CheckpointError, match=r"has memory of the kinds \['engram', 'stem'\]; here it is \['engram'\]"):
        import_rows(MemoryTables([engram()]), exported)


def test_exports_that_can_not_be_are_refused(trained: MemoryTables, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already, and a memory export is never written over"):
        export_memory(trained, exported)
    with pytest.raises(ConfigError, match="there is no codec 'int99'"):
        export_memory(trained, tmp_path / "int99", codec="int99")
    large = MemoryTables([StemLayout(stem().config, compression())])
    for size, codec, told in (
        (1e6, "fp16", r"reach 1e\+06, which is not finite as fp16; use 'fp32' or 'bf16'$"),
        (3.4e38, "fp16", r"reach 3.4e\+38, which is not finite as fp16; use 'fp32'$"),
        (3.4e38, "bf16", r"reach 3.4e\+38, which is not finite as bf16; use 'fp32'$"),
        *((torch.nan, codec, "are not finite; train with a lower rate$") for codec in ("fp32", "bf16", "fp16")),
        (3.4e38, "int8", r"reach 3.4e\+38"),
        (torch.nan, "pq4", "are not finite"),
    ):
        large.collections["stem"].set_rows("stem.layer1", torch.full((40, 24), size))
        with pytest.raises(ConfigError, match=f"(rows of table 'stem.layer1'|table 'stem.layer1': rows) {told}"):
            export_memory(large, tmp_path / codec, codec=codec)
    assert list(tmp_path.iterdir()) == []
