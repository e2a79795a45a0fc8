"""How OpenMP's threads wait for work: decided before torch is imported, which reads it from the environment."""

import os
from collections.abc import MutableMapping

import psutil

# Rounds that a thread without work looks out for it before it sleeps. To wake it takes longer than what lies between
# two products of a step: on free cores a step of DLRM takes a fifth longer without looking. On cores that others want,
# who looks takes the time of the thread that it waits for, and many rounds cost more than half of the speed; a few of
# them cost free cores 3% to 8%.
ROUNDS, ROUNDS_ON_BUSY_CORES = 20_000, 2_000
BUSY_SHARE = 0.25
_FREE = ("idle", "iowait", "guest", "guest_nice")  # guests' time is in that of the user already


class Cores:
    """What others take of the cores that this process may use, from here on."""

    def __init__(self) -> None:
        self._begun = _seconds()

    def share_of_others(self) -> float:
        """From 0, nothing, to 1, all of them; in steps of 10 ms of a core's time, which is how finely Linux counts."""
        (busy, free, own), (busy_0, free_0, own_0) = _seconds(), self._begun
        passed = busy + free - busy_0 - free_0
        return max(0.0, busy - busy_0 - (own - own_0)) / passed if passed > 0 else 0.0


def choose(environment: MutableMapping[str, str]) -> None:
    """Sets how OpenMP's threads wait, unless the environment says so already.

    What others take of the cores is seen from the import of this module on: a command imports it first, and calls this
    when the rest is there, some tenths of a second later.

    Args:
        environment: of the process.
    """
    if "OMP_WAIT_POLICY" not in environment:
        is_busy = _CORES.share_of_others() > BUSY_SHARE
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        environment.setdefault("GOMP_SPINCOUNT", str(ROUNDS_ON_BUSY_CORES if is_busy else ROUNDS))


def _seconds() -> tuple[float, float, float]:
    """The time that the cores of this process were busy and free, and its own; zeros where the system does not say."""
    try:
        times = psutil.cpu_times(percpu=True)
        own = psutil.Process().cpu_times()
    except (OSError, psutil.Error):  # a container without /proc
        return 0.0, 0.0, 0.0
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    mine = [times[core] for core in allowed if core < len(times)]
    busy = sum(sum(value for name, value in one._asdict().items() if name not in _FREE) for one in mine)
    return busy, sum(one.idle + getattr(one, "iowait", 0.0) for one in mine), own.user + own.system


_CORES = Cores()
