"""Decoder and memories: what came before decides and what comes later does not, in one piece or token by token."""

from pathlib import Path

import pytest
import torch

from embank.pipelines.lm.config import memory_layers
from embank.pipelines.lm.generation import generate, generate_ids
from embank.pipelines.lm.model import LanguageModel, TextState, build_model
from embank.pipelines.lm.step import lm_optimizer
from embank.pipelines.lm.tokens import Corpus
from embank.tables import ConfigError
from embank.tables.memory import EngramLayout, MemoryFormerLinear
from tests.lm.small import KINDS, lm_config

pytestmark = pytest.mark.slow

IDS = torch.randint(1, 300, (2, 12), generator=torch.Generator().manual_seed(0))


def _model(texts: Path, corpus: Corpus, kind: str, **memory: object) -> LanguageModel:
    """A model whose parts all matter: rows and what starts at zero are drawn."""
    config = lm_config(texts, memory={"kind": kind, **memory})
    model = build_model(config, corpus, rows_folder=Path("unused"))
    generator = torch.Generator().manual_seed(1)
    for weight_RD in model.row_weights().values():
        weight_RD.copy_(torch.randn(weight_RD.shape, generator=generator))
    for name, parameter in model.network.named_parameters():
        if name.endswith("conv_weight"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model.train(False)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_pieces_are_the_whole(texts: Path, corpus: Corpus, kind: str) -> None:
    model = _model(texts, corpus, kind, conv=True)
    whole = model.hidden(IDS)
    for sizes in ([1] * 12, [5, 1, 6], [3, 9], [11, 1]):
        state = TextState()
        parts = [model.hidden(piece, state=state) for piece in torch.split(IDS, sizes, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_later_tokens_change_nothing(texts: Path, corpus: Corpus, kind: str) -> None:
    model = _model(texts, corpus, kind, conv=True)
    changed = IDS.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 300
    before, after = model.hidden(IDS), model.hidden(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_learns(texts: Path, corpus: Corpus, kind: str) -> None:
    model = _model(texts, corpus, kind, conv=True).train()
    rows = {name: weight.clone() for name, weight in model.row_weights().items()}
    model.logits(model.hidden(IDS)).logsumexp(-1).sum().backward()
    if model.tables is not None:
        model.tables.step()
        assert all(not torch.equal(w, rows[name]) for name, w in model.row_weights().items())
    for name, parameter in model.network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_rows_are_no_parameters(texts: Path, corpus: Corpus) -> None:
    model = _model(texts, corpus, "engram")
    held = sum(p.numel() for p in model.network.parameters())
    assert model.num_dense_parameters == held
    assert model.num_row_parameters == sum(w.numel() for w in model.row_weights().values()) > 4 * 128 * 4
    assert not any("head" in name for name in model.network.state_dict())


def test_n_grams_are_of_compressed_ids(texts: Path, corpus: Corpus) -> None:
    sizes = []
    for compress in (True, False):
        layout = _model(texts, corpus, "engram", compress=compress).memory.layout
        assert isinstance(layout, EngramLayout)
        sizes.append(layout.compression.size)
    assert sizes[0] < sizes[1] == 300


def test_shuffled_rows_are_of_another_sequence(texts: Path, corpus: Corpus) -> None:
    right, shuffled = (_model(texts, corpus, "engram", shuffle_ids=shuffle) for shuffle in (False, True))
    with torch.no_grad():
        assert torch.equal(shuffled.rows(IDS)[1], right.rows(IDS)[1].roll(1, dims=0))
    with pytest.raises(ConfigError, match="this batch has one"):
        shuffled.rows(IDS[:1])


@torch.no_grad()
def test_embeddings_are_left_out_in_training_alone(texts: Path, corpus: Corpus) -> None:
    decoder = build_model(
        lm_config(texts, model={"embedding_dropout": 0.5}), corpus, rows_folder=Path("unused")
    ).decoder
    whole = decoder.train(False)._embedded(IDS)
    assert float(whole.abs().amin(-1).min()) > 0
    torch.manual_seed(0)
    left_out = (decoder.train()._embedded(IDS.repeat(50, 1)) == 0).all(-1)
    assert 0.4 < float(left_out.float().mean()) < 0.6


@torch.no_grad()
def test_both_scorings_of_memoryformer(texts: Path, corpus: Corpus) -> None:
    paper, released = (_model(texts, corpus, "memoryformer", scoring=s) for s in ("paper", "released"))
    released.network.load_state_dict(paper.network.state_dict())
    layers = [m for m in released.network.modules() if isinstance(m, MemoryFormerLinear)]
    assert {layer.scoring for layer in layers} == {"released"}
    assert len(layers) == 4
    assert not torch.allclose(paper.hidden(IDS), released.hidden(IDS))


def test_default_layers(texts: Path) -> None:
    def layers(kind: str, num_layers: int) -> tuple[int, ...]:
        return memory_layers(lm_config(texts, memory={"kind": kind}, model={"num_layers": num_layers}))

    assert layers("engram", 4) == (1,)
    assert layers("engram", 1) == (0,)
    assert layers("stem", 6) == (1, 3, 5)
    assert layers("memoryformer", 3) == (0, 1, 2)
    assert layers("none", 3) == ()


def test_decay_leaves_tables_and_gains_alone(texts: Path, corpus: Corpus) -> None:
    config = lm_config(texts, memory={"kind": "memoryformer"})
    model = _model(texts, corpus, "memoryformer")
    decayed, others = (group["params"] for group in lm_optimizer(model.network, config.train).param_groups)
    names = {id(p): name for name, p in model.network.named_parameters()}
    assert {names[id(p)].rsplit(".", 2)[-2] for p in decayed} == {"qkv", "out"}
    assert len(decayed) + len(others) == len(names)


@torch.no_grad()
def test_generation_is_what_the_model_thinks_likeliest(texts: Path, corpus: Corpus) -> None:
    model = _model(texts, corpus, "engram", conv=True)
    prompt = IDS[0, :4].tolist()
    made = generate_ids(model, prompt, most=8)
    for end in range(len(made)):
        logits = model.logits(model.hidden(torch.tensor([prompt + made[:end]])))[0, -1]
        assert int(logits.argmax()) == made[end]


def test_draws_follow_the_seed_and_the_limits(texts: Path, corpus: Corpus) -> None:
    model = _model(texts, corpus, "none")
    draws = [generate_ids(model, [5], most=12, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert generate_ids(model, [5], most=6, temperature=1.0, top=1) == generate_ids(model, [5], most=6)
    assert generate_ids(model, [5], most=6, temperature=5e-324) == generate_ids(model, [5], most=6)
    assert len(generate_ids(model, [5], most=100)) <= 15  # the context is 16
    text = generate(model, corpus.tokenizer, "", most=5)
    assert isinstance(text, str)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt has no tokens"),
        ([1] * 16, {}, "the prompt has 16 tokens, and the model looks back over 16"),
        ([1], {"temperature": -1.0}, "the temperature is -1.0"),
        ([1], {"top": 0}, "0 of the likeliest tokens"),
        ([1], {"most": -1}, "-1 new tokens can't be made"),
    ],
)
def test_bad_requests_are_refused(
    texts: Path, corpus: Corpus, prompt: list[int], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        generate_ids(_model(texts, corpus, "none"), prompt, **{"most": 3, **options})
