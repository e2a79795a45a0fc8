"""How many requests a server answers, and how fast, against scoring in a plain loop.

    python benchmarks/serving.py --work runs/serving
    python benchmarks/serving.py --work runs/serving --rows 2000 --seconds 0.5 --connections 1 4     # does it run?

Generated rows in Criteo's layout (13 numbers, 26 ids), a DLRM trained on them for an epoch. The clients are one process
beside the server: each connection sends its next request when it has its answer, and every answer is checked to have as
many scores as rows were sent. With as many workers as cores the client takes a share of the cores, so a server of its
own machine answers more. Writes benchmarks/results/serving.json.
"""

import argparse
import asyncio
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import records
import torch
import yaml

from embank.pipelines import load_model

ARROW = "application/vnd.apache.arrow.stream"
BATCH = 500


def embank(*words: object) -> None:
    """A command of embank, which ends the benchmark where it fails."""
    subprocess.run([sys.executable, "-m", "embank", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def trained(work: Path, *, rows: int) -> tuple[Path, list[dict[str, Any]]]:
    """A run, and raw rows for it."""
    raw, data, run = work / "rows.tsv", work / "data", work / "run"
    if not run.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        embank("data", "synth", "--rows", rows, "--scale", rows / 4e7, "--out", raw, "--overwrite")
        embank("prepare", "--format", "criteo", "--input", raw, "--out", data, "--overwrite")
        config = {
            "data": {"path": str(data), "batch_size": 1024},
            "model": {"name": "dlrm", "bottom": [512, 256, 16], "top": [512, 256]},
            "tables": {"dim": 16},
            "train": {"epochs": 1},
        }
        (work / "dlrm.yaml").write_text(yaml.safe_dump(config))
        embank("train", work / "dlrm.yaml", "--out", run)
    with raw.open(newline="") as file:
        lines = list(islice(csv.reader(file, delimiter="\t"), 2000))
    names = [f"I{n}" for n in range(1, 14)] + [f"C{n}" for n in range(1, 27)]
    return run, [row_of(dict(zip(names, line[1:], strict=True))) for line in lines]


def row_of(cells: dict[str, str]) -> dict[str, Any]:
    """A line's cells as JSON holds them."""
    return {name: None if not text else float(text) if name[0] == "I" else text for name, text in cells.items()}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }


def plain_loop(run: Path, batches: list[list[dict[str, Any]]], *, seconds: float) -> dict[str, float]:
    """One thread that scores one batch after the other."""
    model = load_model(run)
    times: list[float] = []
    model.score(batches[0])
    cpu = time.process_time()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        begun = time.perf_counter()
        model.score(batches[len(times) % len(batches)])
        times.append(time.perf_counter() - begun)
    cpu_ms = 1000 * (time.process_time() - cpu) / len(times)
    return {"requests_per_s": len(times) / sum(times), "cpu_ms": cpu_ms, **percentiles(times)}


class Client(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, requests: list[bytes], check: Callable[[bytes], None], times: list[float]) -> None:
        self.requests, self.check, self.times = requests, check, times
        self.number = 0
        self.buffer = b""
        self.begun = 0.0
        self.ended = asyncio.get_running_loop().create_future()
        self.stops = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.begun = time.perf_counter()
        self.transport.write(self.requests[self.number % len(self.requests)])
        self.number += 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, blank, body = self.buffer.partition(b"\r\n\r\n")
        if not blank or len(body) < int(re.search(rb"content-length: (\d+)", head)[1]):  # type: ignore[index]
            return
        self.times.append(time.perf_counter() - self.begun)
        if not head.startswith(b"HTTP/1.1 200"):
            self.ended.set_exception(RuntimeError(self.buffer[:500].decode()))
            return
        self.check(body)
        self.buffer = b""
        if self.stops:
            self.transport.close()
            self.ended.set_result(None)
        else:
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error or ConnectionError("the server has closed the connection"))


