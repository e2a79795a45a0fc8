"""Rows on a GPU with plain PyTorch: device memory, and host memory with and without prefetch, beside a model's
computation.

    # A CUDA machine; a minute and a half, about 12 GiB on the GPU, 20 GiB on the host
    python benchmarks/gpu/tiers.py
    # Any machine: that the script runs, and the checks; its times mean nothing
    python benchmarks/gpu/tiers.py --device cpu --small

Needs torch, pydantic and this repository (PYTHONPATH=tables does), neither FBGEMM nor TorchRec nor a network. Three
parts:

checks    staged rows (`embank.tables.rows.staged`) against plain rows on the CPU: values, gradients, and ten steps of
          every row optimizer, for pooled bags and for bags of one id; prefetch on and off equal to the bit. A failed
          check ends the run.
link      bytes/s of pinned copies to and from the device, and of copies within it
times     T = 256 x batch tokens, 16 heads of dim 80, ids of Zipf n-grams, row-wise Adagrad: lookup, backward and update
          of each tier, alone and beside a stack of matrix products that stands for a model; medians over rounds in
          which all take turns

In a round a contestant makes --steps steps. The model's rows come from the lookup and its gradients go back to it, so a
lookup that is late holds everything up. `hidden` is the share of a tier's time alone that disappears beside the model.
The floor of the host tier
is what must cross the link: the distinct rows of a step with their state, once each way, at the measured speed of the
slower way (the two run side by side), plus ids in.

Writes benchmarks/results/gpu_tiers.json, a run for each device.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embank.tables import ROW_OPTIMIZERS, PhysicalTable, RowInit, RowOptimizer, RowStore, RowTier, hash_rows
from embank.tables.rows import StoreSpec
from embank.tables.rows.shards import TableShard
from embank.tables.rows.staged import StagedRows
from embank.tables.rows.torch_rows import TorchRows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import records

HEADS, DIM, CONTEXT = 16, 80, 256
NUM_GRAMS, EXPONENTS = 2**24, (1.15, 1.05)  # of the two kinds of n-grams, as in benchmarks/sequence.py
NUM_BATCHES = 8
AHEAD = 2
TOLERANCE = 2e-5
Batch = tuple[Tensor, Tensor]


def shards(sizes: list[int], dims: list[int]) -> list[TableShard]:
    return [
        TableShard.whole(PhysicalTable(name=f"t{i}", num_embeddings=n, embedding_dim=d, init=RowInit(scale=0.1)))
        for i, (n, d) in enumerate(zip(sizes, dims, strict=True))
    ]


def check_batch(sizes: list[int], lookups: list[int], *, bags: int, max_bag: int, seed: int) -> Batch:
    """Bags of up to `max_bag` ids, half of them among ten, so that steps share rows; or bags of one id."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lookups), bags)
    lengths = torch.randint(0, max_bag + 1, shape, generator=generator) if max_bag > 1 else torch.ones(shape).long()
    parts = []
    for k, table in enumerate(lookups):
        ids = torch.randint(0, sizes[table], (int(lengths[k].sum()),), generator=generator)
        parts.append(torch.where(torch.rand(ids.shape, generator=generator) < 0.5, ids % 10, ids))
    return torch.cat(parts), torch.cat([torch.zeros(1).long(), lengths.flatten().cumsum(0)])


def run_steps(rows: RowStore, batches: list[Batch], *, ahead: int) -> list[Tensor]:
    """Outputs of training steps, each batch prefetched `ahead` steps before."""
    outputs = []
    for number, (indices, offsets) in enumerate(batches):
        if ahead:
            for upcoming in batches[:ahead] if number == 0 else batches[number + ahead - 1 : number + ahead]:
                rows.prefetch(*upcoming)
        out = rows(indices, offsets)
        (out + out.sin() / 2).sum().backward()  # no gradient near 0, whose sign Adam and Adagrad would blow up
        rows.update()
        outputs.append(out.detach().cpu())
    return outputs


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """Of two numbers, over 1 + that of the right one."""
    pairs = [(a.cpu(), b.cpu()) for a, b in zip(left, right, strict=True)]
    return max(float(((a - b).abs() / (1 + b.abs())).max()) for a, b in pairs)


def tensors_of(rows: RowStore) -> list[Tensor]:
    state = [kind for by_table in rows.optimizer_state().values() for kind in by_table.values()]
    return [t.clone() for t in (*rows.weights().values(), *state)]


