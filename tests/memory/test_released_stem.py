"""STEM's released checkpoints: columns in their order, whatever order files are listed in."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from embank.tables import CheckpointError, ConfigError, RowTier
from embank.tables.memory import MemoryTables, StemConfig, StemLayout, TokenCompression, load_stem_tables
from tests.memory.small import NUM_TOKENS, tokenizer

WIDTH, SHARDS, LAYERS, VOCABULARY = 24, 12, (5, 2), NUM_TOKENS + 4


def memory(*, width: int = WIDTH, layers: tuple[int, ...] = LAYERS, vocabulary: int = VOCABULARY) -> MemoryTables:
    compression = TokenCompression.from_tokenizer(tokenizer(), compress=False, num_ids=vocabulary)
    return MemoryTables([StemLayout(StemConfig(layer_ids=layers, ffn_dim=width), compression)])


@pytest.fixture
def tables() -> dict[int, Tensor]:
    """By layer; the released numbers count layers in ascending order."""
    draw = torch.Generator().manual_seed(0)
    return {layer: torch.randn(VOCABULARY, WIDTH, generator=draw) for layer in sorted(LAYERS)}


def write(tables: dict[int, Tensor], folder: Path) -> Path:
    """As the released code does: shards, and all of them joined in the order of their names."""
    shards, whole = folder / "stem_shards", folder / "consolidated"
    shards.mkdir(parents=True)
    whole.mkdir()
    step, joined = WIDTH // SHARDS, {}
    for rank in range(SHARDS):
        parts = {
            f"stem_embeddings.{i}.weight": rows[:, rank * step : (rank + 1) * step].clone()
            for i, rows in enumerate(tables.values())
        }
        torch.save(parts, shards / f"stem_model_mp{rank}.pt")
    for file in sorted(shards.iterdir()):  # mp0, mp1, mp10, mp11, mp2, ...
        for name, part in torch.load(file).items():
            joined.setdefault(name, []).append(part)
    torch.save({name: torch.cat(parts, dim=1) for name, parts in joined.items()}, whole / "consolidated_stem.pth")
    return whole / "consolidated_stem.pth"


def assert_filled(filled: MemoryTables, tables: dict[int, Tensor]) -> None:
    weights = filled.collections["stem"].weights()
    assert set(weights) == {f"stem.layer{layer}" for layer in tables}
    assert all(torch.equal(weights[f"stem.layer{layer}"], rows) for layer, rows in tables.items())


def test_shards_are_joined_by_their_numbers(tables: dict[int, Tensor], tmp_path: Path) -> None:
    file = write(tables, tmp_path / "run")
    assert not torch.equal(torch.load(file)["stem_embeddings.0.weight"], tables[2])  # what the trap is
    for path in (tmp_path / "run", tmp_path / "run" / "stem_shards", file):
        filled = memory()
        load_stem_tables(filled, path)
        assert_filled(filled, tables)
    ids = torch.tensor([[3, VOCABULARY - 1]])  # one that no token has
    assert torch.equal(filled(ids)["stem"][5][0], tables[5][ids[0]])
    with pytest.raises(ConfigError, match="whose names say it"):
        load_stem_tables(memory(), file, shard_order=range(SHARDS))


def test_a_consolidated_file_alone_needs_its_order(tables: dict[int, Tensor], tmp_path: Path) -> None:
    file = write(tables, tmp_path / "run").rename(tmp_path / "consolidated_stem.pth")
    with pytest.raises(CheckpointError, match="does not say in which order its columns stand"):
        load_stem_tables(memory(), file)
    filled = memory()
    load_stem_tables(filled, file, shard_order=sorted(range(SHARDS), key=str))
    assert_filled(filled, tables)
    for order in ([0, 0], [1, 2], [], list(range(7))):
        with pytest.raises(ConfigError, match="give each number from 0 to P - 1 once"):
            load_stem_tables(filled, file, shard_order=order)
    assert_filled(filled, tables)


def test_what_does_not_fit_is_refused_and_nothing_written(tables: dict[int, Tensor], tmp_path: Path) -> None:
    write(tables, tmp_path / "run")
    shards, filled = tmp_path / "run" / "stem_shards", memory()
    before = {name: rows.clone() for name, rows in filled.collections["stem"].weights().items()}
    for other, message in (
        (memory(vocabulary=NUM_TOKENS), "this memory has 40 rows. Give its TokenCompression num_ids"),
        (memory(width=WIDTH * 2), "has 24 columns in 12 shards for layer 2; rows have 48"),
        (memory(layers=(1, 2, 3)), r"has the tables \[0, 1\]; this memory has 3, for the layers \[1, 2, 3\]"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_stem_tables(other, shards)
    (shards / "stem_model_mp11.pt").unlink()
    with pytest.raises(CheckpointError, match="has 22 columns in 11 shards for layer 2; .* last shards are missing"):
        load_stem_tables(filled, shards)
    (shards / "stem_model_mp2.pt").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"lacks shard 2 \(stem_model_mp2.pt\)"):
        load_stem_tables(filled, shards)
    (shards / "stem_model_mp2.pt").write_bytes(b"no tables")
    with pytest.raises(CheckpointError, match="stem_model_mp2.pt' can't be read"):
        load_stem_tables(filled, shards)
    with pytest.raises(CheckpointError, match="has neither stem_shards/stem_model_mp0.pt nor consolidated_stem.pth"):
        load_stem_tables(filled, tmp_path / "nowhere")
    after = filled.collections["stem"].weights()
    assert all(torch.equal(after[name], rows) for name, rows in before.items())


def test_rows_beyond_the_type_of_the_tier_are_refused(tables: dict[int, Tensor], tmp_path: Path) -> None:
    """Before the first table is written: the last one has them."""
    tables[max(LAYERS)][3, 7] = 1e6
    write(tables, tmp_path / "run")
    filled = MemoryTables(list(memory().layouts.values()), tier=RowTier(dtype="fp16"), backend="torch")
    before = {name: rows.clone() for name, rows in filled.collections["stem"].weights().items()}
    with pytest.raises(
        ConfigError, match=r"rows of table 'stem.layer5' in '.*' reach 1e\+06, and fp16 holds numbers up"
    ):
        load_stem_tables(filled, tmp_path / "run")
    assert all(torch.equal(rows, before[name]) for name, rows in filled.collections["stem"].weights().items())
