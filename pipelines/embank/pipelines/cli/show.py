"""What the command line prints: tables, bars, messages. The only place that prints."""

import contextlib
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from embank.pipelines.cli.bars import Bars
from embank.pipelines.reporting import Lines, Reporter
from embank.tables.wording import human_bytes

if TYPE_CHECKING:  # these import torch, and `embank --help` should not wait for it
    from embank.pipelines.data.schema import Schema
    from embank.pipelines.data.sources.catalog import Dataset, Fetched
    from embank.pipelines.data.synth import SynthReport
    from embank.pipelines.lm.editing import Edited
    from embank.pipelines.runs.predict import Prediction
    from embank.pipelines.search.folder import SearchFolder
    from embank.pipelines.sweep.folder import SweepFolder
    from embank.pipelines.sweep.leaderboard import Row
    from embank.tables.sharding.plan import Load, Plan

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

NO_PLAIN = "no plain size, as a table has no vocabulary"


class _Warnings(logging.Handler):
    """Log messages on stderr, above a progress bar if one is running."""

    def emit(self, record: logging.LogRecord) -> None:
        who = "embank" if record.name.startswith("embank.") else record.name
        err.print(f"{who}: {record.levelname.lower()}: {record.getMessage()}", markup=False)


def quiet_libraries(*, debug: bool = False) -> None:
    """Leaves the libraries' log messages and deprecations out, which are for their developers; our own warnings are
    shown."""
    if not debug:
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        logging.basicConfig(level=logging.ERROR, handlers=[_Warnings()])
    else:
        logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("embank").setLevel(logging.DEBUG if debug else logging.WARNING)
    for name in ("torch", "torch.fx._symbolic_trace", "torchrec", "fbgemm_gpu"):
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.ERROR)


def error(message: str) -> None:
    """One message on stderr."""
    err.print(f"embank: {message}", markup=False)


def number(value: float | None, digits: int = 4) -> str:
    """A metric, or a dash where it is undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """A plain table; the first `left` columns are flush left, the others right."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        shown.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    # Wider than any table, which takes what it needs: a name or a number that is cut off helps nobody.
    Console(highlight=False, width=10_000).print(shown)


@contextlib.contextmanager
def training() -> Iterator[Reporter]:
    """The reporter of a training run: a bar, or lines where the output is no terminal."""
    reporter = Bars(err, keep=False) if err.is_terminal else Lines(line)
    try:
        yield reporter
    finally:
        reporter.close()


def result(run: Path, values: Mapping[str, Any]) -> None:
    """The final figures of a run."""
    ratio = NO_PLAIN if values["serving_ratio"] is None else f"{values['serving_ratio']:.4f} of the plain tables"
    rows = [
        ["test AUC", number(values["auc"], 5)],
        ["test log loss", number(values["logloss"], 5)],
        [
            "serving bytes",
            f"{values['serving_bytes']:,} ({human_bytes(values['serving_bytes'])}, {ratio})",
        ],
        ["training bytes", f"{values['training_bytes']:,} ({human_bytes(values['training_bytes'])})"],
        [
            "training speed",
            f"{values['samples_per_s']:,.0f} samples/s, {values['loader_share']:.1%} of it waiting for data",
        ],
        ["best step", f"{values['best_step']:,} of {values['num_steps']:,}"],
    ]
    if "bundle_bytes" in values:  # not in a run of an earlier version
        nbytes = values["bundle_bytes"]
        rows.insert(3, ["bundle on disk", f"{nbytes:,} bytes ({human_bytes(nbytes)}), network included"])
    if values.get("gauc") is not None:
        lost = values.get("gauc_rows_without_group")
        without = f" ({lost:,} rows without a group key are left out)" if lost else ""
        rows.insert(1, ["test group AUC", number(values["gauc"], 5) + without])
    table(["", ""], [[name, str(value)] for name, value in rows], left=2)
    out.print(f"run directory: {run}", markup=False)


