"""Rows of a source in tables of fewer bits."""

import re

import pytest
import torch

from embank.pipelines.importing.fits import filled
from embank.pipelines.reporting import Reporter
from embank.tables import ConfigError, RowTier, TableCollection, TableSpec


@pytest.mark.parametrize(
    ("dtype", "largest", "message"),
    [
        ("fp16", 1e5, "rows of table 't' reach 1e+05, and fp16 holds numbers up to 65504; set rows.dtype to fp32"),
        ("fp16", 1e-9, "rows of table 't' reach 1e-09 at most, and fp16 is exact from 6.1e-05 on; set rows.dtype to"),
        ("bf16", 3.4e38, "rows of table 't' reach 3.4e+38, and bf16 holds numbers up to 3.3895e+38; set"),
        ("fp16", 6e4, None),
        ("fp16", 0.0, None),
        ("bf16", 1e-9, None),
        ("fp32", 3.4e38, None),
        ("fp16", 65_510, None),
    ],
)
def test_numbers_that_rows_can_not_hold_are_refused(dtype: str, largest: float, message: str | None) -> None:
    """They became infinities, or zeros without a word."""
    spec = TableSpec(name="t", num_embeddings=3, embedding_dim=2, feature_names=["t"])
    tables = TableCollection([spec], backend="torch", tier=RowTier(dtype=dtype))  # type: ignore[arg-type]
    before, rows_ND = tables.weights()["t"].clone(), torch.linspace(-1, 1, 6).view(3, 2) * largest
    if message is None:
        held_ND = filled(tables, {"t": rows_ND}, {}, reporter=Reporter()).weights()["t"]
        torch.testing.assert_close(held_ND.float(), rows_ND, rtol=0.01, atol=0)
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        filled(tables, {"t": rows_ND}, {}, reporter=Reporter())
    assert torch.equal(tables.weights()["t"], before)
