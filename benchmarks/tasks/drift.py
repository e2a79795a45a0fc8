"""Ids that come and go: three ways to give them rows, trained week by week on a year of flights.

Run: python benchmarks/tasks/drift.py FLIGHTS.csv [--seeds 0 1 2 3 4] [--weeks 52] [--fit-weeks 8] [--batch-size 256]
FLIGHTS.csv is what `embank data get flights` writes: every flight from New York in 2013 in time order. The label says
whether it arrived more than 15 minutes late; the departure delay, which would leak it, is not in the file. Every week
is first predicted and then trained on, once, in an order that the seed decides. New flight numbers and tail numbers
arrive all year.

The arms have the same network (DCN-V2), row optimizer (row-wise Adagrad), initial distribution, features and bytes of
tables:
  unified     one shared table, rows chosen by hashes of token ids; no vocabulary
  vocabulary  a table per feature with a row for each value of the first weeks; later values share row 0
  streaming   tables of the same sizes whose vocabularies go on learning (docs/streaming.md)
and beside them, with more bytes, `all ids`: a row for every value of the whole year, known in advance.

Rates, the number of lookups and the eviction policy are chosen for each arm on the first weeks alone: the first half of
them stands in for the first weeks, and the mean AUC of the second half decides. The weeks that are reported come after.
Writes benchmarks/results/drift_flights.json, docs/results/drift_flights.md and docs/results/drift_flights.png.

With --same-rate it reads that file and adds runs in which all arms have the same rate of rows: every one that some arm
had chosen. This tells the arms' difference from that of their rates. It was added after the reported weeks had been
seen, and chooses nothing.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import records
from drift_report import ARMS, FEATURES, FOLLOWED, REFERENCE, draw, markdown, recorded, summary
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from embank.ctr_models import Inputs, build_model, roc_auc
from embank.tables import (
    NUM_TOKEN_IDS,
    RowOptimizer,
    StreamingCollection,
    StreamingConfig,
    TableCollection,
    TableSpec,
    method_class,
    token_ids,
)

ROOT = Path(__file__).resolve().parents[2]
DIM = 16
INIT_STD = 0.03
TUNING_SEEDS = (100, 101)


@dataclass(frozen=True)
class Weeks:
    """The data. Legend: N flights, F features.

    Args:
        tokens_NF: int64 token ids.
        distance_N1: log1p, standardised by the first weeks.
        labels_N: 0 or 1.
        weeks_N: 1, 2, ...
    """

    tokens_NF: Tensor
    distance_N1: Tensor
    labels_N: Tensor
    weeks_N: Tensor

    def rows(self, week: int) -> Tensor:
        return (self.weeks_N == week).nonzero().squeeze(1)

    def values(self, feature: str, *, last_week: int) -> Tensor:
        """The distinct token ids of a feature up to a week, ascending."""
        return self.tokens_NF[self.weeks_N <= last_week, FEATURES.index(feature)].unique()


def load(path: Path, *, fit_weeks: int) -> Weeks:
    frame = pl.read_csv(path, infer_schema=False, null_values=[""])
    day = pl.col("scheduled").str.slice(0, 10).str.to_date()
    week_N = frame.select((day - day.min()).dt.total_days() // 7 + 1).to_series().to_torch()
    distance_N = frame["distance"].cast(pl.Float64).log1p().to_torch().float()
    early = distance_N[week_N <= fit_weeks]
    return Weeks(
        tokens_NF=torch.from_numpy(np.stack([token_ids(frame[name]) for name in FEATURES], axis=1)),
        distance_N1=((distance_N - early.mean()) / early.std())[:, None],
        labels_N=(frame["arr_delay"].cast(pl.Float64) > 15).to_torch().float(),
        weeks_N=week_N,
    )


class Arm(nn.Module):
    """Tables and network of one arm.

    Args:
        name: one of `ARMS` or `REFERENCE`.
        data: where vocabularies come from.
        known_weeks: weeks whose values have rows.
        options: table_lr, lr and what the arm takes besides.
        seed: of initial values.
    """

    def __init__(self, name: str, data: Weeks, *, known_weeks: int, options: dict, seed: int) -> None:
        super().__init__()
        self.values = {feature: data.values(feature, last_week=known_weeks) for feature in FEATURES}
        sizes = {feature: 1 + ids.numel() for feature, ids in self.values.items()}
        self.has_vocabulary = name in ("vocabulary", REFERENCE)
        optimizer = RowOptimizer(name="rowwise_adagrad", lr=options["table_lr"])
        specs = _unified(sizes, options["lookups"]) if name == "unified" else _plain(sizes)
        self.collection = TableCollection(specs, seed=seed, optimizer=optimizer)
        tables: nn.Module = self.collection
        self.streaming: StreamingCollection | None = None
        if name == "streaming":
            config = StreamingConfig(
                admit_after=options["admit_after"], policy=options["policy"], max_age=options.get("max_age")
            )
            tables = self.streaming = StreamingCollection(self.collection, dict.fromkeys(FEATURES, config))
        inputs = Inputs(names=FEATURES, dims=(DIM,) * len(FEATURES), num_dense=1)
        torch.manual_seed(seed)
        self.model = build_model("dcn_v2", tables=tables, inputs=inputs, hidden_units=(128, 64), num_cross_layers=2)
        dense = [*self.model.network.parameters(), *self.collection.dense_parameters()]
        self.optimizer = torch.optim.Adam(dense, lr=options["lr"])

    def forward(self, data: Weeks, rows_B: Tensor) -> Tensor:
        """Logits [B]."""
        tokens_BF = data.tokens_NF[rows_B]
        columns = [self._encoded(name, tokens_BF[:, place]) for place, name in enumerate(FEATURES)]
        sparse = KeyedJaggedTensor(
            keys=list(FEATURES), values=torch.cat(columns), lengths=torch.ones(tokens_BF.numel(), dtype=torch.int32)
        )
        logits_B: Tensor = self.model(data.distance_N1[rows_B], sparse)
        return logits_B

    def _encoded(self, feature: str, tokens_B: Tensor) -> Tensor:
        """Ids of a feature as the tables take them: token ids, or places in the vocabulary with 0 for unknown."""
        if not self.has_vocabulary:
            return tokens_B
        known = self.values[feature]
        places_B = torch.searchsorted(known, tokens_B).clamp_(max=known.numel() - 1)
        return torch.where(known[places_B] == tokens_B, places_B + 1, 0)

    def learn(self, data: Weeks, rows_B: Tensor) -> None:
        """One step."""
        self.train()
        loss = F.binary_cross_entropy_with_logits(self(data, rows_B), data.labels_N[rows_B])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.collection.update_rows()

    @torch.no_grad()
    def predict(self, data: Weeks, rows_B: Tensor) -> Tensor:
        """Logits [B] of a week, without learning anything."""
        self.eval()
        return torch.cat([self(data, part) for part in rows_B.split(4096)])

    def bytes(self) -> dict[str, int]:
        """Of the tables as they are served, and of what finds an id's row: 8 bytes an id for a fixed vocabulary."""
        ids = 8 * sum(values.numel() for values in self.values.values()) if self.has_vocabulary else 0
        if self.streaming is not None:
            ids = sum(self.streaming.vocabulary(name).nbytes() for name in FEATURES)
        return {"tables": self.collection.nbytes("serving"), "ids": ids}