def check(name: str, max_bag: int, device: str) -> dict:
    """Ten steps of one optimizer on every tier against plain rows on the CPU."""
    sizes, dims, lookups = [3_000, 500, 40], [80, 12, 6], [1, 0, 1, 2]
    batches = [check_batch(sizes, lookups, bags=64, max_bag=max_bag, seed=seed) for seed in range(10)]

    def built(tier: RowTier, kind: type[StagedRows] | type[TorchRows]) -> RowStore:
        optimizer = RowOptimizer(name=name, lr=0.05)
        return kind(StoreSpec(shards=shards(sizes, dims), lookups=lookups, optimizer=optimizer, tier=tier))

    plain = built(RowTier(), TorchRows)
    before = tensors_of(plain)[: len(sizes)]
    outputs = run_steps(plain, batches, ahead=0)
    expected = tensors_of(plain)
    found: dict = {"optimizer": name, "pooled": max_bag > 1}
    tiers = {
        "device": built(RowTier(name="device", device=device), TorchRows),
        "host": built(RowTier(name="host", device=device, prefetch=False), StagedRows),
        "host_prefetch": built(RowTier(name="host", device=device), StagedRows),
    }
    ended = {}
    for tier, rows in tiers.items():
        ahead = 3 if tier == "host_prefetch" else 0
        seen = run_steps(rows, batches, ahead=ahead)
        ended[tier] = [*seen, *tensors_of(rows)]
        found[tier] = largest_difference(ended[tier], [*outputs, *expected])
        if not found[tier] < TOLERANCE:
            raise SystemExit(f"{name}, bags of {max_bag}: rows on tier {tier} differ by {found[tier]} after ten steps")
    if not all(torch.equal(a, b) for a, b in zip(ended["host"], ended["host_prefetch"], strict=True)):
        raise SystemExit(f"{name}, bags of {max_bag}: prefetch on and off differ")
    if torch.equal(before[0], expected[0]):
        raise SystemExit(f"{name}: ten steps have changed nothing")
    return found | {"prefetch_equal_to_the_bit": True}


