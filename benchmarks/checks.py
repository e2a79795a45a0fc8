"""What checks of the input and book-keeping cost in a training step of DLRM.

    python benchmarks/checks.py
    python benchmarks/checks.py --steps 5 --rows 20000

DLRM (13 + 26 inputs, dim 16, bottom 512-256-64-16, top 512-256-1) of TorchRec over a `TableCollection`, row-wise
Adagrad, Adam for the rest, one id in each bag, batches of 4,096, one thread. Steps are timed as they are, then with a
clock around each function that only checks or keeps books; what the clock itself takes counts as theirs. Time is that
of the CPU, so that a busy machine counts for neither. Medians over steps.
Writes benchmarks/results/checks.json.
"""

import argparse
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import records
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.models.dlrm import DLRM

from embank.tables import RowOptimizer, TableCollection, TableSpec
from embank.tables.collections import bags, base, traced

NUM_DENSE, NUM_FIELDS, DIM = 13, 26, 16
CHECKED: list[tuple[str, Any, str]] = [
    ("ids are in their tables", bags, "check_ids"),
    ("ids are integers", bags, "int64_ids"),
    ("lengths are lengths", bags.Bags, "_bag_lengths"),
    ("lengths match the ids", bags.Bags, "_starts"),
    ("a trace or a batch", traced.OneStep, "step_of"),
    ("the rows' optimizer and rate", base, "settle_optimizer"),
    ("one process or several", base.Tables, "_would_drift"),
    ("losses and backward passes of methods", base.Tables, "_end_pass"),
]
"""What is timed: where a function is looked up, and its name."""


def batches(num_steps: int, *, batch_size: int, sizes: list[int]) -> list[tuple[Tensor, KeyedJaggedTensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(num_steps):
        ids = [torch.randint(0, size, (batch_size,), generator=generator) for size in sizes]
        kjt = KeyedJaggedTensor(
            keys=[f"C{field}" for field in range(len(sizes))],
            values=torch.cat(ids),
            lengths=torch.ones(batch_size * len(sizes), dtype=torch.int32),
        )
        dense_BI = torch.rand(batch_size, NUM_DENSE, generator=generator)
        made.append((dense_BI, kjt, torch.randint(0, 2, (batch_size,), generator=generator).float()))
    return made


def step_times(
    model: DLRM, tables: TableCollection, data: list[tuple[Tensor, KeyedJaggedTensor, Tensor]]
) -> Iterator[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for dense_BI, kjt, labels_B in data:
        start = time.process_time()
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(dense_BI, kjt).squeeze(1), labels_B)
        loss.backward()
        tables.step()
        optimizer.step()
        yield time.process_time() - start


def timed(function: Callable[..., Any], spent: dict[str, float], label: str) -> Callable[..., Any]:
    """A function that adds its time to what was spent."""

    @functools.wraps(function)
    def clocked(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = function(*args, **kwargs)
        spent[label] += time.process_time() - start
        return result

    return clocked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of all tables")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    records.argument(parser)
    args = parser.parse_args()
    run = records.begin(settings=records.settings_of(args))
    torch.set_num_threads(args.threads)
    sizes = [max(10, args.rows // NUM_FIELDS)] * NUM_FIELDS
    tables = TableCollection(
        [
            TableSpec(name=f"C{field}", num_embeddings=size, embedding_dim=DIM, feature_names=[f"C{field}"])
            for field, size in enumerate(sizes)
        ],
        optimizer=RowOptimizer(name="rowwise_adagrad", lr=0.02),
    )
    model = DLRM(tables, NUM_DENSE, dense_arch_layer_sizes=[512, 256, 64, DIM], over_arch_layer_sizes=[512, 256, 1])
    data = batches(args.steps, batch_size=args.batch_size, sizes=sizes)
    list(step_times(model, tables, data[:3]))
    plain = list(step_times(model, tables, data))
    spent: dict[str, list[float]] = defaultdict(list)
    in_step: dict[str, float] = dict.fromkeys((label for label, _, _ in CHECKED), 0.0)
    with ExitStack() as stack:
        for label, owner, name in CHECKED:
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), in_step, label)))
        for _ in step_times(model, tables, data):
            for label in in_step:
                spent[label].append(in_step[label])
                in_step[label] = 0.0
    step, checks = records.figures(plain, scale=1e3), {k: records.figures(v, scale=1e3) for k, v in spent.items()}
    result = {"step": step, "checks": checks}
    run.records = recorded(result)
    records.save("checks", run, title=TITLE, about=ABOUT, out=args.out)
    for record in run.records:
        print(record.metric, record.case, f"{record.value:.4g} {record.unit}")


def recorded(result: dict[str, dict[str, Any]]) -> list[records.Record]:
    """The step, its checks, and their share together."""
    step, checks = result["step"], result["checks"]
    total = sum(one["value"] for one in checks.values())
    share = records.record("all checks, share of a step", "", better="lower", value=total / step["value"])
    return [
        records.record("step, CPU time", "ms", better="lower", **step),
        *(
            records.record("check, CPU time", "ms", case={"check": label}, better="lower", **one)
            for label, one in checks.items()
        ),
        records.record("all checks, CPU time", "ms", better="lower", value=total),
        share,
    ]


TITLE = "Checks in a training step"
ABOUT = (
    "What checks of the input and book-keeping take of a step of DLRM over a TableCollection: 26 tables of dim 16, one "
    "id in each bag, CPU time."
)

if __name__ == "__main__":
    main()
