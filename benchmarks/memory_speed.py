"""What Engram tables cost a language model: whole training steps and generation, in memory and on a disk.

    python benchmarks/memory_speed.py                          # tables of 1 and 4 GiB, half an hour
    python benchmarks/memory_speed.py --gib 1 4 16
    python benchmarks/memory_speed.py --gib 0.01 --rounds 2 --steps 2 --tokens 20       # does it run?

A decoder (96 wide, 4 blocks, 2,048 tokens) alone and with Engram before block 1 (16 heads of 16), row-wise Adagrad, on
one thread. Tokens are those of the standard library's source (`real`), or drawn evenly (`uniform`): n-grams that have
never been seen, whose rows lie anywhere. Every contestant takes turns in every round, on the same batches; ratios are
taken within a round, in CPU time of the thread as well, for machines that others use too.

training    a whole step: rows of the next batch are told to the tier, forward, backward, AdamW, rows. `warm` means that
            the pages have been touched: the same batches have been trained on before.
cold        the same steps after the tables' files were dropped from memory, with prefetch and without.
generation  tokens one by one from a prompt, the likeliest each time, with a cache. Warm, as above.

Writes benchmarks/results/memory_speed.{json,md}.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "peers"))
sys.path.insert(0, str(Path(__file__).parent))
import machine
from memory_decoding import source_texts, trained_tokenizer

from embank.pipelines.lm.config import ModelConfig
from embank.pipelines.lm.decoder import Decoder
from embank.pipelines.lm.generation import generate_ids
from embank.pipelines.lm.memory_kinds import EngramMemory, NoMemory
from embank.pipelines.lm.model import LanguageModel
from embank.tables import RowTier
from embank.tables.memory import EngramConfig, EngramLayout, MemoryTables, TokenCompression

RESULTS = Path(__file__).with_name("results")
HEADS, HEAD_DIM, GIB = 16, 16, 2**30
MODEL = ModelConfig(dim=96, num_layers=4, num_heads=4, context=256)


class Contestant:
    """A model, how it trains and how it writes.

    Args:
        name: of it.
        memory: its rows; None for the dense model.
    """

    def __init__(self, name: str, layout: EngramLayout | None, tables: MemoryTables | None, *, vocab_size: int) -> None:
        self.name, self.tables = name, tables
        torch.manual_seed(0)
        kind = NoMemory() if layout is None else EngramMemory(layout, dim=MODEL.dim, conv=True)
        self.model = LanguageModel(Decoder(MODEL, vocab_size=vocab_size), kind, tables)
        self.optimizer = torch.optim.AdamW(self.model.network.parameters(), lr=1e-3, fused=True)

    def train(self, batches: Sequence[Tensor], *, prefetch: bool = True) -> None:
        """One step for each batch."""
        self.model.train()
        addressed = self.model.address(batches[0][:, :-1])
        for number, ids_BS in enumerate(batches):
            after = batches[number + 1] if number + 1 < len(batches) else None
            following = None if after is None else self.model.address(after[:, :-1])
            if self.tables is not None and following is not None and prefetch:
                self.tables.prefetch(following)
            logits = self.model.logits(self.model.hidden(ids_BS[:, :-1], addressed=addressed))
            loss = F.cross_entropy(logits.flatten(0, 1), ids_BS[:, 1:].flatten())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if self.tables is not None:
                self.tables.step()
            addressed = following

    def generate(self, prompt: list[int], *, most: int) -> int:
        """Tokens from a prompt; the number that came."""
        return len(generate_ids(self.model, prompt, most=most))

    @property
    def files(self) -> list[Any]:
        """Of the disk tier."""
        stores = [] if self.tables is None else self.tables.collections["engram"].row_stores()
        return [file for store in stores for file in store.space.files]


def contestants(args: argparse.Namespace, compression: TokenCompression, folder: Path) -> list[Contestant]:
    """Dense, and Engram of each size in memory and on the disk."""
    size = compression.num_tokens
    made = [Contestant("dense", None, None, vocab_size=size)]
    for gib in args.gib:
        rows = int(gib * GIB / (HEADS * HEAD_DIM * 4))
        shape = EngramConfig(layer_ids=[1], rows_per_order=rows, memory_dim=HEADS * HEAD_DIM, num_heads=HEADS // 2)
        for where in ("memory", "disk"):
            layout = EngramLayout(shape, compression, pad_token=0)
            tier = RowTier(name="disk", directory=folder / f"{gib}") if where == "disk" else RowTier()
            made.append(Contestant(f"{gib:g} GiB, {where}", layout, MemoryTables([layout], tier=tier), vocab_size=size))
    return made


def timed(act: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall and of this thread."""
    wall, own = time.perf_counter(), time.thread_time()
    act()
    return time.perf_counter() - wall, time.thread_time() - own


def turned(made: list[Contestant], by: int) -> Iterator[Contestant]:
    yield from made[by % len(made) :]
    yield from made[: by % len(made)]


