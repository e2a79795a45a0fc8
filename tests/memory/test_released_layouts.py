"""Checkpoints in the layouts of DeepSeek-V4.1 and Qwen become memories that compute what slow formulas say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from embank.tables import CheckpointError, ConfigError
from embank.tables.memory import (
    Engram,
    EngramConfig,
    EngramLayout,
    MemorySession,
    MemoryTables,
    NgramHash,
    TokenCompression,
    dequantized,
    export_memory,
    fill_deepseek_layer,
    fill_layer,
    fill_qwen_layer,
    load_deepseek_layer,
    load_qwen_layer,
    mark_tokens,
    open_memory,
    qwen_config,
)
from tests.memory.small import NUM_TOKENS, tokenizer

MULTIPLIERS = (23_703_573_157_769, 20_109_073_645_365, 8_052_911_324_071)
"""Of the released Qwen3.8-Flash-Next, as the three buffers of its checkpoint hold them."""

TOKENS = [9707, 11, 1879, 248_044, 314, 2001, 248_319]
GOLDEN = {  # with offsets, of heads 0, 7, 8 and 15
    0: [16_410_909, 152_932_897, 169_641_436, 300_984_276],
    3: [18_827_606, 142_052_741, 163_793_416, 318_943_450],  # the end of text sees what is before it
    4: [8_260_854, 143_955_837, 178_749_106, 310_651_623],  # what comes next does not see past it
    5: [5_856_173, 146_121_840, 160_422_013, 306_568_227],
    6: [14_050_029, 148_751_508, 163_250_688, 302_890_280],
}


def qwen_hash() -> NgramHash:
    return NgramHash(
        layer_ids=[1],
        max_ngram=3,
        num_heads=8,
        rows_per_order=[20_000_000, 20_000_000],
        compressed_vocab_size=248_320,
        pad_id=248_044,
        multipliers={1: MULTIPLIERS},
        end_id=248_044,
    )


def test_released_multipliers_address_the_released_rows() -> None:
    hash, ids = qwen_hash(), torch.tensor([TOKENS])
    assert (hash.primes[1][0], hash.primes[1][-1], sum(hash.primes[1])) == (20_000_003, 20_000_171, 320_001_446)
    shifted = hash(ids)[1][0] + torch.tensor(hash.offsets(1))
    for place, wanted in GOLDEN.items():
        assert shifted[place, [0, 7, 8, 15]].tolist() == wanted
    assert np.array_equal(hash.numpy(ids.numpy())[1], hash(ids)[1].numpy())
    for place in range(len(TOKENS)):
        assert hash.position(TOKENS[: place + 1])[1] == hash(ids)[1][0, place].tolist()
    for cut in range(1, len(TOKENS)):  # in pieces
        rest = hash(ids[:, cut:], before_BS=ids[:, :cut])[1]
        assert torch.equal(rest, hash(ids)[1][:, cut:])
    again = NgramHash.from_manifest(hash.manifest(), what="it")
    assert again.manifest() == hash.manifest()
    assert hash.seed is None


def test_multipliers_that_can_not_be_are_refused() -> None:
    sizes = {"max_ngram": 3, "num_heads": 1, "rows_per_order": [9, 9]}
    arguments = {"layer_ids": [1], "compressed_vocab_size": 50, "pad_id": 2, **sizes}
    for given, message in (
        ({2: (3, 5, 7)}, r"for the layers \[2\]; give them for \[1\]"),
        ({1: (3, 5)}, "layer 1 has 2 multipliers"),
        ({1: 3}, r"multipliers are \{1: 3\}; give a list for each layer, \{1: \[...\]\}"),
        ([3, 5, 7], r"multipliers are \[3, 5, 7\]; give a list for each layer"),
        ({"1": [3, 5, 7]}, r"for the layers \['1'\]; give them for \[1\]"),
        ({1: (3, 5, 2**62)}, "exceed 64 bits"),
        ({1: (3, 5, 0)}, "a multiplier of layer 1 is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            NgramHash(**arguments, multipliers=given)
    with pytest.raises(ConfigError, match="end_id 50 is outside the 50 compressed ids"):
        NgramHash(**arguments, end_id=50)
    with pytest.raises(CheckpointError, match="neither a seed nor multipliers"):
        NgramHash.from_manifest({**NgramHash(**arguments).manifest(), "seed": None, "multipliers": None}, what="it")


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def slow_ids(ids: list[int], multipliers, primes, heads: int, *, pad: int, end: int | None) -> list[list[int]]:
    """Rows with offsets in Python's integers, straight from the formulas."""
    result = []
    for t in range(len(ids)):
        back, mix, row, first = [ids[t]], ids[t] * multipliers[0], [], 0
        for k in range(1, len(multipliers)):
            stopped = t - k < 0 or (end is not None and end in ids[t - k : t])
            back.append(pad if stopped else ids[t - k])
            mix ^= back[k] * multipliers[k]
            for head in range(heads):
                prime = primes[(k - 1) * heads + head]
                row.append(mix % prime + first)
                first += prime
        result.append(row)
    return result


