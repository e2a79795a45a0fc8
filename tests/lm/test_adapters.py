"""Memories on models of transformers: the identity at the start, and any way of decoding equal to none with a cache."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers.cache_utils import DynamicCache, StaticCache  # noqa: E402

from embank.pipelines import add_engram, add_stem, load_memory  # noqa: E402
from embank.tables import CheckpointError, ConfigError, DataError, RowTier  # noqa: E402
from embank.tables.storage.checksums import write_checksums  # noqa: E402

pytestmark = pytest.mark.slow

V, T = 60, 9
KINDS = ("engram", "stem")
MODELS = ("Llama", "Qwen2", "Qwen3")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = [f"{word}{end}" for word in ("cat", "Cat", "dog", "DOG", "sun") for end in range(V // 5)]
    made = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def _model(name: str = "Llama", **changes: Any) -> Any:
    shape: dict[str, Any] = {
        "vocab_size": V,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 1,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**shape, **changes})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def _memory(model: Any, tokenizer: Any, kind: str, *, loud: bool = True, **options: Any) -> Any:
    """A memory; a loud one has rows and projections that change what the model says a lot."""
    if kind == "engram":
        memory = add_engram(model, tokenizer, layers=[1], rows=64, num_heads=2, memory_dim=32, **options)
    else:
        memory = add_stem(model, tokenizer, layers=[0, 2], **options)
    if loud:
        generator = torch.Generator().manual_seed(3)
        for collection in memory.tables.collections.values():
            for weight_RD in collection.weights().values():
                weight_RD.copy_(torch.randn(weight_RD.shape, generator=generator))
        for parameter in memory.parameters():
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return memory.eval()


IDS = torch.randint(2, V, (2, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[(name, kind) for name in MODELS for kind in KINDS], ids="-".join)
def loud(request: Any, tokenizer: Tokenizer) -> Any:
    """A model and a memory that matters."""
    name, kind = request.param
    model = _model(name)
    return model, _memory(model, tokenizer, kind)


@torch.no_grad()
def _greedy(model: Any, ids_BT: torch.Tensor, count: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Without any cache: the whole text anew for each token."""
    for _ in range(count):
        logits = model(ids_BT, attention_mask=mask, use_cache=False).logits
        ids_BT = torch.cat([ids_BT, logits[:, -1:].argmax(-1)], dim=1)
        mask = None if mask is None else torch.nn.functional.pad(mask, (0, 1), value=1)
    return ids_BT


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_starts_as_the_model_was(tokenizer: Tokenizer, name: str, kind: str) -> None:
    model = _model(name)
    before, names = model(IDS).logits, set(model.state_dict())
    memory = _memory(model, tokenizer, kind, loud=False)
    assert torch.equal(model(IDS).logits, before)
    assert set(model.state_dict()) == names
    loud = _memory(_model(name), tokenizer, kind)
    assert not torch.allclose(loud.model(IDS).logits, before, atol=1e-2)
    with loud.disabled():
        assert torch.equal(loud.model(IDS).logits, before)
    memory.remove()
    loud.remove()
    assert torch.equal(loud.model(IDS).logits, before)


def test_greedy_with_a_cache(loud: Any) -> None:
    model, _ = loud
    expected = _greedy(model, IDS, 8)
    for options in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}, {"use_cache": False}):
        made = model.generate(IDS, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(IDS), **options)
        assert torch.equal(made, expected), options


def test_padding_on_the_left(loud: Any) -> None:
    """A padded sequence says what it says alone."""
    model, _ = loud
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    padded = IDS.masked_fill(mask == 0, 1)
    alone = model.generate(IDS[:1, 4:], attention_mask=mask[:1, 4:], max_new_tokens=6, do_sample=False)
    for options in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}):
        made = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, **options)
        assert torch.equal(made[0, 4:], alone[0]), options
        assert torch.equal(made[1:], _greedy(model, IDS[1:], 6)), options


def test_beams(loud: Any) -> None:
    model, _ = loud
    options = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(model.generate(IDS, **options), model.generate(IDS, use_cache=False, **options))


def test_assisted_decoding_takes_drafts_back(loud: Any) -> None:
    model, _ = loud
    draft = _model(type(model).__name__.removesuffix("ForCausalLM"))
    one, mask = IDS[:1], torch.ones_like(IDS[:1])
    made = model.generate(one, assistant_model=draft, max_new_tokens=8, do_sample=False, attention_mask=mask)
    assert torch.equal(made, _greedy(model, one, 8))


