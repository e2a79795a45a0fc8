"""Tokenizer compression: token ids whose text says the same become one id, so that more n-grams meet in one row.

Source: Engram (arXiv 2601.07372, section 2.1); the normalisation, in its order, is that of the released code
(deepseek-ai/Engram, `CompressedTokenizer`).
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from embank.tables.collections.ids import int64_ids
from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.libraries import missing_library

REPLACEMENT = "\ufffd"
"""What bytes decode to that are no whole character."""

_SPACE = "\ue000"
"""Stands for a single space while both ends are stripped: of private use, so in no text."""


class _Vocabulary(NamedTuple):
    """What is asked of a tokenizer."""

    num_tokens: int
    text_of: Callable[[int], str]  # decoded by itself
    token_of: Callable[[int], str | None]  # the raw token


class TokenCompression:
    """The map from token ids to compressed ids.

    Args:
        ids_V: int64 [V], the compressed id of each token: 0, 1, 2, ... in the order of first appearance.
        digest: of the tokenizer's vocabulary and of the map, see `from_tokenizer`.
        padding: how the map goes on behind the tokenizer's tokens, see `from_tokenizer`; None where it does not.

    Attributes:
        num_tokens: V, the tokenizer's added tokens included, and ids that no token has where a model has more of them.
        size: V', the number of compressed ids. Every row of every n-gram depends on it.
        digest: kept beside rows that were trained, and compared when they are loaded.

    Raises:
        ConfigError: the map is not one.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> words = {"The": 0, "the": 1, "cat": 2, "THE": 3}
        >>> compression = TokenCompression.from_tokenizer(Tokenizer(models.WordLevel(words, unk_token="cat")))
        >>> compression.size, compression(torch.tensor([3, 2, 1])).tolist()
        (2, [0, 1, 0])
    """

    def __init__(self, ids_V: Tensor, *, digest: str, padding: Mapping[str, int] | None = None) -> None:
        distinct = torch.unique(ids_V)
        if ids_V.dim() != 1 or not ids_V.numel() or not torch.equal(distinct, torch.arange(len(distinct))):
            raise ConfigError(
                f"a map of shape {tuple(ids_V.shape)} is none of tokens to compressed ids; give one id per token, "
                "0 .. V' - 1, each of them used"
            )
        self.ids_V = ids_V.long()
        self.num_tokens = ids_V.numel()
        self.size = len(distinct)
        self.digest = digest
        self.padding = None if padding is None else dict(padding)
        self._list = self.ids_V.tolist()

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, *, compress: bool = True, num_ids: int | None = None, absent_as: int = 0
    ) -> Self:
        """The map of a tokenizer.

        A token's key is its text, decoded alone and normalised; the raw token where the text is empty or holds bytes
        that are no whole character; the plain text where the normalised one is empty. Tokens of one key get one id, in
        the order of first appearance.

        Args:
            tokenizer: of `tokenizers`, or any of `transformers`.
            compress: False gives every token an id of its own; the digest still tells tokenizers apart.
            num_ids: the model's number of ids (`vocab_size`), which may be more than there are tokens (Qwen pads it).
                Ids without a token get an id of their own with `compress=False`. Otherwise they are read as
                `absent_as`, so that V', and with it every row, is the tokenizer's alone. None knows the tokens only.
            absent_as: a token, usually the one for padding.

        Raises:
            ConfigError: it is no tokenizer, has no tokens, or more than there are ids.
        """
        vocabulary = _vocabulary_of(tokenizer)
        key_of = _key_maker(vocabulary) if compress else (lambda token: f"{token} {vocabulary.token_of(token)}")
        places: dict[str, int] = {}
        ids = [places.setdefault(key_of(token), len(places)) for token in range(vocabulary.num_tokens)]
        num_tokens, padding = len(ids), None
        if num_ids is not None and num_ids < num_tokens:
            raise ConfigError(f"the tokenizer has {num_tokens:,} tokens, more than num_ids, {num_ids:,}")
        if num_ids is not None and num_ids > num_tokens:
            if not 0 <= absent_as < num_tokens:
                raise ConfigError(f"absent_as is {absent_as}; give one of the tokenizer's {num_tokens:,} tokens")
            more = num_ids - num_tokens
            ids += [ids[absent_as]] * more if compress else range(len(places), len(places) + more)
            padding = {"first_absent": num_tokens, "absent_as": absent_as}
        ids_V = torch.tensor(ids, dtype=torch.int64)
        return cls(ids_V, digest=_digest(ids_V, list(places)), padding=padding)

    @classmethod
    def like(cls, manifest: Mapping[str, Any], tokenizer: Any, *, compress: bool = True) -> Self:
        """The map of a tokenizer with as many ids as that of a manifest, which `refuse_other` then compares.

        Args:
            manifest: what `manifest` gave.
            tokenizer, compress: as for `from_tokenizer`.
        """
        made, padding = cls.from_tokenizer(tokenizer, compress=compress), manifest.get("padding")
        if not isinstance(padding, Mapping) or made.num_tokens != padding.get("first_absent"):
            return made
        num_ids, absent_as = manifest.get("num_tokens"), padding.get("absent_as", 0)
        return cls.from_tokenizer(tokenizer, compress=compress, num_ids=num_ids, absent_as=absent_as)

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Compressed ids of token ids, any shape.

        Raises:
            DataError: an id that the tokenizer does not have, or no integers.
        """
        ids = int64_ids(token_ids)
        if ids.numel():
            low, high = (int(bound) for bound in ids.aminmax())
            self._refuse_outside(low)
            self._refuse_outside(high)
        return self.ids_V.to(ids.device)[ids]

    def one(self, token_id: int) -> int:
        """The compressed id of one token: what decoding asks for, position by position."""
        if not 0 <= token_id < self.num_tokens:
            self._refuse_outside(token_id)
        compressed: int = self._list[token_id]
        return compressed

    def _refuse_outside(self, token_id: int) -> None:
        if not 0 <= token_id < self.num_tokens:
            raise DataError(
                f"token id {token_id} is outside the tokenizer's {self.num_tokens:,} tokens (0 .. "
                f"{self.num_tokens - 1:,}); mark padding as dead positions, tokenize with the tokenizer that the "
                "compression was made from, and give num_ids where the model has more ids than that has tokens"
            )

    def manifest(self) -> dict[str, Any]:
        """What tells this map from others, as JSON."""
        facts = {"num_tokens": self.num_tokens, "size": self.size, "digest": self.digest}
        return facts if self.padding is None else {**facts, "padding": self.padding}

    def refuse_other(self, manifest: Mapping[str, Any], *, what: str) -> None:
        """Refuses what was trained with another map.

        Args:
            manifest: what `manifest` gave then.
            what: the sentence's subject, "the memory in 'runs/lm'".

        Raises:
            CheckpointError: names the difference.
        """
        cure = "Use the very tokenizer of the training, or train the memory anew"
        for key, word in (("num_tokens", "tokens"), ("size", "compressed ids")):
            if manifest.get(key) != getattr(self, key):
                raise CheckpointError(
                    f"{what} was trained with a tokenizer of {manifest.get(key)} {word}; this one has "
                    f"{getattr(self, key)}, which would send every n-gram to another row. {cure}"
                )
        if manifest.get("digest") != self.digest:
            raise CheckpointError(
                f"{what} was trained with a tokenizer whose vocabulary has the digest "
                f"'{str(manifest.get('digest'))[:16]}'; this one's is '{self.digest[:16]}', so ids mean other tokens. "
                f"{cure}"
            )


