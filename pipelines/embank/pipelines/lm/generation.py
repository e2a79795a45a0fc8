"""Text from a language model, token by token with a cache."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embank.pipelines.lm.model import LanguageModel, TextState
from embank.pipelines.lm.tokenizer import decode, encode
from embank.tables.errors import ConfigError
from embank.tables.memory import PositionEdit

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_ID = 0


@torch.no_grad()
def generate_ids(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    most: int,
    temperature: float = 0.0,
    top: int | None = None,
    seed: int = 0,
    edit: PositionEdit | None = None,
) -> list[int]:
    """Ids that go on from a prompt, until a document ends or the context is full.

    Args:
        model: is put into evaluation mode.
        prompt: at least one id.
        most: new ids at most.
        temperature: 0 takes the likeliest id; 1 draws from the model's distribution.
        top: draw from the likeliest few ids only; None from all.
        seed: of the draws.
        edit: what the memory reads of the prompt.

    Raises:
        ConfigError: an empty prompt, one that fills the context, or settings that can't be.
    """
    _refuse_bad(model, prompt, most=most, temperature=temperature, top=top)
    model.train(False)
    generator = torch.Generator().manual_seed(seed)
    state, made = TextState(), list[int]()
    ids_BT = torch.tensor([list(prompt)])
    rows = None if edit is None else model.edited_rows(edit, state)
    while len(made) < min(most, model.context - len(prompt)):
        logits_V = model.logits(model.hidden(ids_BT, state=state, rows=rows)[0, -1])
        rows = None
        chosen = _choose(logits_V, temperature=temperature, top=top, generator=generator)
        if chosen == END_ID:
            break
        made.append(chosen)
        ids_BT = torch.tensor([[chosen]])
    return made


def _refuse_bad(model: LanguageModel, prompt: Sequence[int], *, most: int, temperature: float, top: int | None) -> None:
    if not prompt:
        raise ConfigError("the prompt has no tokens; give some text")
    if len(prompt) >= model.context:
        raise ConfigError(
            f"the prompt has {len(prompt)} tokens, and the model looks back over {model.context}; give a shorter one"
        )
    if most < 0:
        raise ConfigError(f"{most} new tokens can't be made; give 0 or more")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"the temperature is {temperature}; it must be 0 (the likeliest token) or more")
    if top is not None and top < 1:
        raise ConfigError(f"{top} of the likeliest tokens leave nothing to draw from; give at least 1")


def _choose(logits_V: Tensor, *, temperature: float, top: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top is not None and top < logits_V.numel():
        least = logits_V.topk(top).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    scaled_V = (logits_V - logits_V.max()).double() / temperature  # at most 0: no temperature overflows
    return int(torch.multinomial(scaled_V.softmax(-1), 1, generator=generator))


def generate(
    model: LanguageModel,
    tokenizer: "Tokenizer",
    prompt: str,
    *,
    most: int,
    temperature: float = 0.0,
    top: int | None = None,
    seed: int = 0,
) -> str:
    """Text that goes on from a prompt; a beginning of a document for an empty one. Arguments as in `generate_ids`."""
    ids = [END_ID, *encode(tokenizer, prompt)]
    return decode(tokenizer, generate_ids(model, ids, most=most, temperature=temperature, top=top, seed=seed))
