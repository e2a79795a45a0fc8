"""Adapters: backends, devices, and models that lack what a memory needs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from transformers.cache_utils import Cache, LinearAttentionLayer

from embank.pipelines import add_engram, add_stem, load_memory
from embank.pipelines.lm.adapters.cached_history import length_of
from embank.tables import CheckpointError, ConfigError, DataError, RowOptimizer, RowTier
from tests.lm.test_adapters import IDS, _model, tokenizer  # noqa: F401 # a fixture

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


def test_a_pad_token_beyond_the_tokenizer_is_refused(tokenizer: Tokenizer) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="pad_token is 61; give one of the tokenizer's 60 tokens"):
        _added("engram", _model(vocab_size=64), tokenizer, pad_token=61)
