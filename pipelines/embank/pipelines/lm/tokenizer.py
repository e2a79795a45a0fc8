"""The tokenizer of a small language model: byte-level BPE, trained on the training split only."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from embank.tables.errors import DataError
from embank.tables.wording import shortened

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|end|>"
"""Stands after every document, and before the first one."""
TRAINING_BYTES = 8_000_000
"""Text that the merges are counted on; more changes little."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> "Tokenizer":
    """A byte-level BPE tokenizer whose id 0 is `END`; no text is unknown to it.

    Args:
        texts: of the training split.
        vocab_size: ids, at least 257: each byte has one.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_at_most(texts, TRAINING_BYTES), trainer)
    result: Tokenizer = tokenizer
    return result


def token_bytes(tokenizer: "Tokenizer") -> list[int]:
    """Bytes of text that each id stands for; 0 for `END`."""
    # Byte-level BPE writes every byte as one character of its alphabet.
    return [0 if id == 0 else len(str(tokenizer.id_to_token(id))) for id in range(tokenizer.get_vocab_size())]


def encode(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Ids of a text, to which `END` is never added; where it stands in the text, it is text.

    Raises:
        DataError: it holds what is no text, as bytes of a command line that are no UTF-8 become.
    """
    pieces = text.split(END)
    ids = _plain(tokenizer, pieces[0])
    for piece in pieces[1:]:
        ids += _spelt(tokenizer, END) + _plain(tokenizer, piece)
    return ids


def _plain(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Ids of a text without `END`."""
    try:
        return list(tokenizer.encode(text).ids)
    except TypeError as error:  # what `tokenizers` says of lone surrogates
        raise DataError(f"{shortened(ascii(text))} is no UTF-8 text; give it as UTF-8") from error


def _spelt(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Ids of a text byte by byte."""
    found: list[int] = []
    for character in text:
        found += tokenizer.encode(character).ids
    return found


def decode(tokenizer: "Tokenizer", ids: Sequence[int]) -> str:
    """The text of ids; bytes that are no UTF-8 become U+FFFD."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _at_most(texts: Iterable[str], nbytes: int) -> Iterable[str]:
    taken = 0
    for text in texts:
        if taken >= nbytes:
            return
        taken += len(text)
        yield text
