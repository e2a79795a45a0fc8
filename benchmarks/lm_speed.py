"""What a memory costs a language model: training against the dense decoder, rows on disk against rows in memory.

    python benchmarks/lm_speed.py --work runs/lm-speed --gib 1 4
    python benchmarks/lm_speed.py --work runs/lm-speed --gib 0.001 --rounds 2 --steps 2 --small      # does it run?

The decoder and the Engram of `benchmarks/lm.py` (16 heads of dim 16) on text of Python's standard library, with tables
of the sizes of --gib (rows alone; row-wise Adagrad adds a sixteenth). Contestants take turns in one process on one
thread, in an order that turns with the round, on the same batches; ratios are taken within a round, in CPU time and on
the wall clock.

train      whole steps: dense, Engram with rows in memory, on disk; on real ids and on uniform ones (random tokens).
generate   tokens one by one, the text given: Engram in memory, on disk.
cold       training steps whose files' pages are dropped before each round, with prefetch and without.
lookup     one token's rows of all 16 heads: addressing and gather, on the read path of decoding.

Everything but `cold` is warm: a pass over the same batches has touched their pages. Writes
benchmarks/results/lm_speed.json.
"""

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import lm as comparison
import records

HEADS, ROW_DIM = 16, 16
Times = list[tuple[float, float]]
"""Per round, seconds of CPU and of the wall clock."""


class Contestant:
    """A model that trains and generates on given batches.

    Args:
        config: its configuration.
        corpus: of the text.
        folder: of rows on disk.
    """

    def __init__(self, config: Any, corpus: Any, folder: Path) -> None:
        from embank.pipelines.lm.model import build_model
        from embank.pipelines.lm.step import LmStepper
        from embank.pipelines.lm.windows import Windows
        from embank.tables.sharding.processes import Processes

        self.model = build_model(config, corpus, rows_folder=folder)
        train = config.train
        windows = Windows(
            corpus.ids("train"), context=config.model.context, batch_size=train.batch_size, seed=train.seed
        )
        self.stepper = LmStepper(self.model, windows, config=train, num_steps=10**6, processes=Processes())

    def train(self, batches: Sequence[torch.Tensor], *, prefetch: bool = True) -> None:
        """A step on each batch; the rows of the next one are told to their tier before."""
        self.model.train()
        tables = self.model.tables
        made = [self.model.address(ids_BS[:, :-1]) for ids_BS in batches[:1]]
        for place, ids_BS in enumerate(batches):
            if place + 1 < len(batches):
                made.append(self.model.address(batches[place + 1][:, :-1]))
                if tables is not None and prefetch and made[-1] is not None:
                    tables.prefetch(made[-1])
            self.stepper(ids_BS, made[place], step=1000)

    @torch.no_grad()
    def generate(self, texts: Sequence[torch.Tensor]) -> None:
        """Reads texts token by token, as generation does, and scores every one."""
        from embank.pipelines.lm.model import TextState

        self.model.train(False)
        for ids_T in texts:
            state = TextState()
            for token in ids_T.tolist():
                self.model.logits(self.model.hidden(torch.tensor([[token]]), state=state)).argmax(-1)

    def files(self) -> list[Any]:
        """The mapped files of the rows."""
        stores = (
            []
            if self.model.tables is None
            else [store for collection in self.model.tables.collections.values() for store in collection.row_stores()]
        )
        return [file for store in stores for file in store.space.files]

    def evict(self) -> None:
        """Drops the files' pages."""
        for file in self.files():
            file.evict()


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of CPU and of the wall clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def take_turns(works: dict[str, Callable[[], None]], *, rounds: int, warm: bool) -> dict[str, Times]:
    """Times of each work in each round."""
    if warm:
        for work in works.values():
            work()
    times: dict[str, Times] = {name: [] for name in works}
    names = list(works)
    for number in range(rounds):
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            times[name].append(measured(works[name]))
    return times


def speed_ratio(times: dict[str, Times], name: str, base: str) -> dict[str, dict[str, float]]:
    """Speed of one work over that of another: median and range of the rounds' ratios."""
    found = {}
    for place, clock in enumerate(("cpu", "wall")):
        ratios = [b[place] / a[place] for a, b in zip(times[name], times[base], strict=True)]
        found[clock] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return found


