"""What a language model costs in bits per byte: how well it predicts text, whatever its tokenizer."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from embank.pipelines.lm.model import LanguageModel
from embank.pipelines.lm.tokens import Corpus
from embank.pipelines.lm.windows import Windows
from embank.pipelines.runs.memory import keep_freed_memory

EVAL_BATCH = 16
_ORDER_SEED = 1
"""Windows are read in a fixed mixed order, so that neighbours in a batch are not neighbours in the text."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model thought of every token that it predicted.

    Args:
        places_N: position of each in the stream.
        ids_N: the tokens.
        nats_N: minus the log of the probability that each was given.
    """

    places_N: Tensor
    ids_N: Tensor
    nats_N: Tensor

    def sorted(self) -> "Predictions":
        """In the order of the stream."""
        order = self.places_N.argsort()
        return Predictions(places_N=self.places_N[order], ids_N=self.ids_N[order], nats_N=self.nats_N[order])


@torch.no_grad()
@keep_freed_memory()
def predict(model: LanguageModel, stream: Tensor, *, most: int | None = None) -> Predictions:
    """Predicts all of a stream but its first token, window by window; the first token of a window has no context in it
    but the one before. The last window is shorter where the stream ends.

    Args:
        model: is put into evaluation mode.
        stream: ids [N].
        most: tokens to read at most.
    """
    stream = stream if most is None else stream[: most + 1]
    context = max(1, min(model.context, len(stream) - 1))
    batch_size = max(1, min(EVAL_BATCH, (len(stream) - 1) // context))
    windows = Windows(stream, context=context, batch_size=batch_size, seed=_ORDER_SEED)
    model.train(False)
    places, nats, ids = [], [], []
    for places_BS, window_BS in windows.all():
        inputs_BT, targets_N = window_BS[:, :-1], window_BS[:, 1:].flatten()
        logits_NV = model.logits(model.hidden(inputs_BT)).flatten(0, 1)
        places_N = places_BS[:, 1:].flatten()
        kept = places_N < len(stream)  # a window that is too long tells nothing of what stands before its end
        places.append(places_N[kept])
        nats.append(F.cross_entropy(logits_NV.float(), targets_N, reduction="none")[kept])
        ids.append(targets_N[kept])
    return Predictions(places_N=torch.cat(places), ids_N=torch.cat(ids), nats_N=torch.cat(nats)).sorted()


def bits_per_byte(predictions: Predictions, token_bytes_V: Tensor) -> float:
    """Bits that the text costs, by its bytes. Ends of documents cost bits and have no bytes."""
    num_bytes = int(token_bytes_V[predictions.ids_N].sum())
    return float(predictions.nats_N.double().sum()) / math.log(2) / max(1, num_bytes)


def evaluate(model: LanguageModel, corpus: Corpus, split: str, *, most: int | None) -> dict[str, Any]:
    """Figures of a split: bits per byte, log loss per token, tokens and bytes read.

    Args:
        model: the model.
        corpus: the text.
        split: train, valid or test.
        most: tokens to read at most; None reads all.
    """
    return figures(predict(model, corpus.ids(split), most=most), corpus.token_bytes_V)


def figures(predictions: Predictions, token_bytes_V: Tensor) -> dict[str, Any]:
    """What is told of some predictions."""
    return {
        "bits_per_byte": bits_per_byte(predictions, token_bytes_V),
        "loss": float(predictions.nats_N.double().mean()),
        "tokens": predictions.ids_N.numel(),
        "bytes": int(token_bytes_V[predictions.ids_N].sum()),
    }
