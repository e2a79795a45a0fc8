"""From a run to a bundle of its own."""

from pathlib import Path

from embank.pipelines.config.run import Config, parse_config
from embank.pipelines.data.loading.integrity import verify_prepared
from embank.pipelines.data.preprocessing.rules import PREPROCESS, TOKENS, Preprocessing
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.bundle import write_bundle
from embank.pipelines.runs.codecs import AUTO, MAX_AUC_LOSS, codecs_of, refuse_coarse_codes, refuse_codec
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.open import best_model, data_of, refuse_other_vocabularies
from embank.pipelines.runs.progress import Progress
from embank.pipelines.runs.result import metrics_of
from embank.tables import Bundle, TableCollection
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.serving.bundle import is_bundle
from embank.tables.serving.saving import copy_bundle
from embank.tables.storage.checkpoint import meta_of


def export_run(
    path: str | Path,
    *,
    out: str | Path,
    data: str | Path | None = None,
    tokens: bool = True,
    codec: str | None = None,
    max_auc_loss: float | None = None,
) -> Bundle:
    """Writes the best checkpoint of a run as a bundle: a copy of the run's own if it has one, else packed from the
    checkpoint. So is one whose own bundle an earlier version wrote, without what scores raw rows.

    Under a codec it is packed from the checkpoint, and the facts of the bundle have "codec": its name, and for `auto`
    AUC on validation and serving bytes, with and without.

    A run that has not been evaluated yet gives its last checkpoint.

    Args:
        path: the run directory.
        out: the bundle's folder; must not exist yet.
        data: the prepared folder, if it is needed and no longer where the run's configuration says.
        tokens: write the vocabularies' tokens too; without them rows are scored all the same, but ids have no names.
        codec: how matrices are held that the methods do not code themselves; None leaves that to the run's
            configuration; "auto" chooses one for each table, see
            `choose_codecs`.
        max_auc_loss: that "auto" may cost on validation, .0005 by default; of no other codec.

    Returns:
        The bundle.

    Raises:
        CheckpointError: no run, no checkpoint, a damaged one, or `out` exists.
        ConfigError: no such codec, one that can't cut rows of a table's width, the data has other vocabularies, or a
            table is not in the last stage of its method.
        WorkError: it can't be written.
    """
    path, out = Path(path), Path(out)
    run = RunFolder(path)
    config = parse_config(run.read_config())
    if codec is not None:
        refuse_codec(codec)
    if max_auc_loss is not None and codec != AUTO:
        raise ConfigError(
            f"a largest loss of AUC ({max_auc_loss:g}) is for codec 'auto', which chooses by it, and the codec is "
            f"{'that of the run' if codec is None else repr(codec)}; leave it out, or take codec 'auto'"
        )
    if codec is None and is_bundle(run.bundle) and _scores_rows(run, config, data):
        own = _own_bundle(run)
        if tokens or not (run.bundle / PREPROCESS).is_file():
            copy_bundle(own, out)
        else:
            rules = Preprocessing.load(run.bundle).files(tokens=False)
            copy_bundle(own, out, leave_out=[TOKENS], files={PREPROCESS: rules[PREPROCESS]})
        return Bundle(out)
    place = data_of(config, data)
    schema = Schema.load(place)
    refuse_other_vocabularies(schema, data=place, trained=run.fingerprint, path=path)
    verify_prepared(place, schema, splits=("valid",) if codec == AUTO else ())
    with best_model(run, schema=schema, data=place) as (model, step):
        metrics = metrics_of(Progress.from_json(meta_of(run.saved()[-1])["progress"]))
        if codec not in (None, AUTO):
            assert isinstance(model.tables, TableCollection)
            refuse_coarse_codes(model.tables, codec, widen="Train it with rows of")
        loss = MAX_AUC_LOSS if max_auc_loss is None else max_auc_loss
        codecs, said = codecs_of(codec, model, place, precision=config.train.precision, max_auc_loss=loss)
        write_bundle(
            out,
            model,
            config=config,
            schema=schema,
            step=step,
            data=place,
            metrics=metrics,
            tokens=tokens,
            codec=codecs,
            facts={} if codec is None else {"codec": {"name": codec, **said}},
        )
    return Bundle(out)


def _scores_rows(run: RunFolder, config: Config, data: str | Path | None) -> bool:
    """Whether a run's own bundle can score raw rows, if any of it can."""
    return (run.bundle / PREPROCESS).is_file() or Preprocessing.of_prepared(data_of(config, data)) is None


def _own_bundle(run: RunFolder) -> Bundle:
    try:
        return Bundle(run.bundle)
    except CheckpointError as error:
        raise CheckpointError(
            f"{str(error).removesuffix('.')}. Without '{run.bundle}' the checkpoint is packed: remove that folder"
        ) from error
