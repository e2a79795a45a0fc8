"""Tiers and FBGEMM's memories."""

from pathlib import Path

import pytest

from embank.tables import ConfigError, RowTier
from embank.tables.rows.fbgemm_memory import placement


@pytest.mark.parametrize(
    ("tier", "device", "factor", "expected"),
    [
        ("device", "cpu", 0.2, ("HOST", "CPU", None)),
        ("host", "cpu", 0.2, ("HOST", "CPU", None)),
        ("disk", "cpu", 0.2, ("HOST", "CPU", None)),
        ("device", "cuda", 0.2, ("DEVICE", "CUDA", None)),
        ("host", "cuda:1", 0.3, ("MANAGED_CACHING", "CUDA", 0.3)),
        ("host", "cuda", 0.0, ("MANAGED", "CUDA", None)),
    ],
)
def test_placement(tier: str, device: str, factor: float, expected: tuple) -> None:
    directory = Path("rows") if tier == "disk" else None
    made = placement(RowTier(name=tier, device=device, cache_load_factor=factor, directory=directory))
    assert (made.location.name, made.compute.name, made.cache_load_factor) == expected


def test_disk_on_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="the fbgemm backend has no disk tier on 'cuda'; use tier 'host' or backend="):
        placement(RowTier(name="disk", device="cuda", directory=Path("rows")))