def config_of(args: argparse.Namespace, kind: str, *, gib: float, tier: str, prefetch: bool = True) -> Any:
    """The configuration of a contestant."""
    from embank.pipelines.lm.config import parse_lm_config

    rows = max(64, int(gib * 2**30 / (HEADS * ROW_DIM * 4)))
    model = {**comparison.MODEL, **({"dim": 16, "hidden": 32, "context": 32} if args.small else {})}
    memory = {**comparison.ENGRAM, "rows": rows} if kind == "engram" else {}
    return parse_lm_config(
        {
            "corpus": {"vocab_size": args.vocab_size, "folder": str((args.work / "corpus").resolve())},
            "model": model,
            "memory": memory,
            "train": {"batch_size": 4 if args.small else 16, "warmup_steps": 0, "decay": "none", "row_lr": 0.05},
            "rows": {"tier": tier, "prefetch": prefetch},
        }
    )


def batches_of(args: argparse.Namespace, config: Any, corpus: Any, *, uniform: bool, count: int, seed: int) -> list:
    """Windows of real text, or of tokens drawn uniformly."""
    from embank.pipelines.lm.windows import Windows

    size, context = config.train.batch_size, config.model.context
    if uniform:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randint(1, corpus.vocab_size, (size, context + 1), generator=generator) for _ in range(count)]
    windows = Windows(corpus.ids("train"), context=context, batch_size=size, seed=seed)
    return [windows.batch(step) for step in range(count)]


