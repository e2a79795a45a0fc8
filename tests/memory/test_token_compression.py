"""The compression of a tokenizer: the normalisation's golden vector, its laws, and what it refuses."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.memory import TokenCompression

# A byte-level vocabulary: token, what its compressed id is, why.
GOLDEN = [
    ("<s>", 0),
    ("the", 1),
    ("\u0120The", 1),  # " The": stripped, lowercased
    ("THE", 1),
    ("\u0120", 2),  # a single space is a key of its own
    ("\u0120\u0120", 2),  # runs of white space are one space
    ("\u010a", 2),  # so is a newline
    ("\u00c3\u00a9", 3),  # "é": accents are stripped
    ("e", 3),
    ("\u00c3", 4),  # a byte that is no character: the raw token
    ("\u00e2\u0122", 5),  # another one
    ("\u00cc\u0123", 6),  # an accent alone: normalised to nothing, so the text itself
    ("\u00ef\u00ac\u0123", 7),  # "\ufb01", the ligature: NFKC
    ("fi", 7),
    ("\u00ce\u0133\u00ce\u00a3", 8),  # "ΑΣ": lowercased letter by letter, so not to the final sigma
    ("\u00ce\u00b1\u00cf\u0124", 9),  # "ας"
    ("\u00ce\u00b1\u00cf\u0125", 8),  # "ασ"
    ("\u00ef\u00bf\u00bd", 10),  # U+FFFD itself: the raw token
    ("\u00e2\u0133\u0142", 11),  # "①": NFKC
    ("1", 11),
    ("\u0120\u01091", 11),  # " \t1"
    ("\u011c", 12),  # "\x1c", which is no white space here
    ("\u00c4\u00b0", 13),  # "İ": i with a dot above, which is stripped
    ("i", 13),
]


def byte_level(tokens: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token=tokens[0]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokens[0]])
    return tokenizer


def test_golden_vector() -> None:
    compression = TokenCompression.from_tokenizer(byte_level([token for token, _ in GOLDEN]))
    assert compression.ids_V.tolist() == [compressed for _, compressed in GOLDEN]
    assert compression.size == 14
    assert compression.digest == "1db82502d273ca250cf4cfc2b81ea4d36a29da032b5d5509021ab0c22651da70"


def test_normalised_texts_are_their_own_keys() -> None:
    """Tokens that are the normal form of others fall together with them, and with nothing else."""
    words = ["<s>", "THE", "the", "É", "e", "ﬁ", "fi", "①", "1", " x", "x", "\u0391\u03a3", "\u03b1\u03c3"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<s>"))
    assert TokenCompression.from_tokenizer(tokenizer).ids_V.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


def test_special_tokens_keep_their_own_ids() -> None:
    tokenizer = byte_level(["<s>", "a"])
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    assert TokenCompression.from_tokenizer(tokenizer).ids_V.tolist() == [0, 1, 2, 3]


def test_every_id_is_used_in_order_of_first_appearance() -> None:
    compression = TokenCompression.from_tokenizer(byte_level([token for token, _ in GOLDEN]))
    firsts = [compression.ids_V.tolist().index(n) for n in range(compression.size)]
    assert firsts == sorted(firsts)


def test_one_agrees_with_many_of_any_shape() -> None:
    compression = TokenCompression.from_tokenizer(byte_level([token for token, _ in GOLDEN]))
    ids = torch.randint(0, len(GOLDEN), (3, 0, 2))
    assert compression(ids).shape == (3, 0, 2)
    assert [compression.one(n) for n in range(len(GOLDEN))] == compression(torch.arange(len(GOLDEN))).tolist()


def test_without_compression_the_digest_still_tells_tokenizers_apart() -> None:
    plain = TokenCompression.from_tokenizer(byte_level(["<s>", "a", "A"]), compress=False)
    assert plain.ids_V.tolist() == [0, 1, 2]
    assert plain.digest != TokenCompression.from_tokenizer(byte_level(["<s>", "A", "a"]), compress=False).digest


class Slow:
    """A tokenizer in Python, as `transformers` has them."""

    tokens = ("<s>", "The", "the")

    def __len__(self) -> int:
        return len(self.tokens)

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not skip_special_tokens
        assert not clean_up_tokenization_spaces
        return "".join(self.tokens[n] for n in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.tokens[token]


class Wrapped:
    """A fast tokenizer, as `transformers` has them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.backend_tokenizer = tokenizer


def test_tokenizers_of_transformers() -> None:
    assert TokenCompression.from_tokenizer(Slow()).ids_V.tolist() == [0, 1, 1]
    plain = byte_level(["<s>", "The", "the"])
    assert TokenCompression.from_tokenizer(Wrapped(plain)).digest == TokenCompression.from_tokenizer(plain).digest


def test_refuses_what_is_no_tokenizer() -> None:
    with pytest.raises(ConfigError, match="a dict is no tokenizer; give one of"):
        TokenCompression.from_tokenizer({"a": 0})
    with pytest.raises(ConfigError, match="the tokenizer has no tokens; train it first"):
        TokenCompression.from_tokenizer(Tokenizer(models.BPE()))
    with pytest.raises(ConfigError, match=r"a map of shape \(2,\) is none of tokens to compressed ids"):
        TokenCompression(torch.tensor([0, 2]), digest="")


@pytest.mark.parametrize("wrong", [-1, 3])
def test_refuses_tokens_that_the_tokenizer_lacks(wrong: int) -> None:
    compression = TokenCompression.from_tokenizer(byte_level(["<s>", "a", "b"]))
    with pytest.raises(DataError, match=rf"token id {wrong} is outside the tokenizer's 3 tokens \(0 .. 2\)"):
        compression(torch.tensor([[0, wrong]]))
    with pytest.raises(DataError, match=f"token id {wrong} is outside"):
        compression.one(wrong)
    with pytest.raises(DataError, match=r"ids are torch.float32; they must be integers"):
        compression(torch.tensor([1.0]))


def test_refuses_a_tokenizer_that_has_changed() -> None:
    trained = byte_level(["<s>", "a", "b"])
    manifest = TokenCompression.from_tokenizer(trained).manifest()
    TokenCompression.from_tokenizer(byte_level(["<s>", "a", "b"])).refuse_other(manifest, what="the memory")
    trained.add_tokens(["new"])
    with pytest.raises(CheckpointError, match="the memory was trained with a tokenizer of 3 tokens; this one has 4"):
        TokenCompression.from_tokenizer(trained).refuse_other(manifest, what="the memory")
    with pytest.raises(CheckpointError, match="was trained with a tokenizer of 3 compressed ids; this one has 2"):
        TokenCompression.from_tokenizer(byte_level(["<s>", "a", "A"])).refuse_other(manifest, what="the memory")
    with pytest.raises(CheckpointError, match="so ids mean other tokens. Use the very tokenizer of the training"):
        TokenCompression.from_tokenizer(byte_level(["<s>", "b", "a"])).refuse_other(manifest, what="the memory")
