"""How fast a run's packed tables answer: one id at a time, and 4,096 at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.pipelines.config.run import parse_config
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import table_codecs
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_model
from embank.tables import PackedTable, TableCollection, pack_table
from embank.tables.collections.held_rows import fp32_rows

BATCH = 4096
SINGLES = 64
REPEATS = 9


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Medians over `REPEATS` rounds on one thread.

    Args:
        us_per_id: microseconds for a lookup of one id in one table, the mean over the run's tables.
        rows_per_s: logical rows per second in lookups of 4,096 ids, over all tables.
    """

    us_per_id: float
    rows_per_s: float


def measure(run: Path, *, data: Path) -> Latency:
    """Looks ids of the test split up in every packed table of a run's best checkpoint.

    Args:
        run: a complete run.
        data: its prepared folder.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with best_model(RunFolder(run), schema=Schema.load(data), data=data) as (model, _), torch.inference_mode():
            assert isinstance(model.tables, TableCollection)
            rows, folder = fp32_rows(model.tables), RunFolder(run)
            codecs = table_codecs(parse_config(folder.read_config()), model.tables.specs)
            batch = next(iter(Loader(data, "test", batch_size=BATCH, shuffle=False, prefetch=0).epoch(0)))
            packs = [
                (
                    pack_table(method, rows, codec=codecs[method.spec.name]),
                    some_ids(batch.sparse, feature=method.spec.feature_names[0]),
                )
                for method in model.tables.built_methods()
            ]
            return measure_packs(packs)
    finally:
        torch.set_num_threads(num_threads)


def measure_packs(packs: list[tuple[PackedTable, Tensor]]) -> Latency:
    """Times some packed tables, each with 4,096 ids."""
    singles = [(pack, [ids_N[i : i + 1] for i in range(SINGLES)]) for pack, ids_N in packs]

    def one_by_one() -> None:
        for pack, ids in singles:
            for id_1 in ids:
                pack.lookup(id_1)

    def at_once() -> None:
        for pack, ids_N in packs:
            pack.lookup(ids_N)

    return Latency(
        us_per_id=1e6 * _seconds(one_by_one) / (SINGLES * len(packs)),
        rows_per_s=BATCH * len(packs) / _seconds(at_once),
    )


def _seconds(work: Callable[[], None]) -> float:
    """Median wall time, after one round that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return median(times[1:])


def some_ids(features: KeyedJaggedTensor, *, feature: str) -> Tensor:
    """4,096 ids of a feature, the batch's own, over and over if it has fewer."""
    ids: Tensor = features[feature].values()
    if not ids.numel():
        return torch.zeros(BATCH, dtype=torch.int64)
    return ids[torch.arange(BATCH) % ids.numel()]