def _vocabulary_of(tokenizer: Any) -> _Vocabulary:
    """What is asked of a tokenizer. The raw decoder of `tokenizers` where there is one: `transformers` may clean spaces
    up."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        cure = missing_library(error)
        if cure is None:
            raise
        raise ConfigError(f"a tokenizer's text can't be normalised: {cure}") from error

    raw = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if isinstance(raw, Tokenizer):
        vocabulary = _Vocabulary(
            raw.get_vocab_size(with_added_tokens=True),
            # Otherwise all special tokens decode to nothing, and would share one id.
            lambda token: str(raw.decode([token], skip_special_tokens=False)),
            raw.id_to_token,
        )
    elif hasattr(raw, "convert_ids_to_tokens") and hasattr(raw, "decode"):  # those of `transformers` in Python
        vocabulary = _Vocabulary(
            len(raw),
            lambda token: str(raw.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)),
            raw.convert_ids_to_tokens,
        )
    else:
        raise ConfigError(f"a {type(tokenizer).__name__} is no tokenizer; give one of 'tokenizers' or 'transformers'")
    if not vocabulary.num_tokens:
        raise ConfigError("the tokenizer has no tokens; train it first")
    return vocabulary


def _key_maker(vocabulary: _Vocabulary) -> Callable[[int], str]:
    """The key of each token: tokens of one key are one to the memory."""
    # Python's own `unicodedata` strips other marks, and treats a final sigma and some spaces in another way.
    from tokenizers import Regex, normalizers

    chain = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
            normalizers.Replace(Regex(r"^ $"), _SPACE),
            normalizers.Strip(),
            normalizers.Replace(_SPACE, " "),
        ]
    )

    def key_of(token: int) -> str:
        text = vocabulary.text_of(token)
        if not text or REPLACEMENT in text:
            return vocabulary.token_of(token) or ""
        return str(chain.normalize_str(text)) or text

    return key_of


def _digest(ids_V: Tensor, keys: list[str]) -> str:
    """SHA-256 over the map and the keys: a tokenizer with two words exchanged has the same map."""
    digest = hashlib.sha256(b"embank.token_compression.1")
    digest.update(ids_V.numpy().astype("<i8").tobytes())
    for key in keys:
        encoded = key.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
