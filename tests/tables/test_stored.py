"""Files of tensors: where each begins, and that the library reads what is written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embank.tables.errors import ConfigError
from embank.tables.serving.codecs import fbgemm
from embank.tables.serving.stored import TensorFile, mapped_tensors

TENSORS = {
    "a/bytes": torch.arange(7, dtype=torch.uint8),
    "b/narrow": torch.randn(5, 3),
    "b/wide": torch.randn(3, 16),
    "c/half": torch.randn(9, 4).half(),
    "c/brain": torch.randn(3, 8).bfloat16(),
    "d/none": torch.empty(0, 4),
    "d/no_columns": torch.empty(4, 0),
    "e/one": torch.tensor(3, dtype=torch.int64),
    "e/flags": torch.tensor([True, False, True]),
    "f/long": torch.randn(2, 3, 48),
    "f/narrow": torch.randn(7, 3),
    "g/ünicode": torch.randn(2, 8),
}


def test_rows_begin_at_cache_lines(tmp_path: Path) -> None:
    """A row of 64 bytes or of a power of two below never lies in more lines than it fills."""
    file = TensorFile()
    for name, tensor in TENSORS.items():
        assert file.add(name, tensor).key == name
    file.write(tmp_path / "t.safetensors")
    loaded, mapped = load_file(tmp_path / "t.safetensors"), mapped_tensors(tmp_path / "t.safetensors", TENSORS)
    for name, tensor in TENSORS.items():
        for found in (loaded[name], mapped[name]):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor), name
        row_nbytes = tensor.itemsize * (tensor.shape[-1] if tensor.dim() > 1 else 1)
        if tensor.numel():
            assert mapped[name].data_ptr() % min(64, row_nbytes & -row_nbytes) == 0, name
    assert mapped["b/wide"].data_ptr() % 64 == 0
    apart = mapped["f/narrow"].data_ptr() - mapped["b/narrow"].data_ptr()
    assert abs(apart) == 4 * 3 * (5 if apart > 0 else 7), "rows alike follow each other"


def test_a_type_that_could_not_be_read_again_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tensor 'net/w' is of torch.complex64, and bundles hold float64, float32,"):
        TensorFile().add("net/w", torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize("length", [1, 500, 900, fbgemm._KEPT + 3])
def test_counting(length: int) -> None:
    for kind in (np.int32, np.int64):
        assert np.array_equal(fbgemm._counting(length, kind), np.arange(length, dtype=kind))
        assert len(fbgemm._counted.get(kind, ())) <= fbgemm._KEPT
