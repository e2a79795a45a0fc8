"""Adapters: backends, devices, and models that lack what a memory needs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from embank.pipelines import add_engram, add_stem, load_memory
from embank.tables import CheckpointError, ConfigError, RowOptimizer, RowTier
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
