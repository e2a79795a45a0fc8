"""Adapters: backends, devices, and models that lack what a memory needs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from transformers.cache_utils import Cache, LinearAttentionLayer

from embank.pipelines import add_engram, add_stem, load_memory
from embank.pipelines.lm.adapters.cached_history import length_of
from embank.tables import CheckpointError, ConfigError, DataError, RowOptimizer, RowTier
from tests.lm.test_adapters import IDS, _altered, _model, tokenizer  # noqa: F401 # a fixture

KINDS = ("engram", "stem")


def _added(kind: str, model: Any, tokenizer: Tokenizer, **options: Any) -> Any:  # noqa: F811
    if kind == "engram":
        return add_engram(model, tokenizer, layers=[1], rows=100, memory_dim=32, num_heads=2, **options)
    return add_stem(model, tokenizer, layers=[1], **options)


def _trained(memory: Any) -> torch.Tensor:
    for _ in range(2):
        memory.model(IDS, use_cache=False).logits.square().mean().backward()
        memory.update_rows()
    for parameter in memory.parameters():  # the value projection starts at zero
        torch.nn.init.constant_(parameter, 0.1)
    with torch.no_grad():
        logits: torch.Tensor = memory.eval().model(IDS, use_cache=False).logits
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_lazy_adam_and_its_folder(tokenizer: Tokenizer, tmp_path: Path, kind: str) -> None:  # noqa: F811
    memory = _added(kind, _model(), tokenizer, optimizer=RowOptimizer(name="adam", lr=0.01), backend="torch")
    expected = _trained(memory)
    memory.save(tmp_path / "memory")
    again = load_memory(_model(), tmp_path / "memory", tokenizer=tokenizer)
    assert next(iter(again.tables.collections.values())).backend == "torch"
    with torch.no_grad():
        assert torch.equal(again.eval().model(IDS, use_cache=False).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_two_bytes_where_a_kernel_can(tokenizer: Tokenizer, tmp_path: Path, kind: str) -> None:  # noqa: F811
    tier = RowTier(dtype="bf16")
    with pytest.raises(ConfigError, match="rows are to be bf16; .* Use backend='torch', or dtype 'fp32'"):
        _added(kind, _model(), tokenizer, tier=tier)
    memory = _added(kind, _model(), tokenizer, tier=tier, backend="torch")
    assert _trained(memory).isfinite().all()
    memory.save(tmp_path / "memory")
    with pytest.raises(CheckpointError, match="the table here has float32. Load it into tables with RowTier"):
        load_memory(_model(), tmp_path / "memory", tokenizer=tokenizer)
    loaded = load_memory(_model(), tmp_path / "memory", tokenizer=tokenizer, tier=tier)
    assert {w.dtype for c in loaded.tables.collections.values() for w in c.weights().values()} == {torch.bfloat16}


def test_a_model_has_all_hooks_or_none(tokenizer: Tokenizer) -> None:  # noqa: F811
    model = _model()
    model.model.layers[1].linear_attn = model.model.layers[1].self_attn
    del model.model.layers[1].self_attn
    with pytest.raises(ConfigError, match="layer 1 of a .* has no self_attn; choose layers with attention"):
        add_stem(model, tokenizer, layers=[0, 1])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    add_stem(model, tokenizer, layers=[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_not_handed_its_rows_is_told(tokenizer: Tokenizer, kind: str) -> None:  # noqa: F811
    model = _model()
    layer = model.model.layers[1]
    wrapped = layer.self_attn if kind == "stem" else layer

    class Deaf(torch.nn.Module):  # takes what it knows, and hands no other keyword down
        def __init__(self) -> None:
            super().__init__()
            self.inner = wrapped
            if kind == "engram":
                self.mlp, self.self_attn = wrapped.mlp, wrapped.self_attn

        def forward(self, hidden_states: Any, **kwargs: Any) -> Any:
            return self.inner(hidden_states, **kwargs)

    if kind == "stem":
        memory = add_stem(model, tokenizer, layers=[1])
        layer.self_attn = Deaf()
        layer.self_attn.inner._forward_pre_hooks.clear()
        layer.self_attn.inner._forward_pre_hooks_with_kwargs.clear()
    else:
        memory = _added(kind, model, tokenizer)
        model.model.layers[1] = Deaf()
        layer._forward_pre_hooks.clear()
        layer._forward_pre_hooks_with_kwargs.clear()
    with pytest.raises(ConfigError, match="layer 1 of a LlamaForCausalLM has not read its rows: the model does not"):
        model(IDS, use_cache=False)
    memory.remove()
    model(IDS, use_cache=False)


@torch.no_grad()
def test_layers_of_linear_attention_beside_others(tokenizer: Tokenizer) -> None:  # noqa: F811
    linear = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = transformers.Qwen3NextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        num_hidden_layers=4,
        head_dim=8,
        linear_value_head_dim=8,
        num_experts=0,
        mlp_only_layers=[0, 1, 2, 3],
        eos_token_id=None,
        **shape,
        **linear,
    )
    model = transformers.Qwen3NextForCausalLM(config).eval()
    memory = _added("engram", model, tokenizer)
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    whole = model.generate(IDS, use_cache=False, **options)
    assert torch.equal(model.generate(IDS, **options), whole)
    with pytest.raises(ConfigError, match="LinearAttentionLayer, none of which knows how many positions it holds"):
        length_of(Cache(layers=[LinearAttentionLayer()]))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_a_list(tokenizer: Tokenizer, kind: str) -> None:  # noqa: F811
    add: Any = add_engram if kind == "engram" else add_stem
    with pytest.raises(ConfigError, match=rf"the layers with {kind} tables are 1; give a list, for example \[1\]"):
        add(_model(), tokenizer, layers=1)
    with pytest.raises(ConfigError, match=rf"a layer with {kind} tables is -1; it must be a whole number"):
        add(_model(), tokenizer, layers=[-1])


def test_dense_parts_follow_the_model_to_its_device(tokenizer: Tokenizer) -> None:  # noqa: F811
    memory = _added("engram", _model(), tokenizer)
    dead_BT = torch.zeros(IDS.shape, dtype=torch.bool)
    rows = {1: torch.zeros(*IDS.shape, 32)}
    hidden = torch.zeros(*IDS.shape, memory.model.config.hidden_size, device="meta")
    (added,), _ = memory._before_layer(1, memory.model, (hidden,), {"embank_memory": {memory.key: (rows, dead_BT)}})
    assert added.device.type == "meta"
    assert {parameter.device.type for parameter in memory.parameters()} == {"meta"}


@pytest.mark.parametrize("options", [{}, {"compress": False}, {"kind": "stem"}], ids=["engram", "raw", "stem"])
def test_ids_that_no_token_has_are_generated_and_read(
    tokenizer: Tokenizer,  # noqa: F811
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    tokens, ids = tokenizer.get_vocab_size(), tokenizer.get_vocab_size() + 8  # padded, as Qwen's
    model, options = _model(vocab_size=ids), dict(options)
    memory = _added(options.pop("kind", "engram"), model, tokenizer, **options)
    if memory.layout.kind == "engram":
        assert memory.layout.hash.compressed_vocab_size == (ids if options else memory.tables.compression.size)
    said = _trained(memory)
    with torch.no_grad():  # only those are likely
        model.lm_head.weight[:tokens] = 0
        model.lm_head.bias = torch.nn.Parameter(torch.where(torch.arange(ids) < tokens, -1e4, 0.0))
    made = model.generate(IDS, max_new_tokens=6, do_sample=False)
    assert bool((made[:, IDS.shape[1] :] >= tokens).all())
    assert torch.equal(model.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=False), made)
    with pytest.raises(DataError, match=f"token id {ids} is outside"):
        memory.tables.address(torch.tensor([[ids]]))
    memory.save(tmp_path / "memory")
    other = _model(vocab_size=ids)
    again = load_memory(other, tmp_path / "memory", tokenizer=tokenizer).eval()
    with torch.no_grad():
        assert torch.equal(other(IDS, use_cache=False).logits, said)
        assert other(made, use_cache=False).logits.isfinite().all()
    again.remove()


@pytest.mark.parametrize("name", ["pad_token", "end_token"])
def test_tokens_that_the_hash_can_not_know_are_refused(tokenizer: Tokenizer, name: str) -> None:  # noqa: F811
    with pytest.raises(
        ConfigError, match=f"{name} is 61; give the number of one of the tokenizer's 60 tokens, or compress=False"
    ):
        _added("engram", _model(vocab_size=64), tokenizer, **{name: 61})
    with pytest.raises(ConfigError, match=f"{name} is 64; give the number of one of the model's 64 ids$"):
        _added("engram", _model(vocab_size=64), tokenizer, compress=False, **{name: 64})
    _added("engram", _model(vocab_size=64), tokenizer, compress=False, **{name: 61}).remove()
    with pytest.raises(ConfigError, match=f"{name} is -1; give the number of one of the tokenizer's 60 tokens$"):
        _added("engram", _model(), tokenizer, **{name: -1})
    with pytest.raises(ConfigError, match=f"{name} is 'sun1'; give the number of one of the tokenizer's 60 tokens"):
        _added("engram", _model(), tokenizer, **{name: "sun1"})
    with pytest.raises(ConfigError, match=f"{name} is True; "):
        _added("engram", _model(), tokenizer, **{name: True})


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_other_libraries_are_saved(tokenizer: Tokenizer, tmp_path: Path, kind: str) -> None:  # noqa: F811
    three = np.int64(3)
    options: dict[str, Any] = {"layers": np.array([1])}
    if kind == "engram":
        sizes = {"rows": np.int64(50), "memory_dim": np.int64(24), "num_heads": three, "max_ngram": three}
        options |= {**sizes, "seed": three, "end_token": np.int64(7), "pad_token": torch.tensor(1)}
    memory = (add_engram if kind == "engram" else add_stem)(_model(), tokenizer, **options)
    said = _trained(memory)
    memory.save(tmp_path / "memory")
    again = load_memory(_model(), tmp_path / "memory", tokenizer=tokenizer).eval()
    with torch.no_grad():
        assert torch.equal(again.model(IDS, use_cache=False).logits, said)


@pytest.mark.parametrize("add", [add_engram, add_stem])
def test_what_is_no_model_is_refused(tokenizer: Tokenizer, add: Any) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="a NoneType has no list of decoder layers"):
        add(None, tokenizer, layers=[1])


@pytest.mark.parametrize("compress", [True, False])
@torch.no_grad()
def test_no_n_gram_reaches_back_over_an_end_token(
    tokenizer: Tokenizer,  # noqa: F811
    tmp_path: Path,
    compress: bool,
) -> None:
    end = 40  # "DOG4", which is "dog4" (28) where tokens are compressed
    model = _model()
    memory = _added("engram", model, tokenizer, end_token=end, compress=compress)
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def rows(ids: list[int]) -> torch.Tensor:
        ids_BT = torch.tensor([ids])
        read: torch.Tensor = memory._look_up(ids_BT, memory._marked(ids_BT, {}), None)[1][0]
        return read

    first, second = [7, 9, end], [11, 12, 13]
    assert torch.equal(rows([*first, *second])[3:], rows(second))
    assert torch.equal(rows([*first, *second])[:3], rows(first))
    assert not torch.equal(rows([7, end]), rows([8, end]))  # the end itself has an n-gram
    is_end_too = torch.equal(rows([7, 9, 28, *second])[3:], rows(second))
    assert is_end_too == compress
    text = torch.tensor([[*first, *second]])
    whole = model.generate(text, max_new_tokens=8, do_sample=False, use_cache=False)
    for options in ({}, {"prefill_chunk_size": 2}):
        assert torch.equal(model.generate(text, max_new_tokens=8, do_sample=False, **options), whole)

    memory.save(tmp_path / "memory")
    again = load_memory(_model(), tmp_path / "memory", tokenizer=tokenizer).eval()
    assert again.layout.hash.end_id == memory.layout.hash.end_id == again.tables.compression.one(end)
    assert torch.equal(again.model(text, use_cache=False).logits, model(text, use_cache=False).logits)


def test_given_multipliers_address_rows_and_stand_in_the_folder(
    tokenizer: Tokenizer,  # noqa: F811
    tmp_path: Path,
) -> None:
    given = (23_703_573_157_769, 20_109_073_645_365, 8_052_911_324_071)
    memory = _added("engram", _model(), tokenizer, multipliers={1: given}, compress=False)
    a, b, c = 7, 9, 11
    mixes = (c * given[0] ^ b * given[1], c * given[0] ^ b * given[1] ^ a * given[2])
    primes = memory.layout.hash.primes[1]
    wanted = [mixes[head // 2] % prime for head, prime in enumerate(primes)]
    assert memory.layout.hash(torch.tensor([[a, b, c]]))[1][0, 2].tolist() == wanted
    said = _trained(memory)
    memory.save(tmp_path / "memory")
    again = load_memory(_model(), tmp_path / "memory", tokenizer=tokenizer).eval()
    assert again.layout.hash.multipliers == {1: given}
    with torch.no_grad():
        assert torch.equal(again.model(IDS, use_cache=False).logits, said)
    with pytest.raises(ConfigError, match=r"multipliers are given for the layers \[2\]; give them for \[1\]"):
        _added("engram", _model(), tokenizer, multipliers={2: given})
    other = {"1": [3, 5, 7]}
    with pytest.raises(CheckpointError, match="neither a seed nor multipliers"):
        load_memory(_model(), _altered(tmp_path / "memory", tmp_path, layout__hash__multipliers=None))
    shutil.rmtree(tmp_path / "altered")
    layers = {**json.loads((tmp_path / "memory/manifest.json").read_text())["layout"]["hash"], "multipliers": other}
    with pytest.raises(CheckpointError, match="sizes that can't be: multipliers are given for the layers"):
        load_memory(_model(), _altered(tmp_path / "memory", tmp_path, layers=[2], layout__hash=layers))
