"""What processes must agree on outside a training step: who failed, and the little facts that one of them knows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from embank.tables.errors import EmbankError, WorkError

T = TypeVar("T")


def is_one_of_many() -> bool:
    """Whether this process has joined others in torch's default group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Processes:
    """The processes that train together; one process without a group, for which everything here is free.

    Args:
        group: the processes (gloo for tensors in host memory, nccl for those on GPUs); None for this one alone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else group.rank()
        self.count = 1 if group is None else group.size()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints for all."""
        return self.rank == 0

    def first(self, value: T) -> T:
        """The first process's value, on every process."""
        if self.group is None:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, group_src=0, group=self.group)
        result: T = values[0]
        return result

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order of rank, on every process."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values

    def union(self, values: set[str]) -> set[str]:
        """All that any process has."""
        return set().union(*self.gather(values))

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over processes."""
        if self.group is None:
            return values
        total = values.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process has raised it."""
        if self.group is None:
            return list(flags)
        raised: list[float] = self.sum(torch.tensor(flags, dtype=torch.float64)).tolist()
        return [value > 0 for value in raised]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their means over processes, in one exchange: gradients of dense parameters."""
        if self.group is None or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self.group)
        flat /= self.count
        for tensor, mean in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    @torch.no_grad()
    def average_buffers(self, *modules: nn.Module) -> None:
        """Replaces the floating-point buffers of modules by their means over processes: batch norm's running
        statistics, say, which each process takes from its own share of a batch. Counts stay each process's own: they
        don't enter what is served.

        Call it before the modules are evaluated, saved or packed; all processes must.
        """
        buffers = [b for module in modules for b in module.buffers() if b.is_floating_point() and b.numel()]
        if self.group is None or not buffers:
            return
        # In double precision values that are equal everywhere, constants for example, stay what they are to the bit.
        flat = torch.cat([buffer.reshape(-1).double() for buffer in buffers])
        dist.all_reduce(flat, group=self.group)
        flat /= self.count
        for buffer, mean in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    @contextmanager
    def averaged_buffers(self, *modules: nn.Module) -> Iterator[None]:
        """`average_buffers` for as long as the context lasts: every process then gets its own values back."""
        own = [] if self.group is None else [(b, b.clone()) for module in modules for b in module.buffers()]
        self.average_buffers(*modules)
        try:
            yield
        finally:
            for buffer, values in own:
                buffer.copy_(values)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A step that fails on all processes if it fails on one: nobody is left waiting for one that has gone.

        Raises:
            EmbankError: what a process raised, on all of them; on the others with the rank that it came from. Those
                that say what a process before them says know it (`is_told`).
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        outcomes = self.gather(None if error is None else (type(error), str(error)))
        if error is not None:
            if isinstance(error, EmbankError):
                error.is_told |= outcomes.index((type(error), str(error))) < self.rank
            raise error
        for rank, outcome in enumerate(outcomes):
            if outcome is not None:
                cls, message = outcome
                copy = (cls if issubclass(cls, EmbankError) else WorkError)(f"rank {rank}: {message}")
                copy.is_told = True
                raise copy
