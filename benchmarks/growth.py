"""How cost grows: a training step by rows, features, bag length, batch and ranks; `prepare` by distinct values.

    python benchmarks/growth.py                              # all axes, some minutes; 10**8 rows take 8 GB of memory
    python benchmarks/growth.py --axes batch bags --rounds 3
    python benchmarks/growth.py --most 10000                 # the small end of each axis: does everything run?

Every point is measured in a process of its own. Between two points cost grows as x ** e; that exponent is what is
judged: 0 does not grow, 1 is linear, more costs more for each row, feature or id the more there are. The step is
that of `embank train` (its `Stepper`, FNN with one layer of 16 so that tables dominate) on batches that lie ready;
"address" is what the loader's thread does for it, on one thread; "build" makes the tables.
`prepare` reads a CSV file of one id column, a value in each row that occurs nowhere else, and a label.
Writes benchmarks/results/growth.json and growth.png.
"""

import argparse
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import records

ROWS, FEATURES, BATCH, DIM = 1_000_000, 26, 4096, 16
AXES: dict[str, tuple[int, ...]] = {
    "rows": (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
    "features": (10, 30, 100, 250, 500),
    "bags": (1, 10, 100, 1000),
    "batch": (1, 16, 256, 4096, 65_536),
    "ranks": (1, 2, 4),
    "distinct": (100_000, 1_000_000, 10_000_000, 50_000_000),
}
LABELS = {
    "rows": "rows of all tables",
    "features": "features",
    "bags": "ids in a bag",
    "batch": "rows of a batch",
    "ranks": "ranks",
    "distinct": "distinct values",
}
TITLE = "How cost grows"
ABOUT = """A step of `embank train` (FNN with one layer of 16, 26 features of dim 16, a million rows, batch 4,096, but
for what the axis says; bags in batches of 512, features in batches of 1,024 with 10,000 rows each), addressing its
batch on one thread, building the tables; `prepare` of a log whose id column has a new value in every row, and its
memory. An exponent is that of the cost since the point before: 0 does not grow, 1 is linear. The last points of
`prepare` cost a little more than linear: values are sorted, and their table has outgrown the caches.
So have the tables that are built from a hundred features on."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and a batch.

    Args:
        rows: of all tables together.
        features: each with a table of its own, all alike.
        bag: ids of the first feature per row.
        batch: rows of a batch.
    """

    rows: int = ROWS
    features: int = FEATURES
    bag: int = 1
    batch: int = BATCH


def shape_of(axis: str, value: int) -> Shape:
    """Only what the axis says differs from the others; bags and many features come in smaller batches."""
    if axis == "rows":
        return Shape(rows=value)
    if axis == "features":
        return Shape(features=value, rows=10_000 * value, batch=1024)
    if axis == "bags":
        return Shape(bag=value, batch=512)
    return Shape(batch=value)


def step_costs(shape: Shape, *, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step, of addressing its batch and of building the tables."""
    import torch
    from torchrec import KeyedJaggedTensor

    from embank.ctr_models import CTRModel, Inputs, build_network
    from embank.pipelines import TrainConfig
    from embank.pipelines.data.loading.batch import Batch, Position
    from embank.pipelines.train.step import Stepper
    from embank.tables import RowOptimizer, TableCollection, TableSpec

    names = tuple(f"C{number}" for number in range(shape.features))
    size = shape.rows // shape.features
    specs = [TableSpec(name=n, num_embeddings=size, embedding_dim=DIM, feature_names=[n]) for n in names]
    TableCollection([TableSpec(name="t", num_embeddings=1, embedding_dim=DIM, feature_names=["f"])])  # loads libraries
    begun = time.perf_counter()
    tables = TableCollection(specs, optimizer=RowOptimizer(lr=0.02))
    built = time.perf_counter() - begun
    torch.manual_seed(0)
    inputs = Inputs(names=names, dims=(DIM,) * len(names), num_dense=1)
    model = CTRModel(tables, build_network("fnn", inputs=inputs, hidden_units=[16]))
    config = TrainConfig(precision="fp32", compile=False)
    steps = 1_000_000
    stepper = Stepper(model, config=config, batch_size=shape.batch, num_rows=steps * shape.batch, num_steps=steps)
    lengths = torch.ones(shape.features, shape.batch, dtype=torch.int32)
    lengths[0] = shape.bag
    keyed, ready = [], []
    for number in range(4):
        # ids as in logs: a few are frequent, most are rare
        ids = (size ** torch.rand(int(lengths.sum()), dtype=torch.float64) - 1).long().clamp_(max=size - 1)
        keyed.append(KeyedJaggedTensor(keys=list(names), values=ids, lengths=lengths.flatten()))
        labels = (torch.rand(shape.batch) < 0.25).float()
        position = Position(epoch=0, batch=number + 1, order="drawn")
        batch = Batch(
            dense=torch.rand(shape.batch, 1),
            sparse=tables.address_ahead(keyed[-1]),
            labels=labels,
            groups=None,
            position=position,
            num_global_rows=shape.batch,
        )
        ready.append(batch)
    steps_s = seconds_of(lambda number: stepper(ready[number % 4], step=number), rounds=rounds)
    torch.set_num_threads(1)
    address_s = seconds_of(lambda number: tables.address_ahead(keyed[number % 4]), rounds=rounds)
    return {"step": steps_s, "address": address_s, "build": [built]}


def seconds_of(work: Callable[[int], object], *, rounds: int) -> list[float]:
    """Of one call, by round; a round lasts a tenth of a second at least."""
    for number in range(4):
        work(number)
    begun = time.perf_counter()
    work(0)
    times = max(1, math.ceil(0.1 / (time.perf_counter() - begun)))
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for number in range(times):
            work(number)
        found.append((time.perf_counter() - begun) / times)
    return found


def rank_costs(count: int, *, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of DLRM that ranks share, one thread each, all on this machine."""
    import ranks

    settings = argparse.Namespace(rows=ROWS, batch_size=BATCH, steps=5, warmup=3)
    contestant = ranks.Contestant(settings, count, "embank")
    found = [contestant.run()["seconds"] / settings.steps for _ in range(rounds)]
    contestant.close()
    return {"step": found}


def prepare_costs(count: int, *, folder: Path) -> dict[str, list[float]]:
    """Seconds of preparing so many distinct values."""
    import numpy as np
    import polars as pl

    place = folder / f"distinct-{count}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    order = np.random.default_rng(0).permutation(count)
    table = pl.DataFrame({"label": (order % 4 == 0).astype(np.int8), "id": order})
    table.with_columns(("user-" + pl.col("id").cast(pl.String)).alias("id")).write_csv(place / "log.csv")
    del table, order
    (place / "columns.yaml").write_text("label: label\ncategorical: [id]\n")
    words = ["prepare", "--format", "csv", "--input", "log.csv", "--config", "columns.yaml", "--out", "prepared"]
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "embank", *words], cwd=place, check=True, capture_output=True)
    seconds = time.perf_counter() - begun
    shutil.rmtree(place)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"prepare": [seconds], "memory": [float(peak)]}