def one_size(args: argparse.Namespace, gib: float) -> dict[str, Any]:
    """Everything at one size of the tables."""
    from embank.pipelines.lm.tokens import prepare_corpus

    plain = config_of(args, "none", gib=gib, tier="device")
    corpus = prepare_corpus(plain.corpus, args.work / "corpus")
    folder = args.work / f"rows-{gib:g}"
    shutil.rmtree(folder, ignore_errors=True)
    made = {
        "dense": Contestant(plain, corpus, folder / "none"),
        "memory": Contestant(config_of(args, "engram", gib=gib, tier="device"), corpus, folder / "none"),
        "disk": Contestant(config_of(args, "engram", gib=gib, tier="disk"), corpus, folder / "disk"),
    }
    result: dict[str, Any] = {"gib": gib, "row_parameters": made["memory"].model.num_row_parameters}
    for name, uniform in (("real ids", False), ("uniform ids", True)):
        batches = batches_of(args, plain, corpus, uniform=uniform, count=args.steps, seed=1)
        works = {key: (lambda c=contestant, b=batches: c.train(b)) for key, contestant in made.items()}
        times = take_turns(works, rounds=args.rounds, warm=True)
        result[f"train, {name}"] = {
            "Engram over dense": speed_ratio(times, "memory", "dense"),
            "disk over memory": speed_ratio(times, "disk", "memory"),
            "tokens_per_s": {
                key: batches[0][:, 1:].numel() * len(batches) / statistics.median(w for _, w in value)
                for key, value in times.items()
            },
        }
        texts = [batch[0, : plain.model.context] for batch in batches[: max(1, args.steps // 2)]]
        works = {key: (lambda c=made[key], t=texts: c.generate(t)) for key in ("memory", "disk", "dense")}
        times = take_turns(works, rounds=args.rounds, warm=True)
        result[f"generate, {name}"] = {
            "Engram over dense": speed_ratio(times, "memory", "dense"),
            "disk over memory": speed_ratio(times, "disk", "memory"),
            "tokens_per_s": {
                key: sum(map(len, texts)) / statistics.median(w for _, w in value) for key, value in times.items()
            },
        }
    result["cold"] = cold(args, made["disk"], plain, corpus)
    result["lookup_us"] = lookup(made["memory"], corpus, count=200 if args.small else 2000)
    del made
    shutil.rmtree(folder, ignore_errors=True)
    return result


def cold(args: argparse.Namespace, disk: Contestant, config: Any, corpus: Any) -> dict[str, Any]:
    """Training steps whose pages are dropped before each round, with prefetch and without."""
    ratios: dict[str, Times] = {"prefetch": [], "none": []}
    for number in range(args.rounds):
        batches = batches_of(args, config, corpus, uniform=False, count=args.steps, seed=100 + number)
        order = ("prefetch", "none") if number % 2 else ("none", "prefetch")
        for name in order:
            disk.evict()
            ratios[name].append(measured(lambda n=name, b=batches: disk.train(b, prefetch=n == "prefetch")))
    return speed_ratio(ratios, "prefetch", "none")


def lookup(contestant: Contestant, corpus: Any, *, count: int) -> dict[str, float]:
    """Microseconds that one token's rows take on the read path of decoding."""
    from embank.tables.memory import MemorySession

    tables = contestant.model.tables
    tokens = corpus.ids("valid", most=count + 3).tolist()
    found = []
    with torch.no_grad():
        for _ in range(3):
            session = MemorySession(tables, 1)
            begun = time.process_time()
            for token in tokens:
                session.next([token])
            found.append((time.process_time() - begun) / len(tokens) * 1e6)
    return {"best": min(found), "median": statistics.median(found)}


BARS = (
    ("training with Engram over dense", "train, real ids", "Engram over dense", 0.85),
    ("training on disk, warm, over memory", "train, real ids", "disk over memory", 0.90),
    ("generation on disk, warm, over memory", "generate, real ids", "disk over memory", 0.97),
)


def bars(sizes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked, and whether it holds, by size; in CPU time, which other work on the machine disturbs less."""
    found = [
        {
            "gib": size["gib"],
            "what": f"{what}, at least",
            "bound": bound,
            "value": size[part][ratio]["cpu"]["median"],
            "holds": size[part][ratio]["cpu"]["median"] >= bound,
        }
        for size in sizes
        for what, part, ratio, bound in BARS
    ]
    for size in sizes:
        value = size["lookup_us"]["median"]
        what = "microseconds for one token's rows, at most"
        found.append({"gib": size["gib"], "what": what, "bound": 50, "value": value, "holds": value <= 50})
    return found


def recorded(sizes: Sequence[dict[str, Any]], *, rounds: int) -> list[records.Record]:
    """Speeds by size and part; Engram against the dense decoder, rows on disk against rows in memory."""
    found = []
    for size in sizes:
        for part, values in size.items():
            if not part.startswith(("train", "generate")):
                continue
            for name, speed in values["tokens_per_s"].items():
                case = {"GiB": size["gib"], "part": part, "model": name}
                pair = {"memory": ("dense", "Engram over dense"), "disk": ("memory", "disk over memory")}.get(name)
                peers = [
                    records.peer(f"{pair[0]}, {clock}", values[pair[1]][clock])
                    for clock in ("cpu", "wall")
                    if pair is not None
                ]
                rate = {"value": speed, "rounds": rounds, "peers": peers}
                found.append(records.record("speed", "tokens/s", case=case, better="higher", **rate))
        cold = records.ranged(size["cold"]["wall"], rounds=rounds)
        case = {"GiB": size["gib"]}
        found.append(records.record("cold, speed with prefetch over none", "", case=case, better="higher", **cold))
        lookup = {"value": size["lookup_us"]["best"], "statistic": "best", "rounds": 3}
        found.append(records.record("one token's rows, CPU", "us", case=case, better="lower", **lookup))
    return found


TITLE = "The speed of a memory in a language model"
ABOUT = (
    "Training steps and generation of a small decoder: dense, with Engram's rows in memory, and with them on disk, in "
    "turn on one thread, ratios of speeds in CPU time and on the wall clock."
)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/lm-speed"), help="folder of the corpus and of rows")
    parser.add_argument("--gib", nargs="+", type=float, default=[1.0, 4.0], help="sizes of the tables; 16 if you like")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="batches of a round")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--small", action="store_true", help="a small decoder, for a trial")
    records.argument(parser)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    args = arguments(words)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    run = records.begin(settings={"gib": args.gib, "rounds": args.rounds, "steps": args.steps, "small": args.small})
    sizes = [one_size(args, gib) for gib in args.gib]
    run.records, run.detail = recorded(sizes, rounds=args.rounds), {"sizes": sizes, "bars": bars(sizes)}
    print(f"written: {records.save('lm_speed', run, title=TITLE, about=ABOUT, out=args.out)}")
    for bar in run.detail["bars"]:
        print(
            f"{bar['gib']:g} GiB, {bar['what']} {bar['bound']:g}: {bar['value']:.2f}{'' if bar['holds'] else ' MISSED'}"
        )


if __name__ == "__main__":
    main()