async def asked(
    server: psutil.Process,
    port: int,
    requests: list[bytes],
    check: Callable[[bytes], None],
    *,
    connections: int,
    seconds: float,
) -> dict[str, float]:
    """Closed-loop load over so many connections."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    clients = []
    for number in range(connections):
        mine = requests[number * 7 % len(requests) :] + requests[: number * 7 % len(requests)]
        _, client = await loop.create_connection(lambda mine=mine: Client(mine, check, times), "127.0.0.1", port)
        clients.append(client)
    await asyncio.sleep(0.3)  # warm
    times.clear()
    begun, cpu = time.perf_counter(), cpu_seconds(server)
    await asyncio.sleep(seconds)
    elapsed, num_answers, cpu = time.perf_counter() - begun, len(times), cpu_seconds(server) - cpu
    if not times:
        raise SystemExit(
            f"no request was answered in {seconds:g} s; give more --seconds, or run it on a quieter machine"
        )
    figures = percentiles(times)
    for client in clients:
        client.stops = True
    await asyncio.gather(*(client.ended for client in clients))
    return {"requests_per_s": num_answers / elapsed, "cpu_ms": 1000 * cpu / num_answers, **figures}


def cpu_seconds(server: psutil.Process) -> float:
    """Of all processes of the server: what other programs on the machine leave alone."""
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def request(port: int, kind: str, body: bytes) -> bytes:
    """A request as it goes over the wire."""
    head = f"POST /score HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def as_json(rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    return "application/json", json.dumps({"rows": rows}).encode()


def as_arrow(rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return ARROW, bytes(sink.getvalue())


def checks(size: int, *, arrow: bool) -> Callable[[bytes], None]:
    """Refuses an answer without a score for each row."""

    def check(body: bytes) -> None:
        found = pa.ipc.open_stream(body).read_all().num_rows if arrow else body.count(b",") - 1
        if found != size:
            raise RuntimeError(f"{found} scores for {size} rows")

    return check


def served(run: Path, options: argparse.Namespace, batches: dict[int, list[list[dict[str, Any]]]]) -> list[dict]:
    """Figures of a server that is started for them."""
    command = [sys.executable, "-m", "embank", "serve", str(run), "--port", "0", "--timeout", "120"]
    command += ["--workers", str(options.workers)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while (found := re.search(r"at http://127.0.0.1:(\d+) with", said)) is None:
        line = process.stderr.readline()
        if not line:
            raise RuntimeError(said)
        said += line
    port = int(found[1])
    figures = []
    try:
        for size, chosen in batches.items():
            for form in (as_json, as_arrow) if size > 1 else (as_json,):
                requests = [request(port, *form(rows)) for rows in chosen]
                check = checks(size, arrow=form is as_arrow)
                for connections in options.connections:
                    server = psutil.Process(process.pid)
                    one = asyncio.run(
                        asked(server, port, requests, check, connections=connections, seconds=options.seconds)
                    )
                    one |= {"rows": size, "form": form.__name__[3:], "connections": connections}
                    print(one, flush=True)
                    figures.append(one)
    finally:
        process.terminate()
        process.wait(60)
    return figures


def recorded(result: dict[str, Any]) -> list[records.Record]:
    """The plain loop, then the server, by size of a request, form and connections."""
    loops = {one["rows"]: one for one in result["plain_loop"]}
    found = []
    for one in [*loops.values(), *result["server"]]:
        case = {
            "rows of a request": one["rows"],
            "form": one.get("form", "plain loop, one thread"),
            "connections": one.get("connections"),
        }
        peers: dict[str, list[records.Peer]] = {}
        if "form" in one:
            loop = loops[one["rows"]]
            for key in ("requests_per_s", "cpu_ms"):
                peers[key] = [records.peer("the plain loop", one[key] / loop[key])]
        for name, key, unit, better in (
            ("answered", "requests_per_s", "requests/s", "higher"),
            ("CPU of all processes", "cpu_ms", "ms", "lower"),
            ("p50", "p50_ms", "ms", "lower"),
            ("p99", "p99_ms", "ms", "lower"),
        ):
            figures = {"value": one[key], "statistic": "once", "peers": peers.get(key, [])}
            found.append(records.record(name, unit, case=case, better=better, **figures))
    return found


TITLE = "A server against a plain loop"
ABOUT = (
    "Requests of one and of 500 rows of 13 + 26 columns to embank serve from a client on the same cores, each "
    "connection sending its next request when it has its answer; CPU is that of all the server's processes for a "
    "request."
)


def main() -> None:
    """Trains, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="folder of data and run; reused")
    parser.add_argument("--rows", type=int, default=100_000, help="of the training data")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each figure")
    records.argument(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measurement = records.begin(settings=records.settings_of(options))
    run, rows = trained(options.work, rows=options.rows)
    batches = {
        1: [[row] for row in rows],
        BATCH: [(rows * 2)[start : start + BATCH] for start in range(0, len(rows), 100)],
    }
    loops = [{"rows": size, **plain_loop(run, chosen, seconds=options.seconds)} for size, chosen in batches.items()]
    print(*loops, sep="\n", flush=True)
    measurement.records = recorded({"plain_loop": loops, "server": served(run, options, batches)})
    print(f"written: {records.save('serving', measurement, title=TITLE, about=ABOUT, out=options.out)}")


if __name__ == "__main__":
    main()