def point(axis: str, value: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """What one point costs, in this process."""
    if axis == "distinct":
        return prepare_costs(value, folder=args.work)
    if axis == "ranks":
        return rank_costs(value, rounds=args.rounds)
    return step_costs(shape_of(axis, value), rounds=args.rounds)


def measured(axis: str, value: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """The same in a process of its own."""
    words = ["--point", axis, str(value), "--rounds", str(args.rounds), "--work", str(args.work)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{axis} {value} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    print(f"{axis} {value:,}: " + ", ".join(f"{k} {statistics.median(v):.4g}" for k, v in found.items()), flush=True)
    return found


def exponents(values: Sequence[int], costs: Sequence[float]) -> list[float]:
    """Between one point and the next."""
    pairs = pairwise(zip(values, costs, strict=True))
    return [math.log(cost / before) / math.log(value / at) for (at, before), (value, cost) in pairs]


def picture(found: dict[str, dict[int, dict[str, list[float]]]], path: Path) -> None:
    """A panel for each axis, both scales logarithmic, with the exponent of each step."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = 3
    lines = math.ceil(len(found) / columns)
    figure, panels = plt.subplots(lines, columns, figsize=(13, 4 * lines), layout="constrained", squeeze=False)
    for panel in panels.flat[len(found) :]:
        panel.remove()
    for (axis, points), panel in zip(found.items(), panels.flat, strict=False):
        values = list(points)
        for name in next(iter(points.values())):
            if name == "memory":
                continue
            costs = [statistics.median(points[value][name]) for value in values]
            (line,) = panel.plot(values, costs, "o-", markersize=4, label=name)
            for (x0, x1), (y0, y1), exponent in zip(
                pairwise(values), pairwise(costs), exponents(values, costs), strict=True
            ):
                middle = (math.sqrt(x0 * x1), math.sqrt(y0 * y1))
                panel.annotate(f"{exponent:.2f}", middle, color=line.get_color(), fontsize=8, ha="right", va="bottom")
        panel.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel="seconds")
        panel.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
        panel.minorticks_off()
        low, high = panel.get_ylim()
        if high < 10 * low:  # a decade at least: what differs little looks so
            middle_y = math.sqrt(low * high)
            panel.set_ylim(middle_y / math.sqrt(10), middle_y * math.sqrt(10))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(True, color="#d0d7de", linewidth=0.6)
        panel.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """All axes, point by point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--most", type=int, help="no point beyond it")
    parser.add_argument("--work", type=Path, default=Path("runs/bench/growth"), help="folder for generated logs")
    parser.add_argument("--point", nargs=2, metavar=("AXIS", "VALUE"), help=argparse.SUPPRESS)
    records.argument(parser)
    args = parser.parse_args()
    if args.point:
        axis, value = args.point
        print(json.dumps(point(axis, int(value), args)))
        return
    run = records.begin(settings={"rounds": args.rounds})
    found: dict[str, dict[int, dict[str, list[float]]]] = {}
    for axis in args.axes:
        values = [value for value in AXES[axis] if args.most is None or value <= args.most]
        values = values if len(values) > 1 else list(AXES[axis][:2])
        found[axis] = {value: measured(axis, value, args) for value in values}
        for name in found[axis][values[0]]:
            costs = [statistics.median(found[axis][value][name]) for value in values]
            unit = "bytes" if name == "memory" else "s"
            for value in values:
                figures = records.figures(found[axis][value][name])
                case = {LABELS[axis]: value}
                run.records.append(records.record(name, unit, case=case, better="lower", **figures))
            for value, exponent in zip(values[1:], exponents(values, costs), strict=True):
                fields = {"case": {LABELS[axis]: value}, "better": "lower", "value": exponent}
                run.records.append(records.record(f"{name}, exponent", "", **fields))
    picture(found, args.out / "growth.png")
    records.save("growth", run, title=TITLE, about=ABOUT, picture="growth.png", out=args.out)


if __name__ == "__main__":
    main()
