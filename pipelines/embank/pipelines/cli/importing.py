"""`embank import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embank.pipelines.cli import show
from embank.tables.wording import human_bytes

if TYPE_CHECKING:
    from embank.pipelines.config.run import Config
    from embank.pipelines.importing.report import Imported


def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What others have saved: a file or a folder.")],
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            help="What wrote it: torchrec, fuxictr, deepctr, parquet, safetensors, npy, word2vec; embank for a run or "
            "a bundle.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The bundle, or with --config the run directory; must not exist.")],
    vocab: Annotated[
        list[str] | None,
        typer.Option(
            help="What rows stand for: a prepared folder, a run, a bundle, a file with a token a line, or FuxiCTR's "
            "feature_vocab.json; TABLE=PATH for one table. Without it row i is id i."
        ),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="NAME=SOURCE_NAME: what a table is called; NAME for a file's only one.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A training's YAML: a whole model, or tables for one, become a run.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE in --config; may be repeated.")] = None,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="With --config: leave the source's network.")
    ] = False,
    order: Annotated[
        str | None,
        typer.Option(help="The source's features by commas, in the order in which its network reads them."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Store the tables so, fitted to the source's rows.")] = None,
    budget: Annotated[float | None, typer.Option(help="Serving bytes / bytes of the plain fp32 tables.")] = None,
    codec: Annotated[str | None, typer.Option(help="How rows are held, see `embank codecs`.")] = None,
    pooling: Annotated[str | None, typer.Option(help="How a bag's rows become one: sum or mean.")] = None,
    column: Annotated[str | None, typer.Option(help="Of Parquet: the column of vectors, where several may be.")] = None,
    id_column: Annotated[str | None, typer.Option(help='Of Parquet: the column of ids or tokens; "" for none.')] = None,
    tensor: Annotated[str | None, typer.Option(help="Of safetensors: the matrix; all by default.")] = None,
) -> None:
    """Take tables and models that others have trained: as they are, or made small in the same step.

    Without `--config` the tables become a bundle. With it a run is written, whose data, model and tables the
    configuration says: `embank train --from` goes on from it.

    Example: `embank import vectors.txt --from word2vec --method mgqe --budget 0.1 --out words`

    A whole model: `embank import checkpoints/9 --from torchrec --config dlrm.yaml --out runs/imported`
    """
    from embank.pipelines.importing.importing import import_source

    names, name = _names(table or [])
    stored = {"method": method, "budget": budget, "codec": codec, "pooling": pooling}
    given = {key: value for key, value in stored.items() if value is not None}
    loaded = None
    if config is not None:
        from embank.pipelines.config.run import load_config

        sets = [*(set_ or []), *(f"tables.{key}={value}" for key, value in given.items())]
        loaded, given = load_config(config, overrides=sets), {}
        _refuse_no_size(method, loaded)
    elif set_:
        from embank.tables.errors import ConfigError

        raise ConfigError(f"--set {set_[0]} changes a configuration, and none was given; give --config")
    _refuse_pooling(pooling)
    with show.preparing() as reporter:
        done = import_source(
            source,
            out,
            kind=from_,
            vocab=vocab or [],
            names=names,
            name=name,
            config=loaded,
            order=None if order is None else [part.strip() for part in order.split(",")],
            tables_only=tables_only,
            column=column,
            id_column=id_column,
            tensor=tensor,
            reporter=reporter,
            **given,  # type: ignore[arg-type]
        )
    _sum_up(done)


def _refuse_no_size(method: str | None, config: "Config") -> None:
    """Raises ConfigError for a --method whose size neither a budget nor an option says."""
    default = config.tables.default
    if method in (None, "full") or default.budget is not None or default.options != type(default.options)():
        return
    from embank.tables.errors import ConfigError

    raise ConfigError(f"--method {method} needs a size; give --budget, for example --budget 0.25, or set tables.budget")


def _refuse_pooling(pooling: str | None) -> None:
    from embank.tables.errors import ConfigError

    if pooling not in (None, "sum", "mean"):
        raise ConfigError(f"--pooling is {pooling!r}; give sum or mean")


def _names(options: list[str]) -> tuple[dict[str, str], str | None]:
    """Names of tables, ours to the source's, and the name of the only one of a file."""
    from embank.tables.errors import ConfigError

    names: dict[str, str] = {}
    alone = [option for option in options if "=" not in option]
    for option in options:
        ours, sign, theirs = option.partition("=")
        if sign and (not ours or not theirs or ours in names):
            what = f"names '{ours}' twice" if ours in names else "lacks a name"
            raise ConfigError(f"--table {option} {what}; give NAME=SOURCE_NAME, each name once")
        if sign:
            names[ours] = theirs
    if len(alone) > 1:
        raise ConfigError(f"--table {alone[0]} and --table {alone[1]} both name the only table; give one")
    return names, alone[0] if alone else None


def _sum_up(done: "Imported") -> None:
    """Tables, what they lack and what was left over, and what to do next."""
    rows = []
    for one in done.tables:
        how = one.method if one.codec == "fp32" else f"{one.method}, {one.codec}"
        counts = [f"{one.ids:,} x {one.dim}", one.by, f"{one.missing:,}", f"{one.surplus:,}"]
        rows.append([one.name, *counts, how, f"{one.nbytes:,}", f"{one.error:.4g}"])
    show.table(["table", "ids x dim", "by", "missing", "surplus", "stored as", "bytes", "error"], rows)
    states = [one.name for one in done.tables if one.has_optimizer_state]
    if states:
        _say(f"with the state of their rows' optimizer: {', '.join(states)}")
    if done.initial:
        _say(f"not in the source, with their initial values: {', '.join(done.initial)}")
    if done.left:
        _say(f"left in the source: {', '.join(done.left)}")
    total = sum(one.nbytes for one in done.tables)
    plain = sum(4 * one.ids * one.dim for one in done.tables)
    _say(f"{done.out}: {len(done.tables)} tables, {total:,} bytes ({human_bytes(total)}), {total / plain:.4f} of fp32")
    if done.result is not None:
        auc, valid = done.result["auc"], done.result.get("valid_auc")
        told = " and ".join("undefined" if value is None else f"{value:.4f}" for value in (valid, auc))
        _say(f"{done.network} parameters of the network; AUC on validation and test: {told}")
    if done.config:
        _say(f"to train on: embank train {done.out / 'config.yaml'} --from {done.out} --out RUN")


def _say(text: str) -> None:
    show.out.print(text, markup=False)