def _plain(sizes: dict[str, int]) -> list[TableSpec]:
    return [
        TableSpec(name=name, num_embeddings=size, embedding_dim=DIM, feature_names=[name], init_std=INIT_STD)
        for name, size in sizes.items()
    ]


def _unified(sizes: dict[str, int], lookups: int) -> list[TableSpec]:
    """One table for all features, salts included within the bytes of the plain tables."""
    width = DIM // lookups
    rows = (4 * DIM * sum(sizes.values()) - 8 * lookups * len(sizes)) // (4 * width)
    config = method_class("unified").Config(rows=rows, lookups=lookups, placement="shared")
    return [
        TableSpec(
            name=name,
            num_embeddings=NUM_TOKEN_IDS,
            embedding_dim=DIM,
            feature_names=[name],
            method="unified",
            options=config,
            init_std=INIT_STD,
        )
        for name in sizes
    ]


def run(arm: str, data: Weeks, *, first_weeks: int, last_week: int, options: dict, seed: int, batch_size: int) -> dict:
    """Predicts and then trains on every week; AUC and log loss of the weeks after the first ones."""
    known_weeks = last_week if arm == REFERENCE else first_weeks
    model = Arm(arm, data, known_weeks=known_weeks, options=options, seed=seed)
    order = torch.Generator().manual_seed(seed)
    is_new_N = unseen(data, first_weeks=first_weeks).any(1)
    weeks = []
    for week in range(1, last_week + 1):
        rows = data.rows(week)
        if week > first_weeks:
            logits_B, labels_B = model.predict(data, rows), data.labels_N[rows]
            entry = {
                "week": week,
                "auc": auc(logits_B, labels_B),
                "logloss": float(F.binary_cross_entropy_with_logits(logits_B, labels_B)),
            }
            new_B = is_new_N[rows]
            if has_both(labels_B[new_B]):
                entry["auc_of_rows_with_unseen_ids"] = auc(logits_B[new_B], labels_B[new_B])
            weeks.append(entry)
        for part in rows[torch.randperm(rows.numel(), generator=order)].split(batch_size):
            model.learn(data, part)
    result = {"arm": arm, "seed": seed, "options": options, "weeks": weeks, "bytes": model.bytes()}
    if model.streaming is not None:
        result["totals"] = {name: vars(model.streaming.vocabulary(name).totals) for name in FOLLOWED}
    return result


