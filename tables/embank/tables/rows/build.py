"""Chooses the implementation of row storage by its name, never silently."""

from embank.tables.errors import ConfigError
from embank.tables.rows.base import RowStore
from embank.tables.rows.store_spec import StoreSpec


def build_rows(spec: StoreSpec) -> RowStore:
    """Row storage with initial values. Whether there is memory for it is asked before, of all stores together: see
    `embank.tables.rows.room`.

    Raises:
        ConfigError: a backend that does not exist, or that can't do what is asked; a device that is not there.
    """
    tier = spec.tier
    tier.refuse_missing_device()
    if tier.is_meta or spec.optimizer.is_external:
        from embank.tables.rows.parameter_rows import ParameterRows

        return ParameterRows(spec)
    if spec.backend == "fbgemm":
        from embank.tables.rows.fbgemm import fbgemm_rows

        return fbgemm_rows(spec)
    if spec.backend == "torch" and tier.on_gpu and tier.name != "device":
        from embank.tables.rows.staged import StagedRows

        return StagedRows(spec)
    if spec.backend == "torch":
        from embank.tables.rows.torch_rows import TorchRows

        return TorchRows(spec)
    raise ConfigError(f"there is no backend '{spec.backend}'; use 'fbgemm' or 'torch'")
