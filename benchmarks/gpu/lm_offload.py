"""Engram rows in host memory beside a decoder on a GPU: what prefill and decoding lose.

    # A CUDA machine with torch; three and a half minutes, 70 GB of host memory
    python benchmarks/gpu/lm_offload.py --gb 8 32 64
    # Any machine: that the script runs, and that all arms say the same; its times mean nothing
    python benchmarks/gpu/lm_offload.py --device cpu --small

Needs torch (Triton comes with its CUDA build) and pydantic: neither FBGEMM nor TorchRec nor this repository's packages
nor a network.

The decoder is dense, random and bf16: what it says does not matter for its speed. Two of its layers add gated rows of
hashed 2- and 3-grams, 8 heads each of dim 80, 2.56 KB a token and layer. Arms:

none      no memory
resident  tables on the GPU (skipped where they do not fit)
pinned    tables in pinned host memory, which a gather kernel of the GPU reads across the link, on a side stream from
          the beginning of the forward pass on
staged    the CPU gathers the rows of the distinct n-grams into pinned memory, and a side stream copies them
staged-all  the same with every n-gram's row, repeated ones too

Ids are those of the words of Python's standard library's source (real), or uniform ones. Prefill takes whole sequences
whose rows are all known; in decoding a step's tokens are known when the step before has chosen them, as with sampling,
so an arm that gathers on the host waits for them. Arms take turns, in an order that turns with the repeat; medians and
quartiles of --repeats. Before anything is timed all arms must bring the same rows to the bit, as the decoder gets them
in both parts, and give the same hidden states.

Writes benchmarks/results/gpu_lm_offload.json, a run for each device.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # torch for a CPU comes without
    triton = None

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import records

HEADS, ORDERS = 8, 2
MULTIPLIERS = (0x9E3779B97F4A7C15 >> 20 | 1, 0xC2B2AE3D27D4EB4F >> 20 | 1, 0x165667B19E3779F9 >> 20 | 1)
BIG = {"dim": 2048, "layers": 16, "heads": 16, "ffn": 8192, "vocab": 32_000, "row_dim": 80, "memory_layers": (1, 8)}
SAME = 0.02
"""Of hidden states: how far apart, as a share, sums in another order bring them in bf16. Rows must be equal."""
PART = 2**22
"""Rows that are drawn at once."""
SMALL = {"dim": 32, "layers": 3, "heads": 2, "ffn": 64, "vocab": 512, "row_dim": 8, "memory_layers": (1, 2)}


def real_tokens(count: int, vocab: int) -> Tensor:
    """Words and signs of the standard library's source as ids, the frequent ones first; int64 [count]."""
    root = Path(sysconfig.get_path("stdlib"))
    words: list[str] = []
    for path in sorted(root.rglob("*.py")):
        if len(words) >= count:
            break
        words += re.findall(r"\w+|[^\w\s]|\n\s*", path.read_text(encoding="utf-8", errors="ignore"))
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    ranked = {word: rank for rank, word in enumerate(sorted(counts, key=lambda w: -counts[w]))}
    ids = torch.tensor([min(ranked[word], vocab - 1) for word in words])
    return ids.repeat(-(-count // len(ids)))[:count]


def row_ids(tokens_BT: Tensor, before_B2: Tensor, rows: int) -> Tensor:
    """Rows of the 2- and 3-grams that end at each token, int64 [B, T, ORDERS * HEADS]: one block of rows per head."""
    padded = torch.cat([before_B2, tokens_BT], dim=1)
    length = tokens_BT.shape[1]
    mix = padded[:, 2:] * MULTIPLIERS[0]
    columns = []
    for back in (1, 2):
        mix = mix ^ (padded[:, 2 - back : 2 - back + length] * MULTIPLIERS[back])
        first = (back - 1) * HEADS
        columns += [(mix ^ (mix >> (head + 7))) % rows + (first + head) * rows for head in range(HEADS)]
    return torch.stack(columns, dim=-1)


class Block(nn.Module):
    """A pre-norm block with a cache."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.heads, dim = shape["heads"], shape["dim"]
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gate, self.up = nn.Linear(dim, shape["ffn"], bias=False), nn.Linear(dim, shape["ffn"], bias=False)
        self.down = nn.Linear(shape["ffn"], dim, bias=False)

    def forward(self, x: Tensor, cache: Tensor, start: int) -> Tensor:
        """x [B, T, D]; cache [2, B, H, S, E] is written from `start` on."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        cache[0, :, :, start : start + length], cache[1, :, :, start : start + length] = k, v
        keys, values = cache[0, :, :, : start + length], cache[1, :, :, : start + length]
        mixed = F.scaled_dot_product_attention(q, keys, values, is_causal=start == 0 and length > 1)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, dim))
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Decoder(nn.Module):
    """A random decoder with places for memory rows."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.shape, dim = shape, shape["dim"]
        self.embed = nn.Embedding(shape["vocab"], dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape["layers"]))
        width = ORDERS * HEADS * shape["row_dim"]
        self.project = nn.ModuleDict(
            {str(layer): nn.Linear(width, 2 * dim, bias=False) for layer in shape["memory_layers"]}
        )
        self.head = nn.Linear(dim, shape["vocab"], bias=False)

    def forward(self, tokens_BT: Tensor, cache: Tensor, start: int, rows: Callable[[int], Tensor] | None) -> Tensor:
        """Hidden states [B, T, D]; `rows(layer)` [B, T, E] is asked for when they are needed."""
        x = self.embed(tokens_BT)
        for number, block in enumerate(self.blocks):
            if rows is not None and str(number) in self.project:
                key, value = self.project[str(number)](rows(number)).chunk(2, dim=-1)
                score = (F.rms_norm(x, x.shape[-1:]) * F.rms_norm(key, key.shape[-1:])).sum(-1, keepdim=True)
                x = x + torch.sigmoid(score / x.shape[-1] ** 0.5) * value
            x = block(x, cache[number], start)
        return x


class Arm:
    """Where tables are, and how their rows come to the decoder.

    Args:
        name: of the arm.
        tables: [R, row_dim] by layer: on the device, in pinned memory, or none.
        device: of the decoder.
    """

    def __init__(self, name: str, tables: dict[int, Tensor], device: torch.device) -> None:
        self.name, self.tables, self.device = name, tables, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.staging: dict[int, Tensor] = {}
        self.bytes_moved = 0

    def begin(self, ids_BTC: Tensor) -> Callable[[int], Tensor] | None:
        """Starts bringing the rows of all layers; returns what gives a layer its own."""
        if self.name == "none":
            return None
        shape = ids_BTC.shape[:2]
        if self.name == "resident":
            return lambda layer: self.tables[layer][ids_BTC.flatten()].view(*shape, -1)
        if self.stream is None:
            ready = {layer: self._brought(layer, ids_BTC).view(*shape, -1) for layer in self.tables}
            return ready.__getitem__
        events: dict[int, Any] = {}
        brought: dict[int, Tensor] = {}
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        ids_BTC.record_stream(self.stream)  # which may still read them when the caller has let them go
        with torch.cuda.stream(self.stream):
            for layer in self.tables:
                brought[layer] = self._brought(layer, ids_BTC)
                events[layer] = self.stream.record_event()

        def rows(layer: int) -> Tensor:
            events[layer].wait(torch.cuda.current_stream(self.device))
            brought[layer].record_stream(torch.cuda.current_stream(self.device))
            return brought[layer].view(*shape, -1)

        return rows

    def _brought(self, layer: int, ids_BTC: Tensor) -> Tensor:
        """Rows [N, row_dim] on the device."""
        table, ids_N = self.tables[layer], ids_BTC.flatten()
        if self.name == "pinned":
            self.bytes_moved += ids_N.numel() * table.shape[1] * table.element_size()
            return gather(table, ids_N.to(self.device))
        ids_N = ids_N.cpu()
        places = None
        if self.name == "staged":
            ids_N, places = ids_N.unique(return_inverse=True)
        staging = self._staging(layer, len(ids_N), table)
        torch.index_select(table, 0, ids_N, out=staging)
        self.bytes_moved += staging.numel() * staging.element_size()
        rows = staging.to(self.device, non_blocking=True)
        return rows if places is None else rows[places.to(self.device, non_blocking=True)]

    def _staging(self, layer: int, count: int, table: Tensor) -> Tensor:
        """Memory to gather into: pinned, and used again once the copy before has ended."""
        held = self.staging.get(layer)
        if held is None or len(held) < count:
            held = torch.empty(count, table.shape[1], dtype=table.dtype, pin_memory=self.device.type == "cuda")
            self.staging[layer] = held
        elif self.stream is not None:
            self.stream.synchronize()
        return held[:count]


if triton is not None:

    @triton.jit
    def copy_rows(table, ids, out, width: tl.constexpr, padded: tl.constexpr):
        """Row `ids[i]` of the table to row i of the output, one program for each."""
        row, column = tl.program_id(0), tl.arange(0, padded)
        source = tl.load(ids + row) * width + column
        tl.store(out + row * width + column, tl.load(table + source, mask=column < width), mask=column < width)


def gather(table_RD: Tensor, ids_N: Tensor) -> Tensor:
    """Rows of a table in pinned host memory, read by the GPU itself; on a CPU plain indexing."""
    if ids_N.device.type != "cuda":
        return table_RD[ids_N]
    if triton is None:
        raise SystemExit("the arm 'pinned' needs Triton, which comes with torch for CUDA; leave it out of --arms")
    width = table_RD.shape[1]
    out = torch.empty(len(ids_N), width, dtype=table_RD.dtype, device=ids_N.device)
    copy_rows[(len(ids_N),)](table_RD, ids_N, out, width, triton.next_power_of_2(width))
    return out


class Workload:
    """Sequences that are prefilled and then go on.

    Args:
        decoder: the network.
        tokens_BS: all tokens, int64, on the device.
        prefill: how many are there at once.
        rows: of each head's block.
    """

    def __init__(self, decoder: Decoder, tokens_BS: Tensor, *, prefill: int, rows: int) -> None:
        self.decoder, self.tokens_BS, self.prefill_length, self.rows = decoder, tokens_BS, prefill, rows
        shape = decoder.shape
        size = (shape["layers"], 2, len(tokens_BS), shape["heads"], tokens_BS.shape[1])
        self.cache = torch.zeros(
            *size, shape["dim"] // shape["heads"], dtype=decoder.head.weight.dtype, device=tokens_BS.device
        )

    def both(self, arm: "Arm | Noted") -> Tensor:
        """Hidden states at the end of the first tokens, and at the end of all."""
        return torch.cat([self.prefill(arm)[:, -1:], self.decode(arm)], dim=1)

    @torch.no_grad()
    def prefill(self, arm: "Arm | Noted") -> Tensor:
        """The first tokens in one pass."""
        tokens_BT = self.tokens_BS[:, : self.prefill_length]
        rows = arm.begin(row_ids(tokens_BT, torch.zeros_like(tokens_BT[:, :2]), self.rows))
        return self.decoder(tokens_BT, self.cache, 0, rows)

    @torch.no_grad()
    def decode(self, arm: "Arm | Noted") -> Tensor:
        """The rest, one by one. The text's own token is taken, but not before the model has chosen one."""
        hidden = self.cache.new_zeros(len(self.tokens_BS), 1, self.decoder.shape["dim"])
        for place in range(self.prefill_length, self.tokens_BS.shape[1]):
            chosen_B1 = self.decoder.head(hidden).argmax(-1)
            tokens_B1 = self.tokens_BS[:, place : place + 1] + 0 * chosen_B1
            before_B2 = self.tokens_BS[:, place - 2 : place]
            rows = arm.begin(row_ids(tokens_B1, before_B2, self.rows))
            hidden = self.decoder(tokens_B1, self.cache, place, rows)
        return hidden


