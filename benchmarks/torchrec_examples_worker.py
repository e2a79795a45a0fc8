"""One rank of a program that `torchrec_examples.py` compares: runs it, gives the model known values once it is wrapped
for its ranks, and notes its training losses.

    python benchmarks/torchrec_examples_worker.py FOLDER CALL OUT NUM_STEPS     (started by torchrec_examples.py)

The program's source is not touched: what it calls in torch and TorchRec is watched.
"""

import importlib
import json
import os
import random
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import TrainPipelineSparseDist
from torchrec.distributed.model_parallel import DistributedModelParallel

from embank.tables import Tables

TABLE = re.compile(r"(?:embedding_bags|embeddings)\.(.+)\.weight$")
WRAPPERS = re.compile(r"\b(_dmp_wrapped_module|module)\.")
INSIDE = ("embank.", "torchrec.modules.")
"""Where sharded tables have wrappers of their own."""
losses: list[float] = []


def seed() -> None:
    """What the program draws from here on depends on its rank alone."""
    number = 1000 + int(os.environ["RANK"])
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def known(name: str, shape: torch.Size, *, scale: float) -> Tensor:
    """Values that depend on a name and a shape."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return (2 * torch.rand(shape, generator=generator) - 1) * scale


@torch.no_grad()
def set_values(model: nn.Module) -> None:
    """Gives rows and parameters known values."""
    ours = [module for module in model.modules() if isinstance(module, Tables)]
    for tables in ours:
        for spec in tables.specs:
            tables.set_rows(spec.name, rows_of(spec.name, torch.Size([spec.num_embeddings, spec.embedding_dim])))
    for name, value in {} if ours else model.state_dict().items():
        found = TABLE.search(name)
        if found is None:
            continue
        full = rows_of(found[1], value.size())
        for part in value.local_shards() if isinstance(value, ShardedTensor) else [None]:
            if part is None:
                value.copy_(full)
            else:
                (row, column), (rows, columns) = part.metadata.shard_offsets, part.metadata.shard_sizes
                part.tensor.copy_(full[row : row + rows, column : column + columns])
    for name, parameter in model.named_parameters():
        plain = WRAPPERS.sub("", name)
        if TABLE.search(plain) is None and parameter.numel():
            values = known(plain, parameter.shape, scale=parameter.shape[-1] ** -0.5)
            is_gain = parameter.dim() == 1 and plain.endswith("weight")
            parameter.copy_(1 + values if is_gain else values)


def rows_of(table: str, shape: torch.Size) -> Tensor:
    """The first values of a table."""
    return known(table, shape, scale=shape[1] ** -0.5)


def when_wrapped(cls: type[nn.Module]) -> None:
    """Sets values when a model has been wrapped for its ranks."""
    make = cls.__init__

    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)  # type: ignore[misc]
        module = args[0] if args else kwargs["module"]
        if not type(module).__module__.startswith(INSIDE):
            set_values(self)
            seed()

    cls.__init__ = wrapped  # type: ignore[assignment]


def noting(call: Callable[..., Any], loss_of: Callable[[Any], Tensor], model_of: Callable[[Any], nn.Module]) -> Any:
    """A method that notes a loss while its model trains."""

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = call(self, *args, **kwargs)
        if model_of(self).training and torch.is_grad_enabled():
            losses.append(float(loss_of(result)))
        return result

    return noted


def main() -> None:
    folder, call, out, num_steps = sys.argv[1:]
    told = json.loads(call)
    sys.path.insert(0, folder)
    torch.set_num_threads(1)
    seed()
    when_wrapped(DistributedDataParallel)
    when_wrapped(DistributedModelParallel)
    TrainPipelineSparseDist.progress = noting(
        TrainPipelineSparseDist.progress, lambda result: result[0], lambda pipeline: pipeline._model
    )
    nn.CrossEntropyLoss.forward = noting(nn.CrossEntropyLoss.forward, lambda loss: loss, lambda loss: loss)
    function = getattr(importlib.import_module(told["module"]), told["function"])
    function(*([] if told["arguments"] is None else [told["arguments"]]), **told["keywords"])
    if len(losses) < int(num_steps):
        sys.exit(f"the program trained for {len(losses)} steps, not {num_steps}")
    Path(out).write_text(json.dumps(losses[: int(num_steps)]))


if __name__ == "__main__":
    main()
