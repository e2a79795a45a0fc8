"""How many threads compute on a loader's thread."""

import threading
from collections.abc import Generator
from typing import TypeVar

import torch

T = TypeVar("T")
_one_at_a_time = threading.Lock()


def on_one_thread(source: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same items, made without help of further threads, on whatever thread asks for the first one.

    OpenMP gives each thread that computes in parallel a team of its own. A loader's team beside the training step's
    makes more threads than cores, upon which OpenMP's threads no longer wait awake for what the step does next.

    Args:
        source: closed with this generator.
    """
    with _one_at_a_time:
        count = torch.get_num_threads()
        torch.set_num_threads(1)
        # torch holds one number for threads that have not computed yet, and has just set it to 1.
        keeper = threading.Thread(target=torch.set_num_threads, args=(count,))
        keeper.start()
        keeper.join()
    yield from source
