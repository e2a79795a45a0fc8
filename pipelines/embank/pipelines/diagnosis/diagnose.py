"""Diagnosis of a trained run: overlap of readers, traffic of rows, trend of their norms; as figures, CSV files and
pictures."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from embank.pipelines.config.run import parse_config
from embank.pipelines.data.loading.integrity import verify_prepared
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.data.schema import Schema
from embank.pipelines.diagnosis.overlap import Overlap, overlaps
from embank.pipelines.diagnosis.plots import plot_overlaps, plot_traffic
from embank.pipelines.diagnosis.traffic import HOTTEST, NormTrend, Traffic, count_traffic, norm_trends
from embank.pipelines.runs.build import initial_network
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_model, data_of, refuse_other_vocabularies
from embank.tables import TableCollection
from embank.tables.storage.refusals import refused

BATCH_SIZE = 8192


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """How the best checkpoint of a run uses its tables.

    Args:
        step: of the checkpoint.
        model: name of its network.
        overlaps: of the readers in each first layer; empty where overlap is not defined, and `undefined` says why.
        initial_overlaps: the same with the network's initial weights (and what the tables have learned): training with
            collisions pushes readers apart.
        undefined: why there are no overlaps; None where there are.
        traffic: by physical table, over the training split: tables that several features share first, then by rows.
        norms: of the tables that have a trend.
        files: what was written.
    """

    step: int
    model: str
    overlaps: Sequence[Overlap]
    initial_overlaps: Sequence[Overlap]
    undefined: str | None
    traffic: Mapping[str, Traffic]
    norms: Sequence[NormTrend]
    files: Sequence[Path]


def diagnose_run(path: str | Path, *, data: str | Path | None = None, out: str | Path | None = None) -> Diagnosis:
    """Diagnoses the best checkpoint of a run and writes CSV files and pictures.

    Args:
        path: the run directory.
        data: the prepared folder, if it is no longer where the run's configuration says; its training split is read
            once.
        out: where `plots/` and `diagnosis/` are written; None takes the run directory.

    Raises:
        CheckpointError: no run, no checkpoint, or a damaged one.
        ConfigError: the data has other vocabularies.
        DataError: the prepared folder is gone.
        WorkError, ConfigError: the files can't be written, see `refused`.
    """
    path, out = Path(path), Path(out or path)
    run = RunFolder(path)
    config = parse_config(run.read_config())
    place = data_of(config, data)
    schema = Schema.load(place)
    refuse_other_vocabularies(schema, data=place, trained=run.fingerprint, path=path)
    verify_prepared(place, schema, splits=("train",))
    name = config.model["name"]
    with best_model(run, schema=schema, data=place) as (model, step):
        assert isinstance(model.tables, TableCollection)
        found = overlaps(model.network, model.tables)
        with torch.random.fork_rng(devices=[]):
            initial = overlaps(initial_network(config, schema), model.tables)
        loader = Loader(place, "train", batch_size=BATCH_SIZE, shuffle=False)
        counted = count_traffic(model.tables, loader.epoch(0))
        traffic = {t.table: t for t in sorted(counted.values(), key=lambda t: (t.readers < 2, -t.lookups.numel()))}
        norms = norm_trends(model.tables, traffic)
        undefined = None if found else _why_undefined(name, has_readers=bool(model.network.readers()))
    title = f"{name} on {place.name}, step {step:,}"
    try:
        files = _write(out, found, initial, traffic, norms, title=title)
    except OSError as error:
        raise refused(error)(f"the diagnosis can't be written to '{out}': {error.strerror}") from error
    return Diagnosis(
        step=step,
        model=name,
        overlaps=found,
        initial_overlaps=initial,
        undefined=undefined,
        traffic=traffic,
        norms=norms,
        files=files,
    )


def _why_undefined(model: str, *, has_readers: bool) -> str:
    if has_readers:
        return "overlap of readers is not defined: no two features have rows of one width"
    return (
        f"overlap of readers and the rank budget are not defined for model '{model}': no layer of it reads the "
        "embeddings by weights of "
        "each feature before they are multiplied with one another, so there are no blocks to compare"
    )


def _write(
    folder: Path,
    found: Sequence[Overlap],
    initial: Sequence[Overlap],
    traffic: Mapping[str, Traffic],
    norms: Sequence[NormTrend],
    *,
    title: str,
) -> list[Path]:
    records = folder / "diagnosis"
    records.mkdir(parents=True, exist_ok=True)
    files = []
    if found:
        files += [
            _write_csv(
                records / "reader_overlap.csv",
                ("layer", "table", "width", "feature", "other", "overlap", "initial"),
                [
                    (o.layer, o.table or "", o.width, first, second, float(o.matrix[i, j]), float(start.matrix[i, j]))
                    for o, start in zip(found, initial, strict=True)
                    for i, first in enumerate(o.features)
                    for j, second in enumerate(o.features)
                ],
            ),
            _write_csv(
                records / "reader_ranks.csv",
                ("layer", "table", "width", "feature", "lookup", "effective_rank"),
                [
                    (o.layer, o.table or "", o.width, name, lookup, rank)
                    for o in found
                    for name, ranks in o.ranks.items()
                    for lookup, rank in enumerate(ranks)
                ],
            ),
        ]
        plot_overlaps(found, initial, folder / "plots" / "reader_overlap.png", title=title)
        files.append(folder / "plots" / "reader_overlap.png")
    files += [
        _write_csv(
            records / "row_traffic.csv",
            (
                "table",
                "features",
                "rows",
                "lookups",
                *(f"hottest_{q:g}" for q in HOTTEST),
                "gini",
                "unused",
                "features_per_row",
            ),
            [
                (
                    t.table,
                    t.readers,
                    t.lookups.numel(),
                    t.total,
                    *map(t.hottest, HOTTEST),
                    t.gini,
                    t.unused,
                    t.features_per_row,
                )
                for t in traffic.values()
            ],
        ),
        _write_csv(
            records / "row_norms.csv",
            ("table", "decile", "lookups", "initial", "final"),
            [
                (n.table, decile + 1, *values)
                for n in norms
                for decile, values in enumerate(zip(n.lookups, n.initial, n.final, strict=True))
            ],
        ),
    ]
    if traffic:
        plot_traffic(traffic, norms, folder / "plots" / "row_traffic.png", title=title)
        files.append(folder / "plots" / "row_traffic.png")
    return files


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
