"""Work on bundles, ended or out of room at any of the things that it does to files.

`python -m tests.faults.stop_points --points 50 --seed 0` ends each job at that many points, and lets the disk be full
from that many points on. Every time either nothing or all of the result must be at its place, what was there before
must be as it was, and the job must go through when it is tried again.

A library is preloaded (`stop_points.c`), so that what Rust and C do is counted like what Python does. The process
imports everything once and does each job in a fork of itself; before a fork nothing is computed, so that no threads are
lost in it.
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

COUNT, KILL, FULL, LOG = range(4)
KILLED, REFUSED = 137, 3
SOURCE = Path(__file__).with_suffix(".c")
Job = Callable[[Path, Path], None]
"""Given the folder of what is there and the place of the result."""


def _save(place: Path, out: Path) -> None:
    from embank.tables import save_bundle
    from tests.deltas.bundles import network, tables

    made = {"rules.json": lambda path: path.write_text("{}"), "more/tokens": lambda path: path.write_text("a b")}
    save_bundle(out, tables(), network=network(), facts={"step": 1}, files=made)


def _copy(place: Path, out: Path) -> None:
    from embank.tables import Bundle
    from embank.tables.serving.saving import copy_bundle

    copy_bundle(Bundle(place / "old"), out)


def _delta(place: Path, out: Path) -> None:
    from embank.pipelines import make_delta

    make_delta(place / "old", place / "new", out)


def _apply(place: Path, out: Path) -> None:
    from embank.pipelines import apply_delta

    apply_delta(place / "old", [place / "delta", place / "second"], out)


JOBS: dict[str, Job] = {"save": _save, "copy": _copy, "delta": _delta, "apply": _apply}


class StopError(AssertionError):
    """What must never be: half a result, something else than before, a job that does not go through again."""


class Stops:
    """Jobs in forks of this process, into which the library is preloaded.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.place, self.results = folder / "place", folder / "results"
        self.place.mkdir()
        self.results.mkdir()
        self._library = ctypes.CDLL(None)
        self._forked(self._prepare)
        self.before = contents(self.place)

    def _prepare(self) -> None:
        from tests.deltas.bundles import chain

        chain(self.place, 2)
        for name, made in (("old", "v0"), ("new", "v1"), ("last", "v2")):
            (self.place / made).rename(self.place / name)
        _delta(self.place, self.place / "delta")
        from embank.pipelines import make_delta

        make_delta(self.place / "new", self.place / "last", self.place / "second")

    def points_of(self, job: str) -> int:
        """How often a job does something to files; its result is kept to compare others with."""
        count = self.results.parent / "count"

        def counted() -> None:
            self._library.stop_points_begin(-1, COUNT, -1)
            JOBS[job](self.place, self.results / f"whole_{job}")
            seen = int(ctypes.c_long(self._library.stop_points_seen()).value)
            count.write_text(str(seen))

        if self._forked(counted) != 0:
            raise StopError(f"{job} fails when nothing stops it")
        return int(count.read_text())

    def stop(self, job: str, at: int, how: int) -> str:
        """Stops a job; what became of it in a word.

        Raises:
            StopError: it left something else than it may.
        """
        out = self.results / "out"

        def stopped() -> None:
            self._library.stop_points_begin(at, how, -1)
            JOBS[job](self.place, out)

        code = self._forked(stopped)
        name = f"{job}, {'killed' if how == KILL else 'full'} at {at}"
        if code not in ((KILLED,) if how == KILL else (0, REFUSED)):
            raise StopError(f"{name}: it ended with {code}")
        whole = contents(self.results / f"whole_{job}")
        if out.exists() and contents(out) != whole:
            raise StopError(f"{name}: half a result is left")
        if contents(self.place) != self.before:
            raise StopError(f"{name}: what it only reads has changed")
        beside = {path.name for path in self.results.iterdir()} - {"out", *(f"whole_{one}" for one in JOBS)}
        if how == FULL and beside:
            raise StopError(f"{name}: {beside} is left behind")
        ended = "done" if out.exists() else "nothing"
        if how == KILL and not out.exists():
            if self._forked(lambda: JOBS[job](self.place, out)) != 0:
                raise StopError(f"{name}: it does not go through when it is tried again")
            if contents(out) != whole:
                raise StopError(f"{name}: another result when it is tried again")
        for path in self.results.iterdir():
            if not path.name.startswith("whole_"):
                shutil.rmtree(path)
        return ended

    def unsynced(self, job: str) -> set[str]:
        """What a loss of power could take back after a result has got its name: files and folders that are not synced
        between the last change and the name; the folder around the result, if it is not synced after that."""
        log, out = self.results.parent / "log", self.results / "out"

        def logged() -> None:
            self._library.stop_points_begin(-1, LOG, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            JOBS[job](self.place, out)

        if self._forked(logged) != 0:
            raise StopError(f"{job} fails when it is watched")
        events = [tuple(line.split("\t")) for line in log.read_text().splitlines()]
        named = events.index(("rename", str(out)))
        (temporary,) = {path for op, path in events if op == "mkdir" and Path(path).parent == self.results}
        lost = set() if ("sync", str(self.results)) in events[named:] else {str(out)}
        for path in (out, *out.rglob("*")):
            was = temporary + str(path).removeprefix(str(out))
            if next((op for op, where in reversed(events[:named]) if where == was), None) != "sync":
                lost.add(str(path))
        shutil.rmtree(out)
        return lost

    def _forked(self, work: Callable[[], None]) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            except Exception as error:
                from embank.tables.errors import EmbankError

                code = REFUSED if isinstance(error, EmbankError) else 1
                if code == 1:
                    import traceback

                    traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def build(folder: Path) -> Path:
    """The library to preload."""
    library = folder / "stop_points.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def run(*, points: int, seed: int, jobs: list[str]) -> dict[str, dict[str, int]]:
    """Stops every job at some points; how often it ended how. In a process with the library preloaded."""
    for module in ("embank.pipelines.deltas.deltas", "embank.tables.serving.saving", "tests.deltas.bundles"):
        import_module(module)  # before the first fork
    from embank.tables.serving.deltas import rows, sources

    rows.BLOCK_NBYTES = sources.BLOCK_NBYTES = 2**13  # more points in small files
    ends: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="embank-stops-") as folder:
        stops = Stops(Path(folder))
        for job in jobs:
            count = stops.points_of(job)
            draw = random.Random(f"{seed}/{job}")
            found: dict[str, int] = {"points": count, **dict.fromkeys(("killed: nothing", "killed: done"), 0)}
            found |= dict.fromkeys(("full: nothing", "full: done"), 0)
            for how, name in ((KILL, "killed"), (FULL, "full")):
                for at in sorted(draw.sample(range(count), min(points, count))):
                    found[f"{name}: {stops.stop(job, at, how)}"] += 1
            lost = stops.unsynced(job)
            if lost:
                raise StopError(f"{job}: a loss of power may take back {lost}")
            ends[job] = found
    return ends


def start(*, points: int, seed: int, jobs: list[str]) -> dict[str, dict[str, int]]:
    """Builds the library, and runs the jobs in a process with it."""
    with tempfile.TemporaryDirectory(prefix="embank-stops-") as folder:
        library = build(Path(folder))
        arguments = ["--points", str(points), "--seed", str(seed), "--jobs", ",".join(jobs), "--inner"]
        environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "tests.faults.stop_points", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StopError(done.stderr)
    ends: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return ends


def main() -> None:
    """The command of the docstring above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = run if args.inner else start
    ends = work(points=args.points, seed=args.seed, jobs=args.jobs.split(","))
    if args.inner:
        print(json.dumps(ends))
        return
    for job, found in ends.items():
        print(job, ", ".join(f"{name} {count}" for name, count in found.items()))


if __name__ == "__main__":
    main()
