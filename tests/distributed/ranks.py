"""Worker processes that stay up between tests: starting one costs seconds, a job on it milliseconds."""

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing  # tensors go through pipes

from tests.processes import forkserver


class Ranks:
    """Processes in one gloo group. `run` calls a function on each and gives their results in order of rank."""

    def __init__(self, world_size: int) -> None:
        port = free_port()
        context = forkserver()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(world_size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world_size, port, there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
        """function(rank, *args) on every rank.

        Raises:
            AssertionError: a rank failed (with its traceback) or did not answer.
        """
        for pipe in self.pipes:
            pipe.send((function, args))
        results: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        while len(results) < len(self.pipes):
            waiting = {pipe: rank for rank, pipe in enumerate(self.pipes) if rank not in results}
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            assert ready, f"ranks {sorted(waiting.values())} did not answer within {timeout} s"
            for pipe in ready:
                is_good, results[waiting[pipe]] = pipe.recv()
                if not is_good:
                    self.kill()
                    raise AssertionError(f"rank {waiting[pipe]} failed:\n{results[waiting[pipe]]}")
        return [results[rank] for rank in range(len(self.pipes))]

    def kill(self) -> None:
        """Ends the processes at once; the others may be waiting for one that failed."""
        for process in self.processes:
            process.kill()

    def close(self) -> None:
        for pipe in self.pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.send(None)
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _serve(rank: int, world_size: int, port: int, pipe: Connection) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    while (job := pipe.recv()) is not None:
        function, args = job
        try:
            pipe.send((True, function(rank, *args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.barrier()
    dist.destroy_process_group()