def synchronised(device: torch.device) -> float:
    """The clock, when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def make_tables(shape: dict[str, Any], rows: int, device: torch.device) -> dict[int, Tensor]:
    """Random tables in host memory by layer, pinned beside a GPU: [ORDERS * HEADS * rows, row_dim]."""
    on_gpu, dtype = device.type == "cuda", torch.bfloat16 if device.type == "cuda" else torch.float32
    host: dict[int, Tensor] = {}
    for layer in shape["memory_layers"]:
        table = torch.empty(ORDERS * HEADS * rows, shape["row_dim"], dtype=dtype, pin_memory=on_gpu)
        generator = torch.Generator(device).manual_seed(layer)
        # In parts, for random numbers of the whole would take as much memory again; by the GPU, which is faster at it.
        for part in table.split(PART):
            part.copy_(torch.empty(part.shape, dtype=dtype, device=device).normal_(generator=generator))
        host[layer] = table
    return host


def make_arms(names: Sequence[str], host: dict[int, Tensor], device: torch.device) -> list[Arm]:
    """The arms, whose tables hold the same rows."""
    arms = [Arm("none", {}, device)]
    needed = sum(table.numel() * table.element_size() for table in host.values())
    if device.type != "cuda" or needed + 8 * 2**30 < torch.cuda.mem_get_info(device)[0]:
        arms.append(Arm("resident", {layer: table.to(device) for layer, table in host.items()}, device))
    arms += [Arm(name, host, device) for name in ("pinned", "staged", "staged-all")]
    return [arm for arm in arms if arm.name in names]


class Noted:
    """An arm whose rows are kept as the decoder gets them.

    Args:
        arm: whose.
    """

    def __init__(self, arm: Arm) -> None:
        self.arm, self.name = arm, arm.name
        self.seen: list[Tensor] = []

    def begin(self, ids_BTC: Tensor) -> Callable[[int], Tensor] | None:
        """As the arm's."""
        rows = self.arm.begin(ids_BTC)
        if rows is None:
            return None

        def noted(layer: int) -> Tensor:
            given = rows(layer)
            self.seen.append(given.clone())
            return given

        return noted


