"""What a run's checkpoint holds besides rows, and how a model is put together again from it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from embank.ctr_models import CTRModel
from embank.pipelines.runs.progress import Progress
from embank.tables import CheckpointError, TableCollection, WorkError
from embank.tables.collections.stages import stage_state
from embank.tables.sharding.processes import Processes
from embank.tables.storage.checkpoint import (
    load_dense,
    load_rows,
    refuse_non_finite,
    save_checkpoint,
    verify_checkpoint,
)
from embank.tables.storage.json_text import read_json


class SavedRun:
    """A checkpoint whose every byte was checked.

    Args:
        folder: the checkpoint.
        processes: those that load it together; one of them checks it.

    Raises:
        CheckpointError: it is missing or damaged; names the file.
    """

    def __init__(self, folder: Path, *, processes: Processes | None = None) -> None:
        self.folder, self.processes = folder, processes or Processes()
        with self.processes.together():
            if self.processes.is_first:
                verify_checkpoint(folder)
        self.meta = read_json(folder / "meta.json")
        self.dense = load_dense(folder)

    @property
    def table_stages(self) -> Mapping[str, Mapping[str, Any]]:
        """What the collection must be built with, see `embank.tables.collections.stages.stage_state`."""
        stages: Mapping[str, Mapping[str, Any]] = self.dense["stages"]
        return stages

    def progress(self) -> Progress:
        """Where the run stood."""
        return Progress.from_json(self.meta["progress"])

    def load_model(self, model: CTRModel, *, optimizer: bool = False) -> None:
        """Loads rows, methods and network, and with `optimizer` the rows' optimizer state.

        Raises:
            CheckpointError: the checkpoint belongs to other tables.
        """
        assert isinstance(model.tables, TableCollection)
        load_rows(self.folder, tables=model.tables, optimizer=optimizer)
        self._give(model.network, "network")
        self._give(model.tables.methods, "methods")

    def _give(self, target: torch.nn.Module | torch.optim.Optimizer, part: str) -> None:
        """Loads a part of the checkpoint into what it was saved from.

        Raises:
            CheckpointError: the part is missing or was saved from something else.
        """
        try:
            target.load_state_dict(self.dense[part])
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"checkpoint '{self.folder}': its {part.replace('_', ' ')} does not fit: "
                f"{' '.join(str(error).split())}. It was saved by "
                "another version or from another configuration: load it with those, or train again"
            ) from error

    def load_training(
        self, model: CTRModel, *, optimizer: torch.optim.Optimizer, search_optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Loads the model and everything that its training goes on with, torch's generator included.

        Args:
            model: tables and network.
            optimizer: of the dense parameters.
            search_optimizer: of what a stage searches for; None where it searches for nothing.

        Raises:
            CheckpointError: the checkpoint belongs to other tables, or another network.
        """
        assert isinstance(model.tables, TableCollection)
        self.load_model(model, optimizer=True)
        own = self.dense.get("rank_buffers") or []  # a run of an earlier version has none
        if len(own) == self.processes.count:
            load_buffers(model, own[self.processes.rank])
        self._refuse_another_order(model)
        self._give(optimizer, "optimizer")
        if search_optimizer is not None:
            self._give(search_optimizer, "search_optimizer")
        generators = self.dense["generators"]
        if self.processes.rank < len(generators):
            torch.set_rng_state(generators[self.processes.rank])
        device = model.tables.device
        states = self.dense.get("device_generators") or []
        if device.type == "cuda" and self.processes.rank < len(states) and states[self.processes.rank] is not None:
            torch.cuda.set_rng_state(states[self.processes.rank], device)

    def _refuse_another_order(self, model: CTRModel) -> None:
        """The dense optimizer's state goes by the order of parameters, and so by that of tables."""
        assert isinstance(model.tables, TableCollection)
        saved, here = list(self.meta["identity"]["tables"]), [spec.name for spec in model.tables.specs]
        if saved != here:
            raise CheckpointError(
                f"checkpoint '{self.folder}' has the tables in the order {saved}, here it is {here}; the optimizer's "
                "state goes by it. "
                "Give the tables in that order"
            )


def rank_buffers(model: CTRModel) -> dict[str, torch.Tensor]:
    """What this process has that others have other values of: buffers that forward passes write (running statistics,
    counts)."""
    assert isinstance(model.tables, TableCollection)
    saved = {"network": model.network, "methods": model.tables.methods}
    names = {part: module.state_dict().keys() for part, module in saved.items()}
    return {
        f"{part}.{name}": buffer.cpu()
        for part, module in saved.items()
        for name, buffer in module.named_buffers()
        if name in names[part]
    }


def load_buffers(model: CTRModel, values: Mapping[str, torch.Tensor]) -> None:
    """Gives a model the buffers that `rank_buffers` told of."""
    assert isinstance(model.tables, TableCollection)
    for part, module in (("network", model.network), ("methods", model.tables.methods)):
        for name, buffer in module.named_buffers():
            if f"{part}.{name}" in values:
                buffer.copy_(values[f"{part}.{name}"])


def device_generator(device: torch.device) -> torch.Tensor | None:
    """State of the generator that drops units out on a GPU; None on a CPU, which has torch's own."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def save_run(
    folder: Path,
    *,
    model: CTRModel,
    optimizer: torch.optim.Optimizer,
    search_optimizer: torch.optim.Optimizer | None,
    progress: Progress,
) -> None:
    """Writes a checkpoint, unless it is there already.

    Network and methods are saved as they are served, with the means over processes of the statistics that each of them
    keeps; beside them what each has, so that training goes on as if it had not stopped.

    Raises:
        WorkError: something is not finite, or the disk is full.
    """
    assert isinstance(model.tables, TableCollection)
    network, tables = model.network, model.tables
    with tables.processes.together():
        for name, parameter in network.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise WorkError(
                    f"the network's parameter '{name}' is not finite after step {progress.step}, so nothing was saved; "
                    "start again with a lower train.lr"
                )
        refuse_non_finite(tables)
        for rows in tables.row_stores():
            rows.flush()
    if tables.processes.first(folder.exists()):
        return
    own = tables.processes.gather(rank_buffers(model)) if tables.processes.count > 1 else []
    dense = {
        "network": network.state_dict(),
        "methods": tables.methods.state_dict(),
        "stages": stage_state(tables),
        "optimizer": optimizer.state_dict(),
        "search_optimizer": None if search_optimizer is None else search_optimizer.state_dict(),
        "generators": tables.processes.gather(torch.get_rng_state()),
        "device_generators": tables.processes.gather(device_generator(tables.device)),
        "rank_buffers": own,
    }
    with tables.processes.averaged_buffers(network, tables.methods):
        dense = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, dense)
        save_checkpoint(folder, tables=tables, dense=dense, meta={"progress": asdict(progress)})
