"""A whole model, or tables for one that is to be trained: from a source and a configuration to a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embank.ctr_models import MODELS, CTRModel
from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.loading.integrity import content_of
from embank.pipelines.data.schema import VOCAB_FOLDER, Schema
from embank.pipelines.importing.fits import filled
from embank.pipelines.importing.matching import Matching, match
from embank.pipelines.importing.networks import InputOrder, recipe_of, translated
from embank.pipelines.importing.report import Imported, imported_table
from embank.pipelines.importing.rows import matched_rows
from embank.pipelines.importing.sources import FIRST_ORDER, OURS, Source, SourceTable
from embank.pipelines.importing.vocabularies import TokenSources
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.build import build, initial_network, served_tables, table_codecs, table_specs
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.progress import Progress, StageProgress
from embank.pipelines.runs.records import write_record
from embank.pipelines.runs.result import close_run
from embank.pipelines.runs.row_folders import ROWS
from embank.pipelines.train.checkpoints import evaluate_and_save, save, tell
from embank.pipelines.train.session import Session
from embank.tables import ConfigError, TableCollection, TableSpec, Vocabulary
from embank.tables.collections.held_rows import writing
from embank.tables.collections.stages import planned_stages, settle
from embank.tables.sharding.processes import Processes
from embank.tables.storage.new_folder import new_folder
from embank.tables.wording import listing, nearest_or_all

RECORD = "import.json"


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What goes where, looked at before anything is made.

    Args:
        specs: our tables, in order.
        taken: those that the source has.
        matchings: of them.
        network: the parameters of our network; None where it keeps its initial values.
    """

    specs: Sequence[TableSpec]
    taken: Mapping[str, SourceTable]
    matchings: Mapping[str, Matching]

    @property
    def initial(self) -> list[str]:
        """Tables that keep their initial values."""
        return [spec.name for spec in self.specs if spec.name not in self.taken]


def import_model(
    source: Source,
    out: str | Path,
    *,
    config: Config,
    vocabularies: TokenSources,
    order: Sequence[str] | None = None,
    tables_only: bool = False,
    reporter: Reporter | None = None,
) -> Imported:
    """Writes a run that begins with what others have trained: `embank train --from` goes on from it, and where the
    whole model was imported, it has a bundle that scores as the source does.

    Args:
        source: see `open_source`.
        out: the run directory; must not exist yet.
        config: data, model, tables and training.
        vocabularies: what the source's rows stand for; where nothing is said, row i is id i of the data.
        order: the source's features in the order in which its network reads them; None takes the source's own where
            it is known, and that of the data where it is not.
        tables_only: leave the source's network, and its tables that the data has not.
        reporter: of the work.

    Raises:
        DataError, ConfigError, BudgetError: what can't be imported: names file, table and cure.
        CheckpointError: `out` exists.
        WorkError: it can't be written; nothing is left behind.
    """
    out, told = Path(out), reporter or Reporter()
    whole = source.has_network and not tables_only
    if order is not None and not whole:
        raise ConfigError("--order says what a source's network reads, and no network is imported; leave it out")
    schema, data = Schema.load(config.data.path), Path(config.data.path)
    if source.is_model and not source.network and not tables_only:
        _refuse_no_network(source, config, schema)
    if whole and source.kind != OURS:
        recipe_of(source, str(config.model["name"]))
    plan = _plan(source, config, schema, vocabularies=vocabularies, whole=whole)
    sources = (source.path,) if source.path.is_dir() else ()
    with new_folder(out, kind="run", sources=sources) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        rows = {
            name: matched_rows(table.vectors, plan.matchings[name], scratch / str(number), reporter=told)
            for number, (name, table) in enumerate(plan.taken.items())
        }
        run = RunFolder(folder / "run")
        with run.lock():
            model = build(config, schema, data=data, rows_folder=run.path / ROWS)
            assert isinstance(model.tables, TableCollection)
            model = CTRModel(filled(model.tables, rows, plan.matchings, reporter=told), model.network)
            assert isinstance(model.tables, TableCollection)
            states = _take_state(model.tables, plan, scratch, reporter=told)
            network: dict[str, Tensor] = {}
            if whole:
                network = _network(source, model, config, schema, order=order, reporter=told)
                model.network.load_state_dict(network)
            session = _session(config, schema, run, model, reporter=told)
            packed = {spec.name: (spec, pack) for spec, pack in served_tables(config, model.tables).packed_tables()}
            codecs = table_codecs(config, model.tables.specs)
            done = Imported(
                out=out,
                kind=source.kind,
                path=source.path,
                tables=[
                    imported_table(
                        *packed[name],
                        rows[name],
                        plan.matchings[name],
                        codec=codecs[name],
                        has_state=name in states,
                        reporter=told,
                    )
                    for name in plan.taken
                ],
                initial=plan.initial,
                left=[name for name in source.tables if name not in plan.taken],
                network=len(network),
                config=True,
            )
            content = content_of(data, schema)
            run.create(to_plain(config), fingerprint=schema.fingerprint, content=content)
            write_record(run.path / RECORD, done.to_json())
            if whole:
                evaluate_and_save(session)
                facts = {"imported": done.to_json()}
                chosen = {"split": "test", "stage": session.training.stage.name, "step": 0, "epoch": 0}
                result = close_run(
                    run,
                    session.model,
                    config=config,
                    schema=schema,
                    progress=session.progress,
                    tell=lambda scores: tell(session, {**chosen, **scores}),
                    facts=facts,
                )
            else:
                settle(session.tables)
                save(session)
                result = None
        _to_the_top(folder, run.path)
    return Imported(**{**vars(done), "result": result})


