"""Edits of a trained run: a phrase that reads another's STEM rows, a fact that is written into Engram rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from embank.pipelines.lm.generation import END_ID, generate_ids
from embank.pipelines.lm.model import LanguageModel
from embank.pipelines.lm.tokenizer import decode, encode
from embank.tables.errors import ConfigError, DataError
from embank.tables.memory import EditSession, PositionEdit, TriggerRows
from embank.tables.memory.position_edits import Strategy, occurrences

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SURE = -math.log(0.98)
"""Loss at which a fact is written well enough."""


@dataclass(frozen=True, kw_only=True)
class Edited:
    """What an edit has done to a prompt.

    Args:
        before, after: what the model goes on with.
        probability_before, probability_after: of the answer, where one was asked for.
        num_rows: rows that were written; 0 for an edit of the prompt alone.
        session: takes written rows back, or saves them as an overlay.
    """

    before: str
    after: str
    probability_before: float | None = None
    probability_after: float | None = None
    num_rows: int = 0
    session: EditSession | None = None


def phrase_in(tokenizer: "Tokenizer", text_ids: Sequence[int], phrase: str) -> tuple[list[int], bool]:
    """The ids that a phrase has in a text, and whether that is its form with a space before it.

    Raises:
        DataError: it does not stand there.
    """
    for form, has_space in ((f" {phrase.strip()}", True), (phrase.strip(), False)):
        ids = encode(tokenizer, form)
        if ids and occurrences(torch.tensor([list(text_ids)]), ids):
            return ids, has_space
    raise DataError(f"the phrase {phrase!r} does not stand in the prompt; give it as the prompt has it")


def swap_phrase(
    model: LanguageModel,
    tokenizer: "Tokenizer",
    *,
    prompt: str,
    source: str,
    target: str,
    strategy: Strategy = "copy",
    everywhere: bool = False,
    most: int = 24,
) -> Edited:
    """Lets a phrase of a prompt read the STEM rows of another phrase.

    Args:
        model: with a STEM memory.
        tokenizer: of the model.
        prompt: a text that holds the phrase.
        source: the phrase that stands there.
        target: the phrase whose rows are read.
        strategy: for phrases of unequal length, see `embank.tables.memory.PositionEdit`.
        everywhere: write the rows, for all texts; otherwise nothing is written.
        most: tokens to go on with.

    Raises:
        ConfigError: a model without STEM rows, or phrases that do not go together.
        DataError: the phrase does not stand in the prompt.
    """
    _refuse_other_kind(model, "stem", instead="a fact is written into Engram rows with --answer")
    assert model.tables is not None
    ids = [END_ID, *encode(tokenizer, prompt)]
    own, has_space = phrase_in(tokenizer, ids, source)
    other = encode(tokenizer, f" {target.strip()}" if has_space else target.strip())
    before = generate_ids(model, ids, most=most)
    if everywhere:
        session = EditSession(model.tables)
        edit = session.swap(own, other, strategy=strategy, name=f"{source!r} reads {target!r}")
        after = generate_ids(model, ids, most=most)
        return Edited(
            before=decode(tokenizer, before),
            after=decode(tokenizer, after),
            num_rows=edit.num_rows,
            session=session,
        )
    position_edit = PositionEdit.of_phrase(torch.tensor([ids]), source=own, target=other, strategy=strategy)
    after = generate_ids(model, ids, most=most, edit=position_edit)
    return Edited(before=decode(tokenizer, before), after=decode(tokenizer, after))


def write_fact(
    model: LanguageModel,
    tokenizer: "Tokenizer",
    *,
    prompt: str,
    answer: str,
    steps: int = 200,
    lr: float = 0.1,
    most: int = 24,
) -> Edited:
    """Writes into Engram rows that a prompt is followed by an answer: the rows of the last n-gram before each of the
    answer's tokens are tuned, nothing else.

    The n-gram triggers the answer wherever it stands; a paraphrase does not.

    Args:
        model: with an Engram memory.
        tokenizer: of the model.
        prompt: a text, at least as long as the longest n-gram.
        answer: what is to follow, with the space before it.
        steps: of the tuning at most, for each token of the answer; it ends when the token has probability .98.
        lr: of the tuning (Adam).
        most: tokens to go on with.

    Raises:
        ConfigError: a model without Engram rows, an empty answer, or a prompt that is too short or too long.
    """
    _refuse_other_kind(model, "engram", instead="rows of STEM are swapped with --source and --target")
    assert model.tables is not None
    ids, wanted = [END_ID, *encode(tokenizer, prompt)], encode(tokenizer, answer)
    if not wanted:
        raise ConfigError("the answer has no tokens; give what the prompt is to be followed by")
    assert model.memory.layout is not None
    longest = model.memory.layout.lookback + 1
    if len(ids) < longest:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens with the beginning of the text, and the n-gram that is tuned {longest}; "
            "give a longer prompt"
        )
    if len(ids) + len(wanted) > model.context:
        raise ConfigError(
            f"prompt and answer have {len(ids) + len(wanted)} tokens, and the model looks back over {model.context}; "
            "give a shorter prompt"
        )
    model.train(False)
    before, probability_before = generate_ids(model, ids, most=most), _probability(model, ids, wanted)
    session, num_rows = EditSession(model.tables), 0
    for place, token in enumerate(wanted):
        text = [*ids, *wanted[:place]]
        trigger = _tuned(model, text, token, steps=steps, lr=lr)
        num_rows += session.write_trigger(trigger, name=f"{prompt!r} is followed by {answer!r}").num_rows
    return Edited(
        before=decode(tokenizer, before),
        after=decode(tokenizer, generate_ids(model, ids, most=most)),
        probability_before=probability_before,
        probability_after=_probability(model, ids, wanted),
        num_rows=num_rows,
        session=session,
    )


def _tuned(model: LanguageModel, text: Sequence[int], token: int, *, steps: int, lr: float) -> TriggerRows:
    """The rows at the end of a text, tuned until the token follows."""
    assert model.tables is not None
    trigger = TriggerRows(model.tables, text)
    tuner = torch.optim.Adam(trigger.parameters(), lr=lr)
    ids_BT = torch.tensor([list(text)])
    with torch.no_grad():
        rows = model.tables(ids_BT)
    for _ in range(steps):
        read = trigger(rows, ids_BT)["engram"]
        logits_V = model.logits(model.hidden(ids_BT, rows=read)[0, -1])
        loss = F.cross_entropy(logits_V[None], torch.tensor([token]))
        if loss.item() < SURE:
            break
        tuner.zero_grad()
        loss.backward(inputs=list(trigger.parameters()))  # type: ignore[no-untyped-call]
        tuner.step()
    return trigger


@torch.no_grad()
def _probability(model: LanguageModel, ids: Sequence[int], wanted: Sequence[int]) -> float:
    """Of some tokens after others."""
    whole = torch.tensor([[*ids, *wanted]])
    logits_TV: Tensor = model.logits(model.hidden(whole[:, :-1])[0, len(ids) - 1 :])
    return math.exp(-float(F.cross_entropy(logits_TV, torch.tensor(list(wanted)), reduction="sum")))


def _refuse_other_kind(model: LanguageModel, kind: str, *, instead: str) -> None:
    layout = model.memory.layout
    if layout is None or layout.kind != kind:
        has = "no memory" if layout is None else f"a memory of kind '{layout.kind}'"
        raise ConfigError(f"this edit is of '{kind}' rows, and the run has {has}; {instead}")
