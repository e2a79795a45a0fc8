"""Deltas of large bundles: bytes, seconds and memory, by the share of rows that changed.

Run: python benchmarks/deltas.py [--rows 20000000] [--folder runs/deltas]
A bundle with one plain table of dim 16, and others in which a share of its rows has changed, at random places. Each
command runs alone, in a process of its own; memory is the peak of its anonymous memory beyond what it has after
importing. Copy: what `cp` of the bundle takes, with its SHA-256. Writes benchmarks/results/deltas.json; the files are
removed.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import records

DIM = 16
SHARES = (0.001, 0.01, 0.1)


def anonymous() -> int:
    """Bytes of this process's anonymous memory now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def measured(work: str, *paths: Path) -> dict[str, Any]:
    """Seconds and memory of a command in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: dict[str, Any] = pool.apply(_measured, (work, *paths))
    return result


def _measured(work: str, *paths: Path) -> dict[str, Any]:
    import threading

    from embank.pipelines import apply_delta, make_delta
    from embank.tables.storage.checksums import verify_checksums

    def copy(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        verify_checksums(target, kind="bundle", cure="")

    before, peak, ended = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, anonymous() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    began = time.perf_counter()
    report = {"delta": make_delta, "apply": apply_delta, "copy": copy}[work](*paths)
    seconds = time.perf_counter() - began
    ended.set()
    thread.join()
    sizes = {} if report is None else {"nbytes": report.nbytes, "bundle_nbytes": report.bundle_nbytes}
    return {"seconds": round(seconds, 2), "anonymous_nbytes": peak, **sizes}


def write_bundle(folder: Path, rows: int) -> None:
    """A bundle of random rows."""
    from embank.tables import TableCollection, TableSpec, save_bundle

    spec = TableSpec(name="item", num_embeddings=rows, embedding_dim=DIM, feature_names=["item"])
    save_bundle(folder, TableCollection([spec], seed=0))


def write_changed(old: Path, new: Path, share: float) -> int:
    """The same bundle with a share of its rows changed; how many."""
    from embank.tables.storage.checksums import CHECKSUMS, write_checksums

    shutil.copytree(old, new)
    file = new / "tables.safetensors"
    start = 8 + int.from_bytes(file.open("rb").read(8), "little")
    rows = np.memmap(file, np.float32, mode="r+", offset=start).reshape(-1, DIM)
    changed = np.flatnonzero(np.random.default_rng(0).random(len(rows)) < share)
    rows[changed] += 0.01
    rows.flush()
    (new / CHECKSUMS).unlink()
    write_checksums(new)
    return len(changed)


def run(folder: Path, rows: int) -> list[dict[str, Any]]:
    """A line for each share."""
    old, lines = folder / "old", []
    write_bundle(old, rows)
    copied = measured("copy", old, folder / "copy")
    shutil.rmtree(folder / "copy")
    for share in SHARES:
        new, delta, result = folder / "new", folder / "delta", folder / "result"
        num_changed = write_changed(old, new, share)
        made, applied = measured("delta", old, new, delta), measured("apply", old, delta, result)
        assert (result / "checksums.json").read_bytes() == (new / "checksums.json").read_bytes()
        lines.append({"share": share, "rows": num_changed, "made": made, "applied": applied, "copied": copied})
        for path in (new, delta, result):
            shutil.rmtree(path)
    return lines


def recorded(lines: list[dict[str, Any]]) -> list[records.Record]:
    """Bytes, seconds and memory of each share."""
    found = []
    for line in lines:
        case = {"rows changed": f"{line['share']:.1%}"}
        made, applied, copied = line["made"], line["applied"], line["copied"]
        memory = max(made["anonymous_nbytes"], applied["anonymous_nbytes"])
        part = records.peer("the bundle", made["nbytes"] / made["bundle_nbytes"])
        once: dict[str, Any] = {"case": case, "better": "lower", "statistic": "once"}
        exact: dict[str, Any] = {"case": case, "better": "lower", "statistic": "exact"}
        found.append(records.record("delta", "bytes", value=made["nbytes"], peers=[part], **exact))
        for name, one in (("made in", made), ("applied in", applied)):
            peers = [records.peer("a copy with its SHA-256", one["seconds"] / copied["seconds"])]
            found.append(records.record(name, "s", value=one["seconds"], peers=peers, **once))
        found.append(records.record("peak anonymous memory", "MiB", value=memory / 2**20, **once))
    return found


TITLE = "Deltas of large bundles"
ABOUT = (
    "One table of fp32 rows of which a share has changed at random places; making a delta, applying it, and what a "
    "copy of the bundle takes instead, each in a process of its own."
)


def main() -> None:
    """The command of the docstring above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/deltas"))
    records.argument(parser)
    args = parser.parse_args()
    measurement = records.begin(settings={"rows": args.rows, "dim": DIM})
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        lines = run(Path(folder), args.rows)
    measurement.records = recorded(lines)
    path = records.save("deltas", measurement, title=TITLE, about=ABOUT, out=args.out)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