def measure(args: argparse.Namespace, made: list[Contestant], ids: Tensor) -> list[dict[str, Any]]:
    """Seconds of each contestant in each round."""
    spent = []
    generator = torch.Generator().manual_seed(0)
    width = args.context + 1
    for number in range(args.rounds):
        first = number * args.steps * args.batch * width
        real = ids[first : first + args.steps * args.batch * width].view(args.steps, args.batch, width)
        drawn = torch.randint(0, int(ids.max()) + 1, real.shape, generator=generator)
        for kind, batches in (("real", list(real)), ("uniform", list(drawn))):
            for one in turned(made, number):
                one.train(batches)  # touches the pages
                wall, own = timed(partial(one.train, batches))
                spent.append(
                    entry("training", kind, one.name, number, wall, own, args.steps * args.batch * args.context)
                )
        for one in turned([c for c in made if c.files], number):
            for prefetch in (True, False) if number % 2 else (False, True):
                for file in one.files:
                    file.evict()
                wall, own = timed(partial(one.train, list(real), prefetch=prefetch))
                what = f"cold, {'prefetch' if prefetch else 'no prefetch'}"
                spent.append(entry(what, "real", one.name, number, wall, own, args.steps * args.batch * args.context))
        prompt = real[0, 0, :32].tolist()
        for one in turned(made, number):
            num = max(1, one.generate(prompt, most=args.tokens))
            wall, own = timed(partial(one.generate, prompt, most=args.tokens))
            spent.append(entry("generation", "real", one.name, number, wall, own, num))
    return spent


def entry(what: str, kind: str, name: str, number: int, wall: float, own: float, tokens: int) -> dict[str, Any]:
    return {"what": what, "ids": kind, "contestant": name, "round": number, "tokens": tokens, "wall": wall, "cpu": own}


def summary(spent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens a second, and speed over that of the dense model and of the rows in memory, within each round."""
    speed = {
        (e["what"], e["ids"], e["contestant"], e["round"], c): e["tokens"] / e[c]
        for e in spent
        for c in ("wall", "cpu")
    }
    result = []
    for what, ids, name in dict.fromkeys((e["what"], e["ids"], e["contestant"]) for e in spent):
        rounds = sorted({e["round"] for e in spent})
        line: dict[str, Any] = {"what": what, "ids": ids, "contestant": name}
        line["tokens_per_s"] = statistics.median(speed[what, ids, name, r, "wall"] for r in rounds)
        bases = {"dense": "dense", "memory": name.replace("disk", "memory")}
        for label, base in bases.items():
            against = "training" if what.startswith("cold") else what
            for clock in ("wall", "cpu"):
                ratios = [speed[what, ids, name, r, clock] / speed[against, ids, base, r, clock] for r in rounds]
                low, high = min(ratios), max(ratios)
                line[f"over_{label}_{clock}"] = {"median": statistics.median(ratios), "min": low, "max": high}
        result.append(line)
    return result


def markdown(report: dict[str, Any]) -> str:
    def cell(ratio: dict[str, float]) -> str:
        return f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"

    lines = [
        "# Speed of Engram tables",
        "",
        f"Written by `{report['command']}`: one thread, {report['batch']} x {report['context']} tokens a step, median "
        f"of {report['rounds']} rounds and their range. Speed as a multiple of the dense model's, and of the same "
        "tables in memory, warm; CPU time leaves out what other processes, or a disk, took.",
        "",
        "| what | tokens | contestant | tokens/s | / dense | / dense, CPU | / memory | / memory, CPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in report["summary"]:
        cells = [line["what"], line["ids"], line["contestant"], f"{line['tokens_per_s']:,.0f}"]
        cells += [cell(line[f"over_{base}_{clock}"]) for base in ("dense", "memory") for clock in ("wall", "cpu")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Build, measure, write; the tables' files go in any case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, nargs="+", default=[1, 4], help="bytes of rows of each table")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=128, help="tokens of a training sequence")
    parser.add_argument("--steps", type=int, default=10, help="per contestant, round and kind of tokens")
    parser.add_argument("--tokens", type=int, default=200, help="to generate per contestant and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the disk tier's files go; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    texts = source_texts()
    tokenizer = trained_tokenizer(texts)
    ids = torch.tensor(tokenizer.encode("\n".join(texts)).ids)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        made = contestants(args, TokenCompression.from_tokenizer(tokenizer), Path(folder))
        spent = measure(args, made, ids)
        del made
    report = {
        "command": " ".join(["python", "benchmarks/memory_speed.py", *sys.argv[1:]]),
        "machine": machine.describe(),
        **{key: getattr(args, key) for key in ("gib", "batch", "context", "steps", "tokens", "rounds")},
        "summary": summary(spent),
        "runs": spent,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "memory_speed.json").write_text(json.dumps(report, indent=1) + "\n")
    table = markdown(report)
    (args.out / "memory_speed.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