def predicted(done: "Prediction") -> None:
    """What was predicted, how fast, and of which values the model knows nothing."""
    speed = done.rows_scored / max(done.seconds, 1e-9)
    share = done.seconds_scoring / max(done.seconds, 1e-9)
    out.print(
        f"{done.num_rows:,} rows scored by bundle {done.version} ({speed:,.0f} rows/s, {share:.0%} of it tables and "
        f"network), written to {done.out}",
        markup=False,
    )
    unknown = sorted(((n, name) for name, n in done.num_unknown.items() if n), reverse=True)
    if unknown:
        told = [f"{name} {n:,} ({n / max(1, done.num_rows):.1%} of rows)" for n, name in unknown[:_NAMED]]
        more = f" and {len(unknown) - _NAMED} more features" if len(unknown) > _NAMED else ""
        out.print(f"values that training did not have: {', '.join(told)}{more}", markup=False)


_NAMED = 8


def lm_result(run: Path, values: Mapping[str, Any]) -> None:
    """The final figures of a language model's run."""
    rows = [
        ["test bits per byte", number(values["bits_per_byte"])],
        ["validation bits per byte", number(values["valid_bits_per_byte"])],
        ["dense parameters", f"{values['dense_parameters']:,}"],
        ["memory", f"{values['memory']}, {values['row_parameters']:,} parameters in rows"],
        ["training speed", f"{speed:,.0f} tokens/s" if (speed := values["tokens_per_s"]) else "too short to tell"],
        ["best step", f"{values['best_step']:,} of {values['num_steps']:,}"],
    ]
    table(["", ""], rows, left=2)
    out.print(f"run directory: {run}", markup=False)


def lm_evaluation(values: Mapping[str, Any]) -> None:
    """How well a language model predicts some text."""
    out.print(
        f"{values['split']}, checkpoint of step {values['step']:,}: {number(values['bits_per_byte'])} bits per byte, "
        f"loss {number(values['loss'])} per token, {values['tokens']:,} tokens, {values['bytes']:,} bytes",
        markup=False,
    )


def lm_edit(prompt: str, done: "Edited", overlay: Path | None) -> None:
    """What an edit has done to a prompt."""
    out.print(f"before: {prompt}{done.before}", markup=False)
    out.print(f"after:  {prompt}{done.after}", markup=False)
    if done.probability_before is not None:
        out.print(
            f"probability of the answer: {done.probability_before:.4f} before, {done.probability_after:.4f} after",
            markup=False,
        )
    if overlay is not None:
        out.print(f"{done.num_rows} rows written to {overlay}; the run is as it was", markup=False)


def line(text: str) -> None:
    """News of a long piece of work, on stderr."""
    err.print(text, markup=False)


class Notes(Reporter):
    """A line per note, on stderr."""

    def note(self, message: str) -> None:
        line(message)


def plan(made: "Plan", loads: "Sequence[Load]") -> None:
    """A sharding plan: a line a physical table, a line a rank, and how even it is."""
    from embank.tables.sharding.plan import imbalance, rank_loads

    by_table = {load.table.name: load for load in loads}
    table(
        ["table", "kind", "ranks", "rows", "dim", "bytes", "lookups/sample"],
        [
            [
                name,
                placement.kind,
                ", ".join(map(str, placement.ranks)) or "all",
                f"{by_table[name].table.num_embeddings:,}",
                str(by_table[name].table.embedding_dim),
                f"{by_table[name].nbytes:,}",
                f"{by_table[name].lookups:.3f}",
            ]
            for name, placement in made.tables.items()
        ],
        left=3,
    )
    out.print()
    ranks = rank_loads(made, loads)
    table(
        ["rank", "bytes", "lookups/sample"],
        [[str(rank), f"{load.nbytes:,}", f"{load.lookups:.3f}"] for rank, load in enumerate(ranks)],
    )
    most_bytes, most_lookups = (imbalance([getattr(load, key) for load in ranks]) for key in ("nbytes", "lookups"))
    out.print(
        f"largest over mean: bytes {most_bytes:.2f}, lookups {most_lookups:.2f}. Bytes are rows and optimizer state; "
        "a replica "
        "looks up its own rank's samples"
    )