def slow_gates(hidden: np.ndarray, keys: np.ndarray, zero: float) -> np.ndarray:
    """[T, M] of normed states and keys [T, M, d]."""
    scores = (hidden * keys).sum(-1) / np.sqrt(hidden.shape[-1])
    roots = np.where(scores < 0, -1, np.where(scores > 0, 1, zero)) * np.sqrt(np.maximum(np.abs(scores), 1e-6))
    return 1 / (1 + np.exp(-roots))


D, STREAMS, END = 6, 2, 5


def qwen_checkpoint(path: Path) -> dict[str, Tensor]:
    """A made-up one: 12 shards, rows behind the last head, gains less 1."""
    draw, width = torch.Generator().manual_seed(0), D * STREAMS
    primes = [23, 29, 31, 37]

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    table = random(132, 4)
    parts = {f"ple_embedding.ngram_embedding.shard_{n}.weight": rows.clone() for n, rows in enumerate(table.split(11))}
    parts |= {
        "ple_embedding.layer_multipliers": torch.tensor([9_007_199_254_740_993, 1_234_567_890_123, 7_777_777_777]),
        "ple_embedding.ngram_heads_vocab_sizes": torch.tensor(primes),
        "ple_embedding.ngram_heads_offsets": torch.tensor([0, 23, 52, 83]),
        "key_proj.weight": random(width, 16),
        "value_proj.weight": random(D, 16),
        "norm_key.weight": random(width) * 0.1,
        "norm_query.weight": random(width) * 0.1,
        "norm_conv.weight": random(width) * 0.1,
        "conv1d.weight": random(width, 1, 4),
    }
    save_file({f"layers.1.ple.{name}": part for name, part in parts.items()}, path)
    return load_file(path)


def qwen_memory(state: dict[str, Tensor]) -> MemoryTables:
    compression = TokenCompression.from_tokenizer(tokenizer(), compress=False, num_ids=NUM_TOKENS + 8)
    config = qwen_config(state, layer=1, end_token=END, prefix="layers.1.ple.")
    memory = MemoryTables([EngramLayout(config, compression, pad_token=END)])
    fill_qwen_layer(memory, 1, state, prefix="layers.1.ple.")
    return memory