def check(workload: Workload, arms: Sequence[Arm]) -> dict[str, float]:
    """How far hidden states of each arm are from those of the first one with a memory: a norm over a norm.

    Raises:
        SystemExit: an arm's rows are not those of the first to the bit, its hidden states are not those, or those
            without a memory are.
    """
    with_memory = [arm for arm in arms if arm.name != "none"]
    if not with_memory:
        return {}
    first = Noted(with_memory[0])
    expected = workload.both(first).float()
    apart = {}
    for arm in arms:
        noted = Noted(arm)
        said = workload.both(noted).float()
        apart[arm.name] = float((said - expected).norm() / expected.norm())
        if arm.name == "none":
            if apart["none"] < 10 * SAME:
                raise SystemExit("check failed: the memory changes nothing")
            continue
        if not all(torch.equal(mine, theirs) for mine, theirs in zip(noted.seen, first.seen, strict=True)):
            raise SystemExit(f"check failed: '{arm.name}' brings other rows than '{first.name}'")
        if not apart[arm.name] < SAME:
            raise SystemExit(f"check failed: '{arm.name}' says something else than '{first.name}'")
    return apart


def measure(workload: Workload, arms: Sequence[Arm], *, repeats: int, device: torch.device) -> dict[str, Any]:
    """Tokens/s of prefill and decoding: median and quartiles, and ratios to no memory and to resident tables."""
    seconds: dict[str, dict[str, list[float]]] = {arm.name: {"prefill": [], "decode": []} for arm in arms}
    moved: dict[str, dict[str, int]] = {arm.name: {} for arm in arms}
    for repeat in range(repeats + 1):  # the first one warms up
        for arm in (*arms[repeat % len(arms) :], *arms[: repeat % len(arms)]):
            for part in ("prefill", "decode"):
                arm.bytes_moved, begun = 0, synchronised(device)
                getattr(workload, part)(arm)
                took = synchronised(device) - begun
                if repeat:
                    seconds[arm.name][part].append(took)
                    moved[arm.name][part] = arm.bytes_moved
    batch, total = workload.tokens_BS.shape
    counts = {"prefill": batch * workload.prefill_length, "decode": batch * (total - workload.prefill_length)}
    result: dict[str, Any] = {}
    for name, parts in seconds.items():
        result[name] = {}
        for part, values in parts.items():
            speeds = sorted(counts[part] / value for value in values)
            entry: dict[str, Any] = {
                "tokens_per_s": statistics.median(speeds),
                "quartiles": statistics.quantiles(speeds, n=4, method="inclusive")[::2]
                if len(speeds) > 1
                else speeds * 2,
                "bytes_per_token": moved[name][part] / counts[part],
                "gb_per_s": moved[name][part] / statistics.median(values) / 1e9,
            }
            for base in ("none", "resident"):
                if base in seconds:
                    ratios = [b / a for a, b in zip(values, seconds[base][part], strict=True)]
                    entry[f"over {base}"] = statistics.median(ratios)
            result[name][part] = entry
    return result