@torch.no_grad()
def test_a_loop_of_ones_own(loud: Any) -> None:
    """A cache that the model makes, that the caller makes, and a copy of a prompt's cache."""
    model, _ = loud
    whole = model(IDS, use_cache=False).logits
    for first in (None, DynamicCache(), DynamicCache(config=model.config)):
        cache, parts = first, []
        for piece in torch.split(IDS, [4, 1, 1, 3], dim=1):
            output = model(piece, use_cache=True, **({} if cache is None else {"past_key_values": cache}))
            cache = next(value for value in output.values() if isinstance(value, DynamicCache))
            parts.append(output.logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(cache)
    again.crop(-3)
    torch.testing.assert_close(model(IDS[:, -3:], past_key_values=again).logits, whole[:, -3:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_cache_that_knows_other_tokens_is_refused(tokenizer: Tokenizer) -> None:
    model = _model()
    memory = _memory(model, tokenizer, "engram")
    with memory.disabled():
        strange = model(IDS, use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="the cache holds 9 positions, and the memory knows the tokens of 0"):
        model(IDS[:, :1], past_key_values=strange)
    cache = model(IDS, use_cache=True).past_key_values
    for layer in cache.layers[:3]:
        layer.crop(-2)
    with pytest.raises(ConfigError, match="the cache holds 7 positions, and the memory knows the tokens of 9"):
        model(IDS[:, :1], past_key_values=cache)
    fresh = model(IDS, use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="the cache is of 2 sequences, and 1 go on from it"):
        model(IDS[:1, :1], past_key_values=fresh)
    fresh.reset()
    torch.testing.assert_close(model(IDS, past_key_values=fresh).logits, model(IDS, use_cache=False).logits)


@torch.no_grad()
def test_what_can_not_be_read_is_refused(tokenizer: Tokenizer) -> None:
    model = _model()
    _memory(model, tokenizer, "engram")
    with pytest.raises(DataError, match="called with inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(DataError, match=r"the attention mask is of shape \(1, 3, 3\)"):
        model(IDS[:1, :3], attention_mask=torch.ones(1, 3, 3))
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).tril().bool()[None, None]
    with pytest.raises(DataError, match="not a causal one with padding"):
        model(IDS[:1, :5], attention_mask=blocks)
    with pytest.raises(DataError, match=r"shape \(1, 1, 3, 3\) for 4 new positions after 0"):
        model(IDS[:1, :4], attention_mask=torch.ones(1, 1, 3, 3).tril().bool())
    with pytest.raises(ConfigError, match="keys and values are given as tuples"):
        model(IDS[:1, :1], past_key_values=((torch.zeros(1), torch.zeros(1)),))
    with pytest.raises(ConfigError, match="has a memory of kind 'engram' already"):
        _memory(model, tokenizer, "engram")


def test_packed_documents_do_not_see_each_other(tokenizer: Tokenizer) -> None:
    """By position ids: the rows of a document are those that it has alone."""
    model = _model()
    memory = _memory(model, tokenizer, "engram")
    one = IDS[:1]
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    marked = memory._marked(one, {"position_ids": positions})
    packed = memory._look_up(one, marked, None)[1]
    alone = memory._look_up(one[:, 4:], memory._marked(one[:, 4:], {}), None)[1]
    assert torch.equal(packed[:, 4:], alone)
    assert not torch.equal(memory._look_up(one, memory._marked(one, {}), None)[1][:, 4:], alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_moves_rows_and_dense_parts(tokenizer: Tokenizer, kind: str, checkpointing: bool) -> None:
    model = _model().train()
    memory = _memory(model, tokenizer, kind, loud=False).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows = [w for c in memory.tables.collections.values() for w in c.weights().values()]
    optimizer = torch.optim.AdamW([*model.parameters(), *memory.parameters()], lr=0.01)
    losses = []
    for _ in range(12):
        loss = model(IDS, labels=IDS, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        memory.update_rows()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(float(w.abs().sum()) > 0 for w in rows)
    assert all(p.grad is not None for p in memory.parameters())


def test_recomputed_layers_read_the_rows_of_their_own_pass(tokenizer: Tokenizer) -> None:
    """Two forward passes before one backward pass, with and without gradient checkpointing."""
    gradients = []
    for checkpointing in (False, True):
        model = _model().train()
        memory = _memory(model, tokenizer, "stem").train()
        memory.set_lr(0.0)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loss = model(IDS, use_cache=False).logits.square().mean() + model(IDS.flip(1), use_cache=False).logits.mean()
        loss.backward()
        gradients.append(model.model.layers[0].mlp.down_proj.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_folder_brings_it_back(tokenizer: Tokenizer, tmp_path: Path, kind: str) -> None:
    memory = _memory(_model(), tokenizer, kind)
    expected = memory.model(IDS).logits
    memory.save(tmp_path / "memory")
    for tier in (None, RowTier(name="disk", directory=tmp_path / "rows")):
        again = load_memory(_model(), tmp_path / "memory", tokenizer=tokenizer, tier=tier)
        assert torch.equal(again.eval().model(IDS).logits, expected)
    with pytest.raises(CheckpointError, match="exists already"):
        memory.save(tmp_path / "memory")


@pytest.mark.parametrize("compress", [False, True])
def test_a_tokenizer_whose_tokens_are_all_different_is_known_again(tmp_path: Path, compress: bool) -> None:
    """Compression then has nothing to do, and is told from none all the same."""
    plain = Tokenizer(models.WordLevel({f"w{id}": id for id in range(V)}, unk_token="w0"))
    add_engram(_model(), plain, layers=[1], rows=64, compress=compress).save(tmp_path / "memory")
    load_memory(_model(), tmp_path / "memory", tokenizer=plain)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "memory"
    _memory(_model(), tokenizer, "engram").save(path)
    return path


def _altered(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy whose manifest says something else, with fitting checksums."""
    import shutil

    copied = tmp_path / "altered"
    shutil.copytree(folder, copied)
    manifest = json.loads((copied / "manifest.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = manifest
        for parent in parents:
            node = node[parent]
        node[last] = value
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (copied / "checksums.json").unlink()
    write_checksums(copied)
    return copied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "trained on a model with hidden_size 64; this one has 32"),
        ({"model_type": "qwen3"}, "trained on a model with model_type 'qwen3'"),
        ({"format_version": 2}, "format version 2"),
        ({"layers": [2]}, "layer_ids|layers"),
        ({"layers": [3]}, "sizes that can't be"),
        ({"layout__hash__seed": 5}, "seed"),
        ({"layout__hash__primes": {"1": [64, 67, 71, 73]}}, "which is no prime"),
        ({"layout__tokenizer__size": 7}, "was trained with a tokenizer of 7 compressed ids"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_memory(_model(), _altered(folder, tmp_path, **changes))


def test_another_tokenizer_and_damage_are_refused(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.add_tokens(["added"])
    with pytest.raises(CheckpointError, match="trained with a tokenizer of 60 tokens; this one has 61"):
        load_memory(_model(), folder, tokenizer=changed)
    with pytest.raises(ConfigError, match="the tokenizer has 61 tokens and the model 60"):
        _memory(_model(), changed, "engram")
    swapped = json.loads(tokenizer.to_str())
    vocabulary = swapped["model"]["vocab"]
    vocabulary["cat1"], vocabulary["sun1"] = vocabulary["sun1"], vocabulary["cat1"]
    with pytest.raises(CheckpointError, match="digest"):
        load_memory(_model(), folder, tokenizer=Tokenizer.from_str(json.dumps(swapped)))
    damaged = _altered(folder, tmp_path)
    save_file({k: v + 1 for k, v in load_file(damaged / "layers.safetensors").items()}, damaged / "layers.safetensors")
    with pytest.raises(CheckpointError, match="has been altered"):
        load_memory(_model(), damaged)


@pytest.mark.parametrize(
    ("layers", "message"), [([3], "no layer 3 for engram tables: layer ids are 0-based"), ([], "at least one")]
)
def test_wrong_layers_are_refused(tokenizer: Tokenizer, layers: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        add_engram(_model(), tokenizer, layers=layers)
    with pytest.raises(ConfigError, match=message.replace("engram", "stem")):
        add_stem(_model(), tokenizer, layers=layers)


def test_a_model_of_another_build_is_refused(tokenizer: Tokenizer) -> None:
    config = transformers.GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(ConfigError, match="a GPT2LMHeadModel has no list of decoder layers"):
        add_engram(transformers.GPT2LMHeadModel(config), tokenizer, layers=[0])


@torch.no_grad()
def test_half_precision_reaches_no_row(tokenizer: Tokenizer) -> None:
    model = _model()
    memory = _memory(model, tokenizer, "engram")
    model.bfloat16()
    assert model(IDS).logits.dtype == torch.bfloat16
    assert all(w.dtype == torch.float32 for c in memory.tables.collections.values() for w in c.weights().values())


@torch.no_grad()
def test_a_static_cache_of_ones_own(loud: Any) -> None:
    model, _ = loud
    cache = StaticCache(config=model.config, max_cache_len=32)
    whole = model(IDS, use_cache=False).logits
    parts = [model(piece, past_key_values=cache).logits for piece in torch.split(IDS, [5, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_changes_nothing(tokenizer: Tokenizer, kind: str) -> None:
    """Nor does it leave anything behind that training stumbles over."""
    model = _model()
    memory = _memory(model, tokenizer, kind)
    with torch.inference_mode():
        inferred = model.generate(IDS, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(IDS))
    assert torch.equal(inferred.clone(), _greedy(model, IDS, 4))
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    memory.update_rows()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_short_and_empty_batches(tokenizer: Tokenizer, kind: str) -> None:
    model = _model()
    memory = _memory(model, tokenizer, kind)
    whole = model(IDS, use_cache=False).logits
    torch.testing.assert_close(model(IDS[:, :1], use_cache=False).logits, whole[:, :1], rtol=1e-4, atol=1e-5)
    nothing = IDS[:0]  # attention of transformers can't be empty; the memory can
    rows = memory._look_up(nothing, memory._marked(nothing, {}), None)
    assert all(read.shape == (0, T, memory.layout.row_dim) for read in rows.values())


@torch.no_grad()
def test_engram_and_stem_together(tokenizer: Tokenizer) -> None:
    model = _model()
    _memory(model, tokenizer, "engram")
    _memory(model, tokenizer, "stem")
    made = model.generate(IDS, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(IDS))
    assert torch.equal(made, _greedy(model, IDS, 5))