def slow_qwen(state: dict[str, Tensor], ids: list[int], hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [T, E] and what the layer adds [T, M, d]."""
    s = {name.removeprefix("layers.1.ple."): part.numpy().astype("float64") for name, part in state.items()}
    table = np.concatenate([s[f"ple_embedding.ngram_embedding.shard_{n}.weight"] for n in range(12)])
    multipliers = state["layers.1.ple.ple_embedding.layer_multipliers"].tolist()
    rows = table[slow_ids(ids, multipliers, [23, 29, 31, 37], 2, pad=END, end=END)].reshape(len(ids), -1)

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return rms(x) * (1 + s[f"norm_{name}.weight"].reshape(STREAMS, D))

    keys = (rows @ s["key_proj.weight"].T).reshape(-1, STREAMS, D)
    gates = slow_gates(normed(hidden, "query"), normed(keys, "key"), 0)
    added = gates[..., None] * (rows @ s["value_proj.weight"].T)[:, None]
    inputs, taps = normed(added, "conv"), s["conv1d.weight"].reshape(STREAMS, D, 4)
    mixed = np.zeros_like(added)
    for t in range(len(ids)):
        for tap in range(4):  # across ends of text
            if (place := t - 3 * (3 - tap)) >= 0:
                mixed[t] += taps[..., tap] * inputs[place]
    return rows, added + mixed / (1 + np.exp(-mixed))


QWEN_IDS = [3, 7, 44, END, 7, 47, 1, 0, END, END, 9, 3, 7, 44]
"""44 and 47 are ids that no token has."""


def test_a_qwen_checkpoint_computes_what_the_formulas_say(tmp_path: Path) -> None:
    state = qwen_checkpoint(tmp_path / "part.safetensors")
    memory, layer = qwen_memory(state), Engram(D, 16, branches=STREAMS)
    load_qwen_layer(layer, state, prefix="layers.1.ple.")
    hidden = torch.randn(1, len(QWEN_IDS), STREAMS, D)
    rows, added = slow_qwen(state, QWEN_IDS, hidden[0].double().numpy())
    ids = torch.tensor([QWEN_IDS])
    np.testing.assert_array_equal(memory(ids)["engram"][1][0].detach().numpy(), rows.astype("float32"))
    np.testing.assert_allclose(layer(hidden, memory(ids)["engram"][1])[0].detach().numpy(), added, rtol=1e-4, atol=1e-5)
    session = MemorySession(memory, 1)  # decoding, token by token
    decoded = torch.cat([session.next([token])["engram"][1] for token in QWEN_IDS], dim=1)
    np.testing.assert_array_equal(decoded[0].numpy(), rows.astype("float32"))
    export_memory(memory, tmp_path / "export")
    opened = open_memory(tmp_path / "export", tokenizer())
    np.testing.assert_array_equal(opened(ids)["engram"][1][0].detach().numpy(), rows.astype("float32"))


def test_a_qwen_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    state, prefix = qwen_checkpoint(tmp_path / "part.safetensors"), "layers.1.ple."
    memory = qwen_memory(state)
    shard = f"{prefix}ple_embedding.ngram_embedding.shard_10.weight"
    without = {name: part for name, part in state.items() if name != shard}
    with pytest.raises(CheckpointError, match="lacks shard 10 of its table"):
        fill_qwen_layer(memory, 1, without, prefix=prefix)
    with pytest.raises(CheckpointError, match=r"numbers of torch.int32: a packed checkpoint"):
        fill_qwen_layer(memory, 1, {**state, shard: state[shard].int()}, prefix=prefix)
    name = f"{prefix}ple_embedding.layer_multipliers"
    with pytest.raises(CheckpointError, match="layer_multipliers .* this memory has"):
        fill_qwen_layer(memory, 1, {**state, name: state[name] + 2}, prefix=prefix)
    with pytest.raises(CheckpointError, match="layer_multipliers are torch.bfloat16; they must be int64"):
        fill_qwen_layer(memory, 1, {**state, name: state[name].bfloat16()}, prefix=prefix)
    with pytest.raises(CheckpointError, match="the Qwen layer has no 'project.bias', and this layer has one"):
        load_qwen_layer(Engram(D, 16, branches=STREAMS, bias=True), state, prefix=prefix)
    with pytest.raises(CheckpointError, match="wants Engram"):
        load_qwen_layer(Engram(D, 16, branches=STREAMS, copysign=True), state, prefix=prefix)
    with pytest.raises(CheckpointError, match="the Qwen layer lacks 'key_proj.weight'"):
        load_qwen_layer(Engram(D, 16, branches=STREAMS), state)


def deepseek_checkpoint(path: Path, num_rows: int, *, head_dim: int, columns: int, dim: int) -> dict[str, Tensor]:
    """A made-up one: FP8 rows and projections with exponents."""
    draw = torch.Generator().manual_seed(0)

    def eight_bits(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(torch.float8_e4m3fn)

    def exponents(*shape: int) -> Tensor:
        return torch.randint(125, 129, shape, generator=draw, dtype=torch.uint8).view(torch.float8_e8m0fnu)

    width = dim * (STREAMS + 1)
    parts = {
        "embed.weight": eight_bits(num_rows, head_dim),
        "embed.scale": exponents(num_rows, -(-head_dim // 32)),
        "wkv.weight": eight_bits(width, columns * head_dim),
        "wkv.scale": exponents(-(-width // 32), -(-columns * head_dim // 32)),
        "q_weight": torch.rand(STREAMS, dim, generator=draw).bfloat16(),
        "k_weight": torch.rand(STREAMS, dim, generator=draw).bfloat16(),
    }
    save_file({f"layers.1.engram.{name}": part for name, part in parts.items()}, path)
    return load_file(path)


def test_a_deepseek_checkpoint_computes_what_the_formulas_say(tmp_path: Path) -> None:
    compression = TokenCompression.from_tokenizer(tokenizer(), num_ids=NUM_TOKENS + 8, absent_as=2)
    config = EngramConfig(layer_ids=[1, 14], rows_per_order=50, memory_dim=6 * 36, max_ngram=4, num_heads=2)
    layout = EngramLayout(config, compression, pad_token=2)
    memory, hash, dim = MemoryTables([layout]), layout.hash, 40
    state = deepseek_checkpoint(tmp_path / "p", sum(hash.primes[1]), head_dim=36, columns=6, dim=dim)
    fill_deepseek_layer(memory, 1, state, prefix="layers.1.engram.")
    layer = Engram(dim, layout.row_dim, branches=STREAMS, conv=False, copysign=True)
    load_deepseek_layer(layer, state, prefix="layers.1.engram.")

    s = {name.removeprefix("layers.1.engram."): part for name, part in state.items()}
    scale = 2.0 ** (s["embed.scale"].view(torch.uint8).double().numpy() - 127)
    table = s["embed.weight"].double().numpy() * scale.repeat(32, axis=1)[:, :36]
    blocks = 2.0 ** (s["wkv.scale"].view(torch.uint8).double().numpy() - 127)
    wkv = s["wkv.weight"].double().numpy() * blocks.repeat(32, axis=0).repeat(32, axis=1)[: 3 * dim, : 6 * 36]
    text = [3, 7, 44, 5, 7, 8, 1]
    # Of numpy's own PCG64, by the formula; tokens 2n and 2n + 1 are one, and 44 is none.
    bound = (2**63 - 1) // (NUM_TOKENS // 2) // 2
    multipliers = [2 * int(r) + 1 for r in np.random.default_rng(10_007).integers(0, bound, size=4, dtype=np.int64)]
    compressed = [1 if token == 44 else token // 2 for token in text]
    rows = table[slow_ids(compressed, multipliers, hash.primes[1], 2, pad=1, end=None)].reshape(len(text), -1)
    hidden = np.random.default_rng(0).normal(size=(len(text), STREAMS, dim))
    hidden[2] = 0  # a score of exactly 0
    both = rows @ wkv.T
    keys, value = both[:, : STREAMS * dim].reshape(-1, STREAMS, dim), both[:, STREAMS * dim :]
    gain = (s["q_weight"].float() * s["k_weight"].float()).double().numpy()
    gates = slow_gates(rms(hidden) * gain, rms(keys), 1)
    assert gates[2, 0] == pytest.approx(0.50025, abs=1e-5)

    read = memory(torch.tensor([text]))["engram"][1]
    np.testing.assert_array_equal(read[0].detach().numpy(), rows.astype("float32"))
    added = layer(torch.from_numpy(hidden)[None].float(), read)[0].detach().numpy()
    np.testing.assert_allclose(added, gates[..., None] * value[:, None], rtol=1e-4, atol=1e-4)

    with pytest.raises(CheckpointError, match="mean nothing without their exponents"):
        fill_layer(memory, 1, s["embed.weight"])
    with pytest.raises(CheckpointError, match=r"wants Engram\(..., copysign=True\)"):
        load_deepseek_layer(Engram(dim, layout.row_dim, branches=STREAMS, conv=False), s)
    with pytest.raises(CheckpointError, match="'wkv.weight' of torch.float8_e4m3fn"):
        load_deepseek_layer(layer, {**s, "wkv.scale": s["wkv.scale"][:1]})
    exact = dequantized(s["embed.weight"], s["embed.scale"])
    fill_layer(memory, 1, list(exact.split(100)))  # fp32, in shards
    assert torch.equal(memory(torch.tensor([text]))["engram"][1], read)


def test_layers_that_count_from_1_are_told_by_the_names_of_a_checkpoint(tmp_path: Path) -> None:
    """The paper's 2 and 15: the primes, and so the tables' sizes, are those of 1 and 14."""
    compression = TokenCompression.from_tokenizer(tokenizer())
    config = EngramConfig(layer_ids=[2, 15], rows_per_order=50, memory_dim=32, num_heads=2)
    memory = MemoryTables([EngramLayout(config, compression, pad_token=2, num_layers=40)])
    num_rows = sum(memory.layouts["engram"].hash.primes[2])
    state = deepseek_checkpoint(tmp_path / "p", num_rows, head_dim=8, columns=4, dim=8)
    before = {name: rows.clone() for name, rows in memory.collections["engram"].weights().items()}
    with pytest.raises(ConfigError, match=r"layer 2 is to be read from 'layers.1.engram.', which is layer 1: names"):
        fill_deepseek_layer(memory, 2, state, prefix="layers.1.engram.")
    assert all(torch.equal(rows, before[name]) for name, rows in memory.collections["engram"].weights().items())
    own = {name.replace("layers.1.", "model.layers.2."): part for name, part in state.items()}
    fill_deepseek_layer(memory, 2, own, prefix="model.layers.2.engram.")
    given = replace(config, multipliers={2: (3, 5, 7), 15: (3, 5, 7)})  # the number decides on nothing
    fill_deepseek_layer(
        MemoryTables([EngramLayout(given, compression, pad_token=2)]), 2, state, prefix="layers.1.engram."
    )

    qwen = qwen_checkpoint(tmp_path / "q")
    with pytest.raises(ConfigError, match=r"layer 2 is to be read from 'layers.1.ple.', .* without the prefix"):
        qwen_config(qwen, layer=2, end_token=END, prefix="layers.1.ple.")
    elsewhere = {name.removeprefix("layers.1.ple."): part for name, part in qwen.items()}
    assert list(qwen_config(elsewhere, layer=2, end_token=END).layer_ids) == [2]


def test_ids_without_a_token_have_their_own_or_that_of_a_token() -> None:
    words, more = tokenizer(), NUM_TOKENS + 3
    plain = TokenCompression.from_tokenizer(words, compress=False, num_ids=more)
    assert (plain.size, plain(torch.tensor([NUM_TOKENS, more - 1])).tolist()) == (more, [NUM_TOKENS, more - 1])
    merged = TokenCompression.from_tokenizer(words, num_ids=more, absent_as=6)
    assert merged.size == TokenCompression.from_tokenizer(words).size  # no row is another one
    assert merged(torch.tensor([6, more - 1])).tolist() == [3, 3]
    for compression, compress in ((plain, False), (merged, True)):
        again = TokenCompression.like(compression.manifest(), words, compress=compress)
        again.refuse_other(compression.manifest(), what="it")
    with pytest.raises(ConfigError, match="40 tokens, more than num_ids, 39"):
        TokenCompression.from_tokenizer(words, num_ids=39)
    with pytest.raises(ConfigError, match="absent_as is 40"):
        TokenCompression.from_tokenizer(words, num_ids=more, absent_as=40)


def test_marks_and_ends_of_text_stop_alike() -> None:
    hash, ids = qwen_hash(), torch.tensor([TOKENS])
    starts = torch.zeros_like(ids, dtype=torch.bool)
    starts[0, 4] = True  # behind the end of text
    assert torch.equal(hash(mark_tokens(ids, starts_BT=starts))[1], hash(ids)[1])
