"""N-grams of a stream of ids as integers: which ones a text has seen, and how often."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embank.tables.errors import ConfigError

Keys = NDArray[np.uint64]
CONTEXTS = ("trigram", "bigram", "unseen")
"""What training has seen of the tokens before a prediction: the last three, the last two only, neither."""


class Packing:
    """N-grams of ids below V as one integer each, the last id in the lowest bits.

    Args:
        vocab_size: V.
        order: of the longest n-gram.

    Raises:
        ConfigError: it does not fit 64 bits.
    """

    def __init__(self, vocab_size: int, order: int) -> None:
        self.bits = max(1, (vocab_size - 1).bit_length())
        if self.bits * order > 64:
            raise ConfigError(
                f"{order}-grams of {vocab_size} ids take {self.bits * order} bits, more than 64; use a shorter order "
                "or a smaller vocabulary"
            )

    def keys(self, stream: NDArray[Any], order: int) -> Keys:
        """The n-grams of one order that end at each position from `order` - 1 on."""
        stream = stream.astype(np.uint64)
        count = max(0, len(stream) - order + 1)
        keys = np.zeros(count, dtype=np.uint64)
        for place in range(order):
            keys = (keys << np.uint64(self.bits)) | stream[place : place + count]
        return keys

    def last(self, keys: Keys, order: int) -> Keys:
        """The n-grams without their first id; `order` is what is left."""
        return keys & np.uint64((1 << (self.bits * order)) - 1)

    def context(self, keys: Keys) -> Keys:
        """The n-grams without their last id."""
        return keys >> np.uint64(self.bits)


def seen_contexts(
    train: NDArray[Any], stream: NDArray[Any], places: NDArray[np.int64], *, vocab_size: int
) -> NDArray[np.int64]:
    """For each predicted place of a stream, the index in `CONTEXTS` of what training has seen before it.

    Args:
        train: ids that were trained on.
        stream: ids that are predicted.
        places: of the predictions, from 1 on.
        vocab_size: of the tokenizer.
    """
    packing = Packing(vocab_size, 3)
    found = np.full(len(places), CONTEXTS.index("unseen"))
    for name, order in (("bigram", 2), ("trigram", 3)):
        known = np.unique(packing.keys(train, order))
        keys = packing.keys(stream, order)
        ends = places - 1 - (order - 1)  # of the key that ends right before the place
        is_seen = np.zeros(len(places), dtype=bool)
        has_key = ends >= 0
        is_seen[has_key] = np.isin(keys[ends[has_key]], known)
        found[is_seen] = CONTEXTS.index(name)
    return found