MOST_LINES = 60
"""Of a leaderboard in a terminal, if it has codecs: beyond it, their lines are left to the files."""


def leaderboard(rows: "Sequence[Row]", folder: "SweepFolder") -> None:
    """A sweep's lines, and where they are written. Of many under codecs, what these bring."""
    from embank.pipelines.sweep.leaderboard import table_columns
    from embank.pipelines.sweep.matrix import of_gains

    alone = [row for row in rows if row.is_alone]
    is_long = len(rows) > MOST_LINES and len(alone) < len(rows)
    columns = table_columns(alone if is_long else rows)
    names = [name for name in columns if name not in ("training bytes", "samples")]  # they are in the files
    left = sum(name in ("model", "method") for name in names)
    table(names, list(zip(*(columns[name] for name in names), strict=True)), left=left)
    if is_long:
        out.print(f"and {len(rows) - len(alone)} lines under codecs, of which:", markup=False)
        for model in dict.fromkeys(row.model for row in rows):
            head, *lines = of_gains([row for row in rows if row.model == model]) or [[]]
            if lines:
                table([f"{model}, {head[0]}", *head[1:]], lines, left=len(head))
    out.print(f"leaderboard: {folder.markdown}, {folder.csv}\nAUC against bytes: {folder.plot}", markup=False)
    if folder.codecs:
        out.print(f"methods with codecs against methods alone: {folder.composition}", markup=False)


