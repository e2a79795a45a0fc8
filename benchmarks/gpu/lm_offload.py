"""Engram rows beyond a GPU's memory: what prefill and decoding lose when rows come from the host.

    # A CUDA machine with some 80 GB of free host memory; less than 9 minutes
    python benchmarks/gpu/lm_offload.py
    python benchmarks/gpu/lm_offload.py --gb 8 32
    # Any machine: that the script runs, and that all ways read the same rows; its times mean nothing
    python benchmarks/gpu/lm_offload.py --device cpu --small

Needs torch and this repository (PYTHONPATH=tables does). A decoder of random weights in bf16 with one Engram layer
before block 1: 16 heads of 80, rows in bf16. What its numbers are does not matter to its speed.

dense      no memory
resident   the table is in the GPU's memory, where it fits
side       rows are gathered on the host by a thread, into pinned memory, from the moment the tokens are known; a stream
           beside the model's copies them, and the layer waits for it
staged     the same gather and copy when the layer asks for them, on the model's own stream

prefill    --batch sequences of --context tokens at once
decode     one token for each of --sequences, after --context tokens of cache

Tokens are those of Python's source text (`real`), or drawn evenly (`uniform`: every row is another page). Hashing is in
all times but the dense model's. Every way takes its turn in every round, in an order that turns; medians and quartiles
over rounds. Writes benchmarks/gpu/results/lm_offload_DEVICE.json.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
sys.path.insert(0, str(Path(__file__).parents[1]))
import machine
from memory_decoding import source_texts, trained_tokenizer

from embank.tables.memory import Engram, NgramHash, TokenCompression

RESULTS = Path(__file__).with_name("results")
HEADS, HEAD_DIM, GB = 16, 80, 10**9
SIZES = {"dim": 2048, "blocks": 16, "context": 1024, "batch": 8, "sequences": 64, "steps": 16, "rounds": 5}
SMALL = {"dim": 64, "blocks": 2, "context": 32, "batch": 2, "sequences": 3, "steps": 2, "rounds": 2}
LAYER = 1


class Block(nn.Module):
    """Attention, over what is given or over a cache whose last place is its own, and a feed-forward layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = max(1, dim // 128)
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gate, self.up = (nn.Linear(dim, 4 * dim, bias=False) for _ in range(2))
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x_BTD: Tensor, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(self.norms[0](x_BTD)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[0][:, :, -1:], cache[1][:, :, -1:] = k, v
            k, v = cache
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        normed = self.norms[1](x_BTD)
        return x_BTD + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Way:
    """How rows reach the layer. The dense model asks for none.

    Args:
        device: that the model is on.
    """

    needs_rows = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def begin(self, rows_N: Tensor) -> None:
        """The tokens are known, and so the row ids [N] of all their heads."""

    def rows(self) -> Tensor:
        """Rows [N, HEAD_DIM] of `begin`, on the device."""
        raise NotImplementedError


class Resident(Way):
    """The table is on the device."""

    needs_rows = True

    def __init__(self, device: torch.device, table_RD: Tensor) -> None:
        super().__init__(device)
        self.table_RD = table_RD.to(device)

    def begin(self, rows_N: Tensor) -> None:
        self.ids_N = rows_N.to(self.device, non_blocking=True)

    def rows(self) -> Tensor:
        return self.table_RD.index_select(0, self.ids_N)


class Staged(Way):
    """Gathered on the host and copied when they are asked for."""

    needs_rows = True

    def __init__(self, device: torch.device, table_RD: Tensor) -> None:
        super().__init__(device)
        self.table_RD = table_RD
        self.buffers: dict[int, Tensor] = {}

    def begin(self, rows_N: Tensor) -> None:
        self.ids_N = rows_N

    def rows(self) -> Tensor:
        return self.gathered(self.ids_N).to(self.device, non_blocking=True)

    def gathered(self, rows_N: Tensor) -> Tensor:
        """Rows in pinned memory, the same for each number of rows: a call is done with it before the next begins."""
        if len(rows_N) not in self.buffers:
            shape, pinned = (len(rows_N), HEAD_DIM), self.device.type == "cuda"
            self.buffers[len(rows_N)] = torch.empty(shape, dtype=self.table_RD.dtype, pin_memory=pinned)
        return torch.index_select(self.table_RD, 0, rows_N, out=self.buffers[len(rows_N)])


class Side(Staged):
    """Gathered by a thread and copied on a stream of their own, from `begin` on."""

    def __init__(self, device: torch.device, table_RD: Tensor) -> None:
        super().__init__(device, table_RD)
        self.thread = ThreadPoolExecutor(1)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, rows_N: Tensor) -> None:
        self.coming: Future[Any] = self.thread.submit(self._bring, rows_N)

    def _bring(self, rows_N: Tensor) -> tuple[Tensor, Any]:
        held = self.gathered(rows_N)
        if self.stream is None:
            return held.clone(), None
        with torch.cuda.stream(self.stream):
            return held.to(self.device, non_blocking=True), self.stream.record_event()

    def rows(self) -> Tensor:
        rows_ND, event = self.coming.result()
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            rows_ND.record_stream(current)
        return rows_ND


class Model(nn.Module):
    """The decoder, and its Engram layer before block 1."""

    def __init__(self, dim: int, blocks: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(blocks))
        self.engram = Engram(dim, HEADS * HEAD_DIM, conv=False)

    def forward(self, ids_BT: Tensor, way: Way, caches: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        x_BTD = self.embed(ids_BT)
        for number, block in enumerate(self.blocks):
            if number == LAYER and way.needs_rows:
                x_BTD = x_BTD + self.engram(x_BTD, way.rows().view(*ids_BT.shape, -1))
            x_BTD = block(x_BTD, None if caches is None else caches[number])
        return F.linear(x_BTD[:, -1], self.embed.weight)


class Workload:
    """Texts, their hash, and the two things that are timed."""

    def __init__(self, args: argparse.Namespace, hash: NgramHash, compression: TokenCompression, model: Model) -> None:
        self.args, self.hash, self.compression, self.model = args, hash, compression, model
        self.offsets = torch.tensor(hash.offsets(LAYER))
        block = model.blocks[0]
        shape = (args.sequences, block.heads, args.context, args.dim // block.heads)
        cache = torch.randn(shape, device=args.device, dtype=torch.bfloat16)
        self.caches = [(cache, cache)] * args.blocks  # one for all: what is read counts, not what it says

    def row_ids(self, tokens_BT: Tensor, before_BS: Tensor | None) -> Tensor:
        hashed = self.hash(self.compression(tokens_BT), before_BS=before_BS)[LAYER]
        return (hashed + self.offsets).view(-1)

    @torch.inference_mode()
    def prefill(self, way: Way, tokens_BT: Tensor) -> Tensor:
        """All tokens at once."""
        if way.needs_rows:
            way.begin(self.row_ids(tokens_BT, None))
        return self.model(tokens_BT.to(self.args.device, non_blocking=True), way, None)

    @torch.inference_mode()
    def decode(self, way: Way, tokens_BT: Tensor) -> Tensor:
        """Token by token; the next is known when the last logits are there."""
        logits_BV = torch.empty(0)
        for t in range(self.hash.lookback, tokens_BT.shape[1]):
            token_B1 = tokens_BT[:, t : t + 1]
            if way.needs_rows:
                before_BS = self.compression(tokens_BT[:, t - self.hash.lookback : t])
                way.begin(self.row_ids(token_B1, before_BS))
            logits_BV = self.model(token_B1.to(self.args.device, non_blocking=True), way, self.caches)
            logits_BV.argmax(-1).cpu()
        return logits_BV


def filled_table(rows: int, *, pinned: bool) -> Tensor:
    """Rows of random bits that are finite, the same million over and over: drawing them all would take minutes."""
    table_RD = torch.empty(rows, HEAD_DIM, dtype=torch.bfloat16, pin_memory=pinned)
    some = torch.randn(min(rows, 2**20), HEAD_DIM, generator=torch.Generator().manual_seed(0)).bfloat16()
    for first in range(0, rows, len(some)):
        part = table_RD[first : first + len(some)]
        part.copy_(some[: len(part)])
    return table_RD


def ways_of(table_RD: Tensor, device: torch.device) -> dict[str, Way]:
    """The ways that this machine has room for."""
    made: dict[str, Way] = {"dense": Way(device), "side": Side(device, table_RD), "staged": Staged(device, table_RD)}
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 10**15
    if table_RD.nbytes < 0.8 * free:
        made["resident"] = Resident(device, table_RD)
    return made


def timed(args: argparse.Namespace, act: Any, way: Way, tokens_BT: Tensor) -> float:
    """Seconds until the device is done."""
    begun = time.perf_counter()
    act(way, tokens_BT)
    if args.device.type == "cuda":
        torch.cuda.synchronize(args.device)
    return time.perf_counter() - begun


def checked(workload: Workload, ways: dict[str, Way], tokens_BT: Tensor) -> None:
    """All ways must read the same rows; the first call of each also makes its buffers."""
    ids_N = workload.row_ids(tokens_BT, None)
    found = {}
    for name, way in ways.items():
        if way.needs_rows:
            way.begin(ids_N)
            found[name] = way.rows().cpu()
    first = next(iter(found.values()))
    if not all(torch.equal(rows, first) for rows in found.values()):
        raise SystemExit(f"the ways {list(found)} read different rows")


def turned(names: list[str], by: int) -> Iterator[str]:
    yield from names[by % len(names) :]
    yield from names[: by % len(names)]


def measure(args: argparse.Namespace, gb: float, ids: Tensor, compression: TokenCompression) -> list[dict[str, Any]]:
    """Tokens a second of every way, for one size of the table."""
    hash = NgramHash(
        layer_ids=[LAYER],
        max_ngram=3,
        num_heads=HEADS // 2,
        rows_per_order=[int(gb * GB / (HEADS * HEAD_DIM * 2))] * 2,
        compressed_vocab_size=compression.size,
        pad_id=0,
    )
    torch.manual_seed(0)
    model = Model(args.dim, args.blocks, compression.num_tokens).to(args.device, torch.bfloat16)
    workload = Workload(args, hash, compression, model)
    table_RD = filled_table(sum(hash.primes[LAYER]), pinned=args.device.type == "cuda")
    ways = ways_of(table_RD, args.device)
    shapes = {"prefill": (args.batch, args.context), "decode": (args.sequences, args.steps + hash.lookback)}
    drawn = torch.randint(0, compression.num_tokens, (ids.numel(),), generator=torch.Generator().manual_seed(1))
    lines = []
    for tokens, stream in (("real", ids), ("uniform", drawn)):
        for what, (rows, columns) in shapes.items():
            act = getattr(workload, what)
            count = rows * (columns if what == "prefill" else args.steps)
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(args.rounds + 1):
                first = number * rows * columns % (stream.numel() - rows * columns)
                batch = stream[first : first + rows * columns].view(rows, columns)
                if not number:
                    checked(workload, ways, batch)
                for name in turned(list(ways), number):
                    seconds = timed(args, act, ways[name], batch)
                    if number:  # the first round warms up
                        speeds[name].append(count / seconds)
            for name, found in speeds.items():
                low, median, high = statistics.quantiles(found, n=4, method="inclusive")
                over = median / statistics.median(speeds["dense"])
                line = {"gb": gb, "tokens": tokens, "what": what, "way": name, "tokens_per_s": median}
                lines.append(line | {"quartiles": [low, high], "over_dense": over})
                print(json.dumps(lines[-1]), flush=True)
    return lines


def main() -> None:
    """One size after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, nargs="+", default=[8, 32, 64], help="10**9 bytes of rows")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that take seconds on a CPU")
    parser.add_argument("--results", type=Path, default=RESULTS)
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=f"{size} by default")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("this machine has no GPU that torch can use; --device cpu --small shows that the script runs")
    for name, size in (SMALL if args.small else SIZES).items():
        setattr(args, name, getattr(args, name) or size)
    args.gb = [0.001] if args.small else args.gb
    args.device = torch.device(args.device)
    texts = source_texts()
    tokenizer = trained_tokenizer(texts)
    ids = torch.tensor(tokenizer.encode("\n".join(texts)).ids)
    compression = TokenCompression.from_tokenizer(tokenizer)
    lines = [line for gb in args.gb for line in measure(args, gb, ids, compression)]
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "cpu"
    report = {
        "command": " ".join(["python", "benchmarks/gpu/lm_offload.py", *sys.argv[1:]]),
        "machine": machine.describe() | {"device": device},
        **{name: getattr(args, name) for name in SIZES},
        "bytes_per_token": HEADS * HEAD_DIM * 2,
        "lines": lines,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"lm_offload_{re.sub('[^A-Za-z0-9]+', '_', device)}.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