def _refuse_no_network(source: Source, config: Config, schema: Schema) -> None:
    """Raises ConfigError where our model has a network, which a source of tables alone has not."""
    first = next(iter(initial_network(config, schema).state_dict()), None)
    if first is not None:
        raise ConfigError(
            f"'{source.path}' has tables alone: it has nothing for '{first}' of model '{config.model['name']}'. Give a "
            "file of the whole model, or import the tables with --tables-only"
        )


def _to_the_top(folder: Path, run: Path) -> None:
    """The run's files in place of what was needed to make them."""
    import shutil

    shutil.rmtree(folder / "scratch")
    for path in run.iterdir():
        path.rename(folder / path.name)
    run.rmdir()


def _plan(source: Source, config: Config, schema: Schema, *, vocabularies: TokenSources, whole: bool) -> _Plan:
    vocabularies.refuse_unknown(source.tables)
    data = Path(config.data.path)
    specs = table_specs(config, schema, data=data)
    taken = {spec.name: source.tables[spec.name] for spec in specs if spec.name in source.tables}
    lacking = [spec.name for spec in specs if spec.name not in taken]
    if not taken or (whole and lacking):
        first = lacking[0]
        raise ConfigError(
            f"'{source.path}' has no table '{first}', which the configuration's model reads: name the source's by "
            f"--table {first.removeprefix(FIRST_ORDER)}=NAME"
            + (", or import the tables that it has with --tables-only" if taken else "")
            + f"; {nearest_or_all(first, source.tables, label='it has')}"
        )
    left = [name for name in source.tables if name not in taken]
    if whole and left:
        raise ConfigError(
            f"'{source.path}' has the tables {listing(left)}, which the data in '{config.data.path}' has no features "
            "for. Prepare the data with them, name them by --table FEATURE=NAME, or leave them out with --tables-only"
        )
    _refuse_other_pooling(source, config, schema)
    matchings = {}
    for spec in specs:
        if spec.name not in taken:
            continue
        table, feature = taken[spec.name], spec.feature_names[0]
        if table.vectors.dim != spec.embedding_dim:
            raise ConfigError(
                f"table '{spec.name}' has dim {spec.embedding_dim} in the configuration, and {table.vectors.column} of "
                f"'{source.path}' has vectors of {table.vectors.dim} numbers; set tables.dim, or "
                f"tables.overrides.{feature}.dim, to {table.vectors.dim}"
            )
        if not spec.has_vocabulary:
            raise ConfigError(
                f"table '{spec.name}' has no vocabulary (its ids are hashes of tokens), so that no row of "
                f"'{source.path}' is that of an id. Prepare '{feature}' as categorical, not hashed"
            )
        vocabulary = Vocabulary.load(data / VOCAB_FOLDER / f"{feature}.parquet", name=feature)
        tokens = vocabularies.tokens(spec.name)
        matchings[spec.name] = match(table, tokens=tokens, vocabulary=vocabulary, num_ids=spec.num_embeddings)
    return _Plan(specs=specs, taken=taken, matchings=matchings)


def _refuse_other_pooling(source: Source, config: Config, schema: Schema) -> None:
    """Raises ConfigError where a source pools a feature of several values in another way."""
    for field in schema.categorical:
        theirs, ours = source.pooling.get(field.name), config.tables.of(field.name).pooling
        if theirs is not None and theirs != ours:
            raise ConfigError(
                f"'{source.path}' pools the values of '{field.name}' by {theirs}, and the configuration by {ours}; set "
                f"tables.overrides.{field.name}.pooling"
            )
        if theirs == "mean" and MODELS[config.model["name"]].first_order:
            raise ConfigError(
                f"'{source.path}' pools the vectors of '{field.name}' by their mean and its first-order weights by "
                "their sum, which a model here can't. Import the tables alone with --tables-only"
            )


