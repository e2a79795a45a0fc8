"""Which of FBGEMM's memories a tier is."""

from dataclasses import dataclass

from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice

from embank.tables.errors import ConfigError
from embank.tables.rows.store_spec import RowTier


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Arguments of an FBGEMM module: where rows are, what computes, the cache's share of the rows."""

    location: EmbeddingLocation
    compute: ComputeDevice
    cache_load_factor: float | None = None


def placement(tier: RowTier) -> Placement:
    """FBGEMM's memory for a tier.

    Raises:
        ConfigError: the disk tier on a GPU: FBGEMM's kernels there read no mapped files.
    """
    if not tier.on_gpu:
        return Placement(location=EmbeddingLocation.HOST, compute=ComputeDevice.CPU)
    if tier.name == "device":
        return Placement(location=EmbeddingLocation.DEVICE, compute=ComputeDevice.CUDA)
    if tier.name == "disk":
        raise ConfigError(f"the fbgemm backend has no disk tier on '{tier.device}'; use tier 'host' or backend='torch'")
    if tier.cache_load_factor == 0:
        return Placement(location=EmbeddingLocation.MANAGED, compute=ComputeDevice.CUDA)
    return Placement(
        location=EmbeddingLocation.MANAGED_CACHING, compute=ComputeDevice.CUDA, cache_load_factor=tier.cache_load_factor
    )