def auc(logits_B: Tensor, labels_B: Tensor) -> float:
    return roc_auc(logits_B.numpy(), labels_B.numpy() > 0)


def has_both(labels_B: Tensor) -> bool:
    return bool(labels_B.numel()) and 0 < float(labels_B.mean()) < 1


def unseen(data: Weeks, *, first_weeks: int) -> Tensor:
    """Whether a flight's value of each feature did not occur in the first weeks, bool [N, F]."""
    columns = [
        ~torch.isin(data.tokens_NF[:, place], data.values(name, last_week=first_weeks))
        for place, name in enumerate(FEATURES)
    ]
    return torch.stack(columns, dim=1)


def candidates(arm: str, *, batches_per_week: int) -> Iterator[dict]:
    """What is tried for an arm in the first weeks."""
    rates = [{"table_lr": table_lr, "lr": lr} for table_lr, lr in itertools.product((0.01, 0.03, 0.1), (0.001, 0.003))]
    policies = [{"policy": "lru"}, {"policy": "lfu"}, {"policy": "age", "max_age": 4 * batches_per_week}]
    for rate in rates:
        if arm == "unified":
            yield from ({**rate, "lookups": lookups} for lookups in (1, 2))
        elif arm == "streaming":
            for policy, admit_after in itertools.product(policies, (1, 3)):
                yield {**rate, **policy, "admit_after": admit_after}
        else:
            yield rate


def tuned(arm: str, data: Weeks, args: argparse.Namespace) -> tuple[dict, list[dict]]:
    """An arm's best options by the mean AUC over the second half of the first weeks, and all that were tried."""
    per_week = data.rows(1).numel() // args.batch_size
    tried = []
    for options in itertools.islice(candidates(arm, batches_per_week=max(1, per_week)), args.max_tried):
        found = [
            run(
                arm,
                data,
                first_weeks=args.fit_weeks // 2,
                last_week=args.fit_weeks,
                options=options,
                seed=seed,
                batch_size=args.batch_size,
            )
            for seed in TUNING_SEEDS
        ]
        tried.append({"options": options, "auc": mean(week["auc"] for one in found for week in one["weeks"])})
    best = max(tried, key=lambda entry: entry["auc"])
    print(f"{arm}: {len(tried)} tried on weeks up to {args.fit_weeks}, chosen {best}", flush=True)
    return best["options"], tried


