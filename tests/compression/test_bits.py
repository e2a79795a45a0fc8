"""Values in streams of bits."""

import numpy as np
import pytest
import torch

from embank.compression.parts.bits import pack_values, values_of_words, values_per_word, words_of


@pytest.mark.parametrize(
    ("num_values", "bits"), [(8, 1), (16, 3), (8, 5), (16, 7), (8, 8), (4, 12), (2, 20), (4, 4), (2, 32)]
)
def test_values_of_words_are_those_of_the_stream(num_values: int, bits: int) -> None:
    values_RC = torch.randint(0, 1 << bits, (9, num_values), generator=torch.Generator().manual_seed(bits))
    stream = pack_values(values_RC, bits=bits).numpy()
    per_word, row_nbytes = values_per_word(num_values, bits), num_values * bits // 8
    padded = np.pad(stream, (0, 8), constant_values=255)  # what stands behind a word's values must not count
    places = np.arange(9)[:, None] * row_nbytes + np.arange(0, row_nbytes, per_word * bits // 8)
    found = values_of_words(words_of(padded)[places], bits=bits, per_word=per_word)
    assert found.tolist() == values_RC.tolist()
    assert values_of_words(words_of(padded)[places[:0]], bits=bits, per_word=per_word).shape == (0, num_values)
