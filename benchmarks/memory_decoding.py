"""What a language model's memory costs per decoded token: addressing and lookup, one sequence, one thread.

    python benchmarks/memory_decoding.py
    python benchmarks/memory_decoding.py --rows 2000 --tokens 300 --rounds 2

Tokens are those of Python's own source text under a BPE tokenizer trained on it. Contestants read the same rows of the
same tables, in turn, in an order that turns with the round: the read path (`MemorySession.next`, which hashes in
Python's integers and takes all rows in one gather), the path of training (`MemoryTables`, without gradients), and, as
the floor, one `index_select` of rows that are known already. Engram alone and Engram with STEM; in memory and on the
disk tier, whose pages have been touched. The hash alone comes in both forms as well. Times are medians over tokens in
microseconds of a wall clock, smallest and largest round beside the median one. Writes
benchmarks/results/memory_decoding.json.
"""

import argparse
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import floors
import records
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from embank.tables import RowTier
from embank.tables.memory import (
    EngramConfig,
    EngramLayout,
    MemorySession,
    MemoryTables,
    StemConfig,
    StemLayout,
    TokenCompression,
)

VOCABULARY = 2048
HEADS, STEM_LAYERS = 16, 2  # of Engram (two orders of 8 heads), of STEM


def source_texts(limit: int = 30) -> list[str]:
    """Files of Python's standard library, in order of their names."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:limit]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def trained_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def memories(args: argparse.Namespace, compression: TokenCompression, folder: Path) -> dict[str, MemoryTables]:
    """What is measured, by name."""
    engram = EngramConfig(layer_ids=[1], rows_per_order=args.rows, memory_dim=16 * args.dim, num_heads=8, max_ngram=3)
    stem = StemConfig(layer_ids=[1, 3], ffn_dim=args.ffn_dim)
    made = {}
    for tier in ("memory", "disk"):
        layouts = [EngramLayout(engram, compression, pad_token=0), StemLayout(stem, compression)]
        for name, chosen in (("Engram", layouts[:1]), ("Engram and STEM", layouts)):
            place = RowTier(name="disk", directory=folder / name) if tier == "disk" else RowTier()
            made[f"{name}, {tier}"] = MemoryTables(chosen, tier=place).eval()
    return made


def contestants(memory: MemoryTables) -> dict[str, Callable[[list[int]], Callable[[int], object]]]:
    """By name what starts on a text and gives the call for each position of it."""

    def read_path(text: list[int]) -> Callable[[int], object]:
        session = MemorySession(memory, 1)
        return lambda t: session.next([text[t]])

    def training_path(text: list[int]) -> Callable[[int], object]:
        marked = memory.compression(torch.tensor([text]))
        ids = torch.tensor([text])
        lookback = memory.lookback
        return lambda t: memory(ids[:, t : t + 1], before_BS=marked[:, max(0, t - lookback) : t])

    def floor(text: list[int]) -> Callable[[int], object]:
        flat = MemorySession(memory, 1).reader.flat["engram"]
        rows = [torch.randint(0, flat._matrix.shape[0], (16,)) for _ in text]
        return lambda t: flat._matrix.index_select(0, rows[t])

    return {"read path": read_path, "path of training": training_path, "one index_select": floor}


def hashes(memory: MemoryTables) -> dict[str, Callable[[list[int]], Callable[[int], object]]]:
    """The hash of one position alone."""
    hash = memory.layouts["engram"].hash  # type: ignore[attr-defined]

    def in_torch(text: list[int]) -> Callable[[int], object]:
        marked = memory.compression(torch.tensor([text]))
        return lambda t: hash(marked[:, t : t + 1], before_BS=marked[:, max(0, t - 2) : t])

    def in_python(text: list[int]) -> Callable[[int], object]:
        marked = memory.compression(torch.tensor(text)).tolist()
        return lambda t: hash.position(marked[max(0, t - 2) : t + 1])

    return {"hash in torch": in_torch, "hash in Python's integers": in_python}


def timed(call: Callable[[int], object], count: int) -> float:
    """Microseconds of a call, the median over positions."""
    spent = []
    for t in range(count):
        begin = time.perf_counter()
        call(t)
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent) * 1e6


def turned(names: list[str], by: int) -> Iterator[str]:
    yield from names[by % len(names) :]
    yield from names[: by % len(names)]


def measure(args: argparse.Namespace, made: dict[str, MemoryTables], texts: list[list[int]]) -> list[dict[str, Any]]:
    starts = {(where, name): start for where, memory in made.items() for name, start in contestants(memory).items()}
    first = next(iter(made.values()))
    starts |= {("", name): start for name, start in hashes(first).items()}
    for memory in made.values():
        for tables in memory.collections.values():
            for rows in tables.weights().values():
                rows.sum()  # touches every page
    rounds: dict[tuple[str, str], list[float]] = {key: [] for key in starts}
    with torch.no_grad():
        for number in range(args.rounds):
            for key in turned(list(starts), number):  # type: ignore[arg-type]
                rounds[key].append(timed(starts[key](texts[number]), args.tokens))
    return [{"memory": where, "what": name, **records.figures(spent)} for (where, name), spent in rounds.items()]


def recorded(
    summary: list[dict[str, Any]], *, args: Mapping[str, Any], rates: floors.Rates | None
) -> list[records.Record]:
    """Microseconds of each contestant; the floor is that of a token's rows, fetched at random places."""
    medians = {(one["memory"], one["what"]): one["value"] for one in summary}
    found = []
    for one in summary:
        figures = {key: value for key, value in one.items() if key not in ("memory", "what")}
        peers = [
            records.peer(other, one["value"] / medians[one["memory"], other])
            for other in ("one index_select", "path of training")
            if one["what"] == "read path"
        ]
        works = []
        if rates is not None and one["what"] == "read path":
            nbytes = 4 * HEADS * args["dim"] + (4 * STEM_LAYERS * args["ffn_dim"] if "STEM" in one["memory"] else 0)
            works.append(rates.work("gather", nbytes, "rows of one token, once each; no ids, no result"))
        case = {"memory": one["memory"] or None, "what": one["what"]}
        found.append(records.record("token", "us", case=case, better="lower", peers=peers, works=works, **figures))
    return found


TITLE = "Memory tables while decoding"
ABOUT = (
    "One token of one sequence on one thread: addressing and lookup of Engram's 16 heads, and of STEM's rows in two "
    "layers, on the read path of decoding and on the path of training; the hash alone in both forms."
)


def main() -> None:
    """Build, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2**18, help="per head")
    parser.add_argument("--dim", type=int, default=16, help="of a head's row")
    parser.add_argument("--ffn-dim", type=int, default=352, help="of a STEM row")
    parser.add_argument("--tokens", type=int, default=2000, help="per contestant and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the disk tier's files go; a temporary folder by default")
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    torch.set_num_threads(1)
    texts = source_texts()
    tokenizer = trained_tokenizer(texts)
    ids = tokenizer.encode("\n".join(texts)).ids
    pieces = [ids[n * args.tokens : (n + 1) * args.tokens] for n in range(args.rounds)]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        made = memories(args, TokenCompression.from_tokenizer(tokenizer), Path(folder))
        summary = measure(args, made, pieces)
        del made
    run.records = recorded(summary, args=vars(args), rates=floors.rates(1))
    records.save("memory_decoding", run, title=TITLE, about=ABOUT, out=args.out)
    for record in run.records:
        print(record.case, f"{record.value:.1f} us")


if __name__ == "__main__":
    main()