def with_same_rates(report: dict, data: Weeks, *, seeds: list[int], batch_size: int) -> dict:
    """The report with runs of every arm at every rate of rows that some arm had chosen."""
    rates = sorted({options["table_lr"] for options in report["options"].values()})
    runs = []
    for rate, arm, seed in itertools.product(rates, report["options"], seeds):
        options = {**report["options"][arm], "table_lr": rate}
        found = [one for one in report["runs"] if (one["arm"], one["seed"], one["options"]) == (arm, seed, options)]
        sizes = {"first_weeks": report["fit_weeks"], "last_week": report["weeks"], "batch_size": batch_size}
        one = found[0] if found else run(arm, data, options=options, seed=seed, **sizes)
        runs.append({"table_lr": rate, "arm": arm, "seed": seed, "auc": mean(week["auc"] for week in one["weeks"])})
        print(runs[-1], flush=True)
    command = " ".join(["python", "benchmarks/tasks/drift.py", "FLIGHTS.csv", *sys.argv[2:]])
    return {**report, "same_rate": {"command": command, "runs": runs}}


def shares(data: Weeks, *, first_weeks: int, last_week: int) -> list[dict]:
    """Week by week, the share of lookups of values that did not occur in the first weeks."""
    unseen_NF = unseen(data, first_weeks=first_weeks).float()
    return [
        {"week": week, **dict(zip(FEATURES, unseen_NF[data.rows(week)].mean(0).tolist(), strict=True))}
        for week in range(first_weeks + 1, last_week + 1)
    ]


def measured(data: Weeks, args: argparse.Namespace) -> dict:
    """Options of each arm, then all arms and seeds."""
    started = time.monotonic()
    options, tried, runs = {}, {}, []
    for arm in (*ARMS, REFERENCE):
        options[arm], tried[arm] = tuned(arm, data, args)
    sizes = {"first_weeks": args.fit_weeks, "last_week": args.weeks, "batch_size": args.batch_size}
    for seed, arm in itertools.product(args.seeds, (*ARMS, REFERENCE)):
        runs.append(run(arm, data, options=options[arm], seed=seed, **sizes))
        figures = {key: round(summary(runs[-1:], arm, key)[seed], 4) for key in ("auc", "logloss")}
        print(f"{time.monotonic() - started:5.0f} s  {arm}, seed {seed}: {figures} {runs[-1]['bytes']}", flush=True)
    return {
        "command": " ".join(["python", "benchmarks/tasks/drift.py", "FLIGHTS.csv", *sys.argv[2:]]),
        "flights": data.labels_N.numel(),
        "fit_weeks": args.fit_weeks,
        "weeks": args.weeks,
        "options": options,
        "tried": tried,
        "unseen": shares(data, first_weeks=args.fit_weeks, last_week=args.weeks),
        "runs": runs,
    }


def main() -> None:
    """Options, all arms and seeds, then the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flights", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--weeks", type=int, default=52, help="the last week (53 has one day)")
    parser.add_argument("--fit-weeks", type=int, default=8, help="weeks for the vocabulary and for choosing options")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--max-tried", type=int, default=None, help="try only the first so many options of each arm")
    records.argument(parser)
    parser.add_argument("--page", type=Path, default=ROOT / "docs/results", help="the folder of page and picture")
    parser.add_argument("--same-rate", action="store_true", help="add runs with one rate for all arms to the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = records.begin(settings={"seeds": args.seeds})
    data = load(args.flights, fit_weeks=args.fit_weeks)
    if args.same_rate:
        (earlier,) = records.load(args.out / "drift_flights.json").runs
        report = {**earlier.detail, "command": earlier.command}
        report = with_same_rates(report, data, seeds=args.seeds, batch_size=args.batch_size)
    else:
        report = measured(data, args)
    run.records, run.detail = recorded(report), report
    if args.same_rate:  # what it adds to is the run
        run.command, run.commit, run.date, run.machine = earlier.command, earlier.commit, earlier.date, earlier.machine
    records.save("drift_flights", run, title=TITLE, about=ABOUT, out=args.out)
    (args.page / "drift_flights.md").write_text(markdown(report))
    draw(report, args.page / "drift_flights.png")
    print(markdown(report))


TITLE = "Flights of 2013, week by week: ids that come and go"
ABOUT = (
    "Every week is predicted, then trained on once; means over the reported weeks, mean ± sd over seeds, differences "
    "seed by seed."
)


if __name__ == "__main__":
    main()