def _take_state(tables: TableCollection, plan: _Plan, scratch: Path, *, reporter: Reporter) -> list[str]:
    """Takes the state of the rows' optimizer for plain tables, where the source has one of the same shape; says for
    which."""
    own = tables.optimizer_state()
    plain = {method.spec.name for method in tables.built_methods() if method.traits.is_plain}
    done = []
    for number, (name, table) in enumerate(plan.taken.items()):
        target = own.get(name, {}).get("sum")
        if table.state is None or target is None or name not in plain:
            continue
        width = 1 if target.dim() == 1 else target.shape[1]
        if table.state.dim != width or table.state.num_rows != table.vectors.num_rows:
            continue
        rows_Nw = matched_rows(table.state, plan.matchings[name], scratch / f"state-{number}", reporter=reporter)
        with torch.no_grad(), writing(tables):
            target.copy_(rows_Nw.view_as(target))
        done.append(name)
    return done


def _network(
    source: Source,
    model: CTRModel,
    config: Config,
    schema: Schema,
    *,
    order: Sequence[str] | None,
    reporter: Reporter,
) -> dict[str, Tensor]:
    """The parameters of our network from the source's."""
    inputs = model.network.inputs
    if source.kind == OURS:
        return _our_network(source, model)
    numbers = [field.name for field in schema.numeric]
    has_vectors = config.model.get("embed_numeric", source.kind != "deepctr")
    ids, fields, their_numbers = _source_order(source, list(inputs.names), numbers, order=order)
    if order is None and source.fields is None and len(set(inputs.dims)) < len(ids):
        reporter.note(
            f"a model of {source.kind} does not tell in which order its network reads features; taken as in the data: "
            f"{listing(fields)}. If it was another one, give --order"
        )
    common: dict[str, Any] = {
        "dims": dict(zip(inputs.names, inputs.dims, strict=True)),
        "number_dim": inputs.common_dim if has_vectors else 1,
        "dim": inputs.common_dim,
        "has_bottom": bool(numbers),
        "is_dot": config.model.get("interaction", "dot") == "dot",
    }
    return translated(
        source,
        model=config.model,
        ours=model.network.state_dict(),
        theirs_in=InputOrder(fields=fields, ids=ids, numbers=their_numbers, **common),
        ours_in=InputOrder(fields=[*inputs.names, *numbers], ids=inputs.names, numbers=numbers, **common),
    )


def _our_network(source: Source, model: CTRModel) -> dict[str, Tensor]:
    """The network of a run or a bundle of the same model.

    Raises:
        ConfigError: of another one; names what differs.
    """
    ours = model.network.state_dict()
    differing = [
        name for name in {**ours, **source.network} if tuple(source.network.get(name, ())) != shape_of(ours, name)
    ]
    if differing or list(source.fields or ()) != list(model.network.inputs.names):
        what = (
            f"its '{differing[0]}' differs" if differing else f"it reads {listing(source.fields or ())} in this order"
        )
        raise ConfigError(
            f"the network of '{source.path}' is of another model than the configuration's: {what}. Give the "
            "configuration that it was trained by, or import its tables alone with --tables-only"
        )
    assert source.read is not None
    return {name: source.read(name) for name in ours}


def shape_of(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    """Of a tensor of a state; None where it is not there."""
    return tuple(state[name].shape) if name in state else None


def _source_order(
    source: Source, names: list[str], numbers: list[str], *, order: Sequence[str] | None
) -> tuple[list[str], list[str], list[str]]:
    """The source's order: of ids, of all features, and of numbers.

    Raises:
        ConfigError: it has not the features that the data has.
    """
    told = list(order) if order is not None else source.fields
    if told is None:
        return names, [*names, *numbers], numbers
    where = "--order" if order is not None else f"'{source.path}'"
    unknown = [name for name in told if name not in (*names, *numbers)]
    lacking = [name for name in names if name not in told]
    if unknown or lacking or len(set(told)) < len(told):
        what = f"has '{unknown[0]}'" if unknown else f"lacks '{lacking[0]}'" if lacking else "names a feature twice"
        raise ConfigError(
            f"the order of features of {where} {what}, and the data's features are {listing([*names, *numbers])}; name "
            "each once, numbers included where they have vectors"
        )
    ids = [name for name in told if name in names]
    their_numbers = [name for name in told if name in numbers]
    if len(their_numbers) < len(numbers):
        if source.kind == "fuxictr" and len(numbers) > 1:
            raise ConfigError(
                f"'{source.path}' does not tell in which order its network reads the numbers {listing(numbers)}; "
                "FuxiCTR's feature_map.json does: let it lie beside the feature_vocab.json that --vocab names, or give "
                "--order with the numbers in it"
            )
        return ids, [*ids, *numbers], numbers
    return ids, list(told), their_numbers


def _session(config: Config, schema: Schema, run: RunFolder, model: CTRModel, *, reporter: Reporter) -> Session:
    """A training that stands at the beginning of the last stage of its methods."""
    assert isinstance(model.tables, TableCollection)
    session = Session(
        config=config,
        schema=schema,
        run=run,
        processes=Processes(),
        reporter=reporter,
        progress=Progress(),
        model=model,
    )
    done = planned_stages(model.tables)[:-1]
    session.progress.stages = [StageProgress(name=stage.name, first_epoch=0) for stage in done]
    session.begin_stage()
    return session
