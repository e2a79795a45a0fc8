"""How staged rows travel between the host and the device that looks them up: on streams beside the one that computes,
or not at all.

A lane hides streams and pinned memory from `staged`: with a GPU, copies run beside the computation and events order
them; on a CPU nothing is copied and everything has happened when a call returns. Host memory that takes part in a copy
is pinned; torch's allocator of pinned memory does not give a block away before the copies that use it have ended.
"""

from typing import Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """A point on a stream."""

    def synchronize(self) -> None:
        """Waits on the host until the device has passed it."""


class Passed:
    """A point that has been passed: what a CPU returns."""

    def synchronize(self) -> None:
        """Returns at once."""


class Lane(Protocol):
    """Copies to and from one device. `upload` and `download` may be called from any thread."""

    device: torch.device

    def staging(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Host memory [numel] that can be uploaded, not initialised."""

    def upload(self, staged: list[Tensor]) -> tuple[list[Tensor], Mark]:
        """Starts to copy host tensors to the device; what comes back may be used after `follow`."""

    def follow(self, uploaded: list[Tensor], mark: Mark) -> None:
        """Makes the computing stream wait for an upload, without holding up the host."""

    def mark(self) -> Mark:
        """The point that the computing stream has been told to reach so far."""

    def download(self, tensors: list[Tensor], after: Mark) -> list[Tensor]:
        """Copies device tensors to the host once `after` has been passed, and waits for them."""


class HostLane:
    """The lane of a CPU: what is staged is looked up and updated where it lies."""

    device = torch.device("cpu")

    def staging(self, numel: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(numel, dtype=dtype)

    def upload(self, staged: list[Tensor]) -> tuple[list[Tensor], Mark]:
        return staged, Passed()

    def follow(self, uploaded: list[Tensor], mark: Mark) -> None:
        pass

    def mark(self) -> Mark:
        return Passed()

    def download(self, tensors: list[Tensor], after: Mark) -> list[Tensor]:
        return tensors


class CudaLane:
    """The lane of a GPU: one stream each way, so that rows come in while others go out.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.inward, self.outward = (torch.cuda.Stream(self.device) for _ in range(2))  # type: ignore[no-untyped-call]

    def staging(self, numel: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(numel, dtype=dtype, pin_memory=True)

    def upload(self, staged: list[Tensor]) -> tuple[list[Tensor], Mark]:
        with torch.cuda.stream(self.inward):
            uploaded = [tensor.to(self.device, non_blocking=True) for tensor in staged]
            return uploaded, self.inward.record_event()

    def follow(self, uploaded: list[Tensor], mark: Mark) -> None:
        assert isinstance(mark, torch.cuda.Event)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(mark)
        for tensor in uploaded:
            tensor.record_stream(computing)  # its memory belongs to the inward stream

    def mark(self) -> Mark:
        mark: Mark = torch.cuda.current_stream(self.device).record_event()
        return mark

    def download(self, tensors: list[Tensor], after: Mark) -> list[Tensor]:
        assert isinstance(after, torch.cuda.Event)
        with torch.cuda.stream(self.outward):
            self.outward.wait_event(after)
            landed = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for target, tensor in zip(landed, tensors, strict=True):
                target.copy_(tensor, non_blocking=True)
            self.outward.record_event().synchronize()
        return landed


def lane_to(device: str) -> Lane:
    """The lane to a device, "cpu" or "cuda[:N]"."""
    return HostLane() if device == "cpu" else CudaLane(torch.device(device))