def check_gradients(device: str) -> float:
    """One step of SGD at rate 1 is the gradient; compared with autograd's on the CPU."""
    sizes, dims, lookups = [300, 50], [80, 12], [1, 0, 1]
    indices, offsets = check_batch(sizes, lookups, bags=32, max_bag=4, seed=1)
    sgd = RowOptimizer(name="sgd", lr=1.0)
    spec = StoreSpec(shards=shards(sizes, dims), lookups=lookups, optimizer=sgd)
    plain, staged = TorchRows(spec), StagedRows(replace(spec, tier=RowTier(name="host", device=device)))
    before = [weight.clone() for weight in staged.weights().values()]
    for rows in (plain, staged):
        rows(indices, offsets).sin().sum().backward()
    staged.update()
    gradients, taken = (
        [b.to(w.device) - w for b, w in zip(before, rows.weights().values(), strict=True)] for rows in (plain, staged)
    )
    difference = largest_difference(taken, gradients)
    if not difference < TOLERANCE:
        raise SystemExit(f"gradients of staged rows differ by {difference}")
    return difference


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: str, *, repeats: int) -> float:
    """Median seconds of some work on the device, after once that does not count."""
    times = []
    for repeat in range(repeats + 1):
        synchronize(device)
        begun = time.perf_counter()
        work()
        synchronize(device)
        if repeat:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def link(device: str, *, nbytes: int) -> dict[str, float]:
    """Bytes/s of copies, each byte counted once."""
    pinned = torch.ones(nbytes // 4, pin_memory=device != "cpu")
    there, other = torch.ones(nbytes // 4, device=device), torch.ones(nbytes // 4, device=device)
    copies = {
        "to_device": lambda: there.copy_(pinned, non_blocking=True),
        "from_device": lambda: pinned.copy_(there, non_blocking=True),
        "within_device": lambda: there.copy_(other),
    }
    return {name: nbytes / seconds_of(copy, device, repeats=9) for name, copy in copies.items()}


def zipf(num: int, exponent: float, generator: torch.Generator) -> Tensor:
    """Ranks 1 .. NUM_GRAMS with density rank ** -exponent, by the inverse of its distribution function."""
    uniform, power = torch.rand(num, generator=generator, dtype=torch.double), 1 - exponent
    return ((uniform * (NUM_GRAMS**power - 1) + 1) ** (1 / power)).long()


def gram_batches(tokens: int, rows: int) -> list[Batch]:
    """Each head hashes every token's n-gram: the first half of the heads of a frequent kind, the second of a rarer
    one."""
    generator = torch.Generator().manual_seed(tokens)
    made = []
    for _ in range(NUM_BATCHES):
        grams = [zipf(tokens, exponent, generator) for exponent in EXPONENTS]
        ids = [hash_rows(grams[2 * head // HEADS], num_rows=rows, salt=head) for head in range(HEADS)]
        made.append((torch.cat(ids), torch.arange(HEADS * tokens + 1)))
    return made


class Model(nn.Module):
    """Matrix products that stand for a model: rows [T, 16 * 80] in, a number out."""

    def __init__(self, hidden: int, layers: int, device: str) -> None:
        super().__init__()
        dims = [HEADS * DIM, *[hidden] * layers]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False, device=device) for a, b in itertools.pairwise(dims))

    def forward(self, rows_TW: Tensor) -> Tensor:
        with torch.autocast(rows_TW.device.type, dtype=torch.bfloat16):
            for layer in self.layers:
                rows_TW = torch.relu(layer(rows_TW))
            return rows_TW.float().square().mean()


class Contestant:
    """Rows on one tier, trained step after step."""

    def __init__(self, name: str, *, rows: int, device: str) -> None:
        tier = RowTier(name="device" if name == "device" else "host", device=device, prefetch=name == "host_prefetch")
        kind = TorchRows if name == "device" else StagedRows
        optimizer = RowOptimizer(name="rowwise_adagrad", lr=0.02)
        made = shards([rows] * HEADS, [DIM] * HEADS)
        self.rows = kind(StoreSpec(shards=made, lookups=range(HEADS), optimizer=optimizer, tier=tier))
        self.ahead = AHEAD if name == "host_prefetch" else 0

    def run(self, batches: list[Batch], steps: int, model: Model | None) -> None:
        """Steps over the batches in turn."""
        for step in range(steps):
            if self.ahead:
                for number in range(self.ahead) if step == 0 else [step + self.ahead - 1]:
                    if number < steps:
                        self.rows.prefetch(*batches[number % NUM_BATCHES])
            out = self.rows(*batches[step % NUM_BATCHES])
            (out.square().mean() if model is None else model(out)).backward()
            self.rows.update()
        self.rows.flush()  # what is still being written back belongs to these steps


def compute_alone(model: Model, tokens: int, steps: int, device: str) -> Callable[[], None]:
    out = torch.randn(tokens, HEADS * DIM, device=device, requires_grad=True)

    def work() -> None:
        for _ in range(steps):
            model(out).backward()

    return work


def times(
    args: argparse.Namespace, tokens: int, *, contestants: dict[str, Contestant], model: Model, speeds: dict[str, float]
) -> dict:
    """Seconds per step of every contestant, alone and beside the model, and ratios round by round."""
    device = args.device
    batches = gram_batches(tokens, args.rows)
    work: dict[str, Callable[[], None]] = {"compute": compute_alone(model, tokens, args.steps, device)}
    for name, contestant in contestants.items():
        work[f"{name}_alone"] = lambda c=contestant: c.run(batches, args.steps, None)
        work[f"{name}_with_compute"] = lambda c=contestant: c.run(batches, args.steps, model)
    rounds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(-1, args.repeats):
        names = list(work)
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            synchronize(device)
            begun = time.perf_counter()
            work[name]()
            synchronize(device)
            if repeat >= 0:
                rounds[name].append((time.perf_counter() - begun) / args.steps)
        print(f"{tokens:,} tokens, round {repeat}", flush=True)

    distinct = statistics.mean(
        sum(int(ids[h * tokens : (h + 1) * tokens].unique().numel()) for h in range(HEADS)) for ids, _ in batches
    )
    row_bytes, id_bytes = 4 * (DIM + 1) * distinct, 8 * (distinct + 2 * HEADS * tokens)
    floor = max((row_bytes + id_bytes) / speeds["to_device"], row_bytes / speeds["from_device"])

    def ratio(above: str, below: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(rounds[above], rounds[below], strict=True)])

    hidden = zip(rounds["host_prefetch_alone"], rounds["host_prefetch_with_compute"], rounds["compute"], strict=True)
    return {
        "tokens": tokens,
        "bytes_per_step": {"in": row_bytes + id_bytes, "out": row_bytes, "device_rows": 4 * DIM * HEADS * tokens},
        "distinct_share": distinct / (HEADS * tokens),
        "floor_s": floor,
        "seconds_per_step": {name: spread(values) for name, values in rounds.items()},
        "ratios": {
            "host_prefetch_over_device_alone": ratio("host_prefetch_alone", "device_alone"),
            "host_over_device_alone": ratio("host_alone", "device_alone"),
            "host_prefetch_over_device_with_compute": ratio("host_prefetch_with_compute", "device_with_compute"),
            "host_over_device_with_compute": ratio("host_with_compute", "device_with_compute"),
            "no_prefetch_over_prefetch_with_compute": ratio("host_with_compute", "host_prefetch_with_compute"),
            "host_prefetch_with_compute_over_compute": ratio("host_prefetch_with_compute", "compute"),
            "host_prefetch_alone_over_floor": spread([s / floor for s in rounds["host_prefetch_alone"]]),
            "hidden": spread([(alone + compute - both) / alone for alone, both, compute in hidden]),
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": len(values)}


def name_of(device: str) -> str:
    """The GPU's, or "cpu"."""
    return torch.cuda.get_device_name(device) if device != "cpu" else "cpu"


def recorded(result: dict[str, Any]) -> list[records.Record]:
    """The link, then milliseconds of a step of each contestant, alone and beside the model."""
    found = [
        records.record("copies", "GB/s", case={"link": way.replace("_", " ")}, better="higher", value=rate / 1e9)
        for way, rate in result["link_bytes_per_s"].items()
    ]
    for entry in result["times"]:
        moved, ratios = entry["bytes_per_step"], entry["ratios"]
        work = records.Work(
            counts="distinct rows and their state, in with the ids and out, side by side",
            amount=moved["in"],
            unit="bytes",
            rate=moved["in"] / entry["floor_s"],
            rate_of="pinned copies across the link, the slower way",
        )
        for name, seconds in entry["seconds_per_step"].items():
            tier, _, beside = name.partition("_with_")
            tier, is_alone = tier.removesuffix("_alone"), not beside
            suffix = "alone" if is_alone else "with_compute"
            ratio = ratios.get(f"{tier}_over_device_{suffix}")
            fields = {
                "case": {"tokens": entry["tokens"], "rows": tier.replace("_", ", "), "beside": beside or None},
                "better": "lower",
                "peers": [] if ratio is None else [records.peer("rows on the device", ratio)],
                "works": [work] if name == "host_prefetch_alone" else [],
            }
            figures = records.ranged(seconds, rounds=seconds["repeats"], scale=1e3)
            found.append(records.record("step", "ms", **fields, **figures))
        hidden = records.ranged(ratios["hidden"], rounds=ratios["hidden"]["repeats"])
        case = {"tokens": entry["tokens"]}
        found.append(records.record("share hidden beside the model", "", case=case, better="higher", **hidden))
    return found


TITLE = "Rows on a GPU with plain PyTorch"
ABOUT = (
    "Lookup, backward and update of memory tables, 16 heads of dim 80, row-wise Adagrad: rows in device memory, and in "
    "host memory with and without prefetch, alone and beside a stack of matrix products."
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a test of the script")
    parser.add_argument("--rows", type=int, default=1_000_000, help="per head; 5.2 GB in all per contestant")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2_048, 16_384], help="multiples of 256")
    parser.add_argument("--hidden", type=int, default=4_096)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    records.argument(parser)
    args = parser.parse_args()
    if args.small:
        args.rows, args.tokens, args.hidden, args.layers, args.steps, args.repeats = 2_000, [256], 32, 2, 3, 2
    for tokens in args.tokens:
        if tokens % CONTEXT:
            parser.error(f"--tokens {tokens} is no multiple of {CONTEXT}")
    return args


def main() -> None:
    """Check, measure and write."""
    args = arguments()
    begun = time.perf_counter()
    RowTier(device=args.device).refuse_missing_device()
    device = name_of(args.device)
    sizes = {"heads": HEADS, "dim": DIM, "context": CONTEXT, "ahead": AHEAD, **records.settings_of(args)}
    run = records.begin(device=device, settings=sizes)
    result: dict[str, Any] = {}
    result["checks"] = [check(name, max_bag, args.device) for name in ROW_OPTIMIZERS for max_bag in (1, 4)]
    result["gradients_differ_by"] = check_gradients(args.device)
    print(f"checks passed after {time.perf_counter() - begun:.0f} s", flush=True)
    result["link_bytes_per_s"] = link(args.device, nbytes=2**20 if args.small else 2**28)
    contestants = {n: Contestant(n, rows=args.rows, device=args.device) for n in ("device", "host_prefetch", "host")}
    model, speeds = Model(args.hidden, args.layers, args.device), result["link_bytes_per_s"]
    print(f"built after {time.perf_counter() - begun:.0f} s", flush=True)
    result["times"] = [
        times(args, tokens, contestants=contestants, model=model, speeds=speeds) for tokens in args.tokens
    ]
    result["wall_s"] = time.perf_counter() - begun
    if args.device != "cpu":
        properties = torch.cuda.get_device_properties(args.device)
        result["cuda"], result["device_memory_bytes"] = torch.version.cuda, properties.total_memory
    run.records, run.detail = recorded(result), result

    def others(earlier: records.Run) -> records.Run | None:
        return None if earlier.machine.device == device else earlier

    print(f"written: {records.save('gpu_tiers', run, title=TITLE, about=ABOUT, out=args.out, keep=others)}")


if __name__ == "__main__":
    main()
