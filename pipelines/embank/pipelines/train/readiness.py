"""Before a run begins or goes on: are folder, data and configuration fit for it?"""

from pathlib import Path
from typing import Any

from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.loading.integrity import verify_prepared
from embank.pipelines.data.schema import Schema
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.evaluate import refuse_unlabelled
from embank.pipelines.runs.folder import RunFolder
from embank.tables.errors import CheckpointError, ConfigError, DataError


def ready_to_start(run: RunFolder, config: Config, schema: Schema, *, content: str | None, reporter: Reporter) -> None:
    """Refuses a folder that is in use, and data that a new run can't be trained on.

    Args:
        run: the run directory.
        config: the run's configuration.
        schema: of its data.
        content: digest of its rows, None where it is not known.
        reporter: is told what is worth a line.

    Raises:
        ConfigError, DataError: names what is in the way.
    """
    run.refuse_used()
    refuse_unlabelled(schema, data=config.data.path)
    refuse_unusable_splits(schema, path=config.data.path)
    refuse_missing_group(schema, monitor=config.train.monitor, path=config.data.path)
    _verify_data(config, schema, reporter=reporter)


def ready_to_resume(
    run: RunFolder, config: Config, schema: Schema, *, content: str | None, reporter: Reporter
) -> dict[str, Any] | None:
    """Refuses a folder without a run, and a configuration or data that are not the run's; arguments as above.

    Returns:
        The result of a run that is complete.

    Raises:
        CheckpointError, ConfigError, DataError: names what is in the way.
    """
    if not run.is_run:
        raise CheckpointError(f"'{run.path}' holds no run to resume; start it without --resume")
    run.refuse_changes(to_plain(config), fingerprint=schema.fingerprint, content=content)
    if run.result.is_file():
        return run.read_result()
    _verify_data(config, schema, reporter=reporter)
    _say_what_is_lost(run, content=content, reporter=reporter)
    return None


def _verify_data(config: Config, schema: Schema, *, reporter: Reporter) -> None:
    """All splits are looked at before anything is trained: a damaged test part would be noticed at the very end."""
    verify_prepared(Path(config.data.path), schema, reporter=reporter)


def _say_what_is_lost(run: RunFolder, *, content: str | None, reporter: Reporter) -> None:
    """Whatever a resumed run can't take up again has a line."""
    if not run.saved():
        reporter.note(f"'{run.path}' has no checkpoint: the run starts again from its beginning")
    if run.content is None and content is not None:
        reporter.note(
            f"'{run.path}' was started by an earlier version: whether rows, labels and numbers are the same can't be "
            "checked"
        )
    if damaged := run.num_damaged_metrics:
        reporter.note(
            f"'{run.metrics}': {damaged} damaged line{'s are' if damaged > 1 else ' is'} left out; learning curves "
            "lack them"
        )


def refuse_unusable_splits(schema: Schema, *, path: str) -> None:
    """Raises DataError if a split has no rows, naming it and the folder."""
    for name in ("train", "valid", "test"):
        if not schema.split(name).num_rows:
            raise DataError(
                f"'{path}' has no rows in its {name} split; training needs train, valid and test. Prepare the data "
                "with other split ratios, or all of it without --split"
            )


def refuse_missing_group(schema: Schema, *, monitor: str, path: str) -> None:
    """Raises ConfigError if checkpoints should be chosen by group AUC on data without a group key."""
    if monitor == "gauc" and schema.group is None:
        raise ConfigError(
            f"'train.monitor' is 'gauc', but '{path}' has no group key. Prepare the data with 'group: COLUMN', or "
            "monitor auc or logloss"
        )