def described(device: torch.device) -> dict[str, Any]:
    """The device and its link."""
    facts: dict[str, Any] = {"device": str(device)}
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        query = "pcie.link.gen.current,pcie.link.width.current,clocks.sm,clocks.mem"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        facts[query] = done.stdout.strip() or done.stderr.strip()
    return facts


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gb", nargs="+", type=float, help="sizes of all tables together (default: 8 32 64)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--arms", nargs="+", default=["none", "resident", "pinned", "staged", "staged-all"], help="which of them"
    )
    parser.add_argument("--small", action="store_true", help="sizes for a trial")
    records.argument(parser)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Checks, measures, writes."""
    args = arguments(words)
    args.gb = args.gb or ([0.0002] if args.small else [8.0, 32.0, 64.0])
    if args.small:
        args.batch, args.prefill, args.decode, args.repeats = 4, 12, 4, 2
    device, shape = torch.device(args.device), SMALL if args.small else BIG
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use; --device cpu --small tries the script")
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    decoder = Decoder(shape).to(device=device, dtype=dtype).eval()
    total = args.prefill + args.decode
    texts = {
        "real": real_tokens(args.batch * total, shape["vocab"]).view(args.batch, total),
        "uniform": torch.randint(shape["vocab"], (args.batch, total)),
    }
    facts = described(device)
    run = records.begin(device=facts["device"], settings=records.settings_of(args))
    report: dict[str, Any] = {"device": facts, "shape": shape, "sizes": []}
    row_bytes = shape["row_dim"] * torch.empty(0, dtype=dtype).element_size()
    sizes = [max(16, int(gb * 1e9 / (len(shape["memory_layers"]) * ORDERS * HEADS * row_bytes))) for gb in args.gb]
    begun = time.perf_counter()
    # Once: smaller tables are the beginning of the largest, for torch does not give pinned memory back.
    largest = make_tables(shape, max(sizes), device)
    report["tables_made_s"] = time.perf_counter() - begun
    print(f"tables made in {report['tables_made_s']:.0f} s", flush=True)

    def others(earlier: records.Run) -> records.Run | None:
        return None if earlier.machine.device == facts["device"] else earlier

    for gb, rows in zip(args.gb, sizes, strict=True):
        host = {layer: table[: ORDERS * HEADS * rows] for layer, table in largest.items()}
        arms = make_arms(args.arms, host, device)
        entry: dict[str, Any] = {"gb": gb, "rows_per_head": rows}
        for name, tokens_BS in texts.items():
            workload = Workload(decoder, tokens_BS.to(device), prefill=args.prefill, rows=rows)
            entry[f"{name}, apart"] = check(workload, arms)
            print(f"{gb} GB, {name} ids: arms are apart by {entry[f'{name}, apart']}", flush=True)
            entry[name] = measure(workload, arms, repeats=args.repeats, device=device)
        report["sizes"].append(entry)
        print(json.dumps(entry), flush=True)
        del arms
        if device.type == "cuda":
            torch.cuda.empty_cache()
        run.records, run.detail = recorded(report, rounds=args.repeats), report
        path = records.save("gpu_lm_offload", run, title=TITLE, about=ABOUT, out=args.out, keep=others)
        print(f"written: {path}", flush=True)


def recorded(report: dict[str, Any], *, rounds: int) -> list[records.Record]:
    """Tokens/s and moved bytes of each size, kind of ids and arm."""
    found = []
    for size in report["sizes"]:
        for ids in ("real", "uniform"):
            for arm, parts in size[ids].items():
                for part, entry in parts.items():
                    case = {"GB": size["gb"], "ids": ids, "arm": arm}
                    low, high = entry["quartiles"]
                    peers = [
                        records.peer(name, entry[f"over {base}"])
                        for name, base in (("no memory", "none"), ("resident tables", "resident"))
                        if f"over {base}" in entry and arm != base
                    ]
                    figures = {"value": entry["tokens_per_s"], "low": low, "high": high, "spread": "quartiles"}
                    fields = {"case": case, "better": "higher", "peers": peers, "rounds": rounds}
                    found.append(records.record(part, "tokens/s", **fields, **figures))
                    moved = {"value": entry["bytes_per_token"], "statistic": "exact"}
                    found.append(records.record(f"{part}, moved a token", "bytes", case=case, better="lower", **moved))
    return found


TITLE = "Engram rows in host memory beside a decoder on a GPU"
ABOUT = (
    "Prefill and decoding of a random bf16 decoder with gated rows of hashed n-grams in two layers: tables on the GPU, "
    "in pinned host memory, and gathered on the host; median and quartiles."
)


if __name__ == "__main__":
    main()