@contextlib.contextmanager
def dashboard(port: int | None) -> Iterator[Callable[[str], None]]:
    """Optuna's dashboard on the storage that what is returned is called with, while the context lasts, and then until
    Ctrl-C; nothing without a port."""
    if port is None:
        yield lambda storage: None
        return
    from embank.pipelines.search.dashboard import dashboard as serve

    addresses = []
    with serve(port) as open_on:

        def opened(storage: str) -> None:
            addresses.append(open_on(storage))
            line(f"dashboard: {addresses[0]}")

        yield opened
        line(f"the dashboard stays at {addresses[0]} until Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def search(folder: "SearchFolder", *, budgets: "Sequence[float | None]") -> None:
    """Where a search's results are."""
    out.print(f"results: {folder.markdown}, {folder.csv}", markup=False)
    pictures = (folder.pareto, folder.history, folder.importance, folder.slices)
    out.print(f"pictures: {', '.join(str(path) for path in pictures)}", markup=False)
    for budget in budgets:
        path = folder.best(budget, is_only=len(budgets) == 1)
        if path.is_file():
            told = "" if budget is None else f" within budget {budget:g}"
            out.print(f"best configuration{told}: {path}, for `embank train {path} --out RUN`", markup=False)


def evaluation(values: Mapping[str, Any], *, recorded: Path | None) -> None:
    """Metrics of one evaluation, and where they are recorded, if they could be."""
    table(["metric", str(values["split"])], [[k, _text(v)] for k, v in values.items() if k != "split"], left=2)
    if recorded is not None:
        out.print(f"written to {recorded}", markup=False)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def inspection(values: Mapping[str, Any]) -> None:
    """Tables of a run or a bundle and what was verified. A bundle has no training bytes."""
    trained = any("training_bytes" in t for t in values["tables"])
    table(
        [
            "table",
            "method",
            *([] if trained else ["codec"]),
            "ids",
            "dim",
            "serving bytes",
            *(["training bytes"] if trained else []),
            "ratio",
            "held",
        ],
        [
            [
                t["name"],
                t["method"],
                *([] if trained else [", ".join(dict.fromkeys(t["codecs"])) or "-"]),
                f"{t['num_embeddings']:,}" if t["plain_bytes"] else "no vocabulary",
                str(t["dim"]),
                f"{t['serving_bytes']:,}",
                *([f"{t['training_bytes']:,}"] if trained else []),
                f"{t['serving_bytes'] / t['plain_bytes']:.4f}" if t["plain_bytes"] else "-",
                t["rows"],
            ]
            for t in values["tables"]
        ],
        left=2,
    )
    total = values["total"]
    ratio = f"{total['serving_bytes'] / total['plain_bytes']:.4f} of plain fp32" if total["plain_bytes"] else NO_PLAIN
    out.print(
        f"all tables: {total['serving_bytes']:,} serving bytes ({human_bytes(total['serving_bytes'])}), "
        f"{ratio}; network: {values['network_bytes']:,} bytes"
        + (f"; index of vocabularies: {values['vocabulary_bytes']:,} bytes" if values.get("vocabulary_bytes") else "")
    )
    for line in values["notes"]:
        out.print(line, markup=False)


@contextlib.contextmanager
def preparing() -> Iterator[Reporter]:
    """The reporter of preparing and generating data: a bar per phase; notes alone when stderr is not a terminal."""
    reporter: Reporter = Bars(err, keep=True) if err.is_terminal else Notes()
    try:
        yield reporter
    finally:
        reporter.close()


def prepared(folder: Path, schema: "Schema") -> None:
    """What `embank prepare` has written."""
    from embank.pipelines.data.describe import like_cells, like_in_words, positive_share, untrained_unknown
    from embank.pipelines.data.prepare.like import Likeness

    positive = [positive_share(split) if schema.label else "unknown" for split in schema.splits]
    table(
        ["split", "rows", "positive"],
        [[s.name, f"{s.num_rows:,}", share] for s, share in zip(schema.splits, positive, strict=True)],
    )
    likeness = Likeness.load(folder)
    if likeness is not None:
        table(*like_cells(likeness))
        out.print(like_in_words(likeness), markup=False)
        return
    known = [field.num_embeddings for field in schema.categorical if field.has_vocabulary]
    hashed = len(schema.categorical) - len(known)
    out.print(
        f"{len(known)} categorical features with {sum(known):,} ids, "
        f"{f'{hashed} without a vocabulary, ' if hashed else ''}"
        f"{len(schema.numeric)} numeric; see `embank data describe {folder}`",
        markup=False,
    )
    untrained = [field.name for field in schema.categorical if field.has_vocabulary and field.min_count == 1]
    if untrained:  # no value of theirs is too rare
        out.print(untrained_unknown(untrained), markup=False)


def datasets(known: "Sequence[Dataset]") -> None:
    """What `embank data get` can fetch."""
    for dataset in known:
        out.print(f"{dataset.name:<16} {dataset.summary}", markup=False)


def listing(kind: str, classes: Mapping[str, type]) -> None:
    """Names and the first sentence of each class's module, which says what it is and whose."""
    table([kind, ""], [[name, _summary(cls)] for name, cls in classes.items()], left=2)


def _summary(cls: type) -> str:
    module = sys.modules.get(cls.__module__)  # a class of a notebook may have none
    text = (module and module.__doc__) or cls.__doc__ or ""
    return " ".join(text.strip().partition("\n\n")[0].split())


def fetched(found: "Fetched") -> None:
    """Where the files are and what to do next."""
    state = "already there" if found.was_there else "fetched"
    out.print(f"{state}: {found.folder}\nnext: {found.prepare}", markup=False)


def synthesised(path: Path, report: "SynthReport") -> None:
    """What was written, and what the best model could reach on it."""
    out.print(f"{path}: {report.rows:,} rows, {report.bytes:,} bytes, click rate {report.click_rate:.4f}", markup=False)
    out.print(f"distinct ids: {sum(report.distinct.values()):,}; best possible AUC: {number(report.best_auc, 5)}")
    out.print(f"the full report: {path}.json", markup=False)
