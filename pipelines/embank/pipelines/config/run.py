"""The configuration of a run: YAML in, checked dataclasses out. Unknown keys are refused with their path."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embank.ctr_models import MODELS
from embank.ctr_models.registry import find_model
from embank.pipelines.config.changes import AUTO
from embank.pipelines.config.file import read_config, told_origin
from embank.pipelines.config.problems import ORIGIN, missing_key, refuse_unknown, written_in, wrong_value
from embank.pipelines.config.sections import DataConfig, RowsConfig, TrainConfig
from embank.pipelines.config.tables import TABLE_KEYS, TableConfig, TablesConfig, parse_tables
from embank.pipelines.config.values import field_names, validated
from embank.tables import ConfigError
from embank.tables.scalars import plain
from embank.tables.serving.codecs.registry import row_codec
from embank.tables.storage.yaml_text import parse_yaml

_RUN_CONFIG = "config.yaml"
_LM_COMMANDS = "train it with `embank lm train`, and ask its run with `embank lm eval`, `generate` or `edit`"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run.

    Args:
        data: which data.
        model: `name` and the hyper-parameters of that model's `Config`.
        tables: how features are stored.
        train: how the model is trained.
        rows: where rows are held.
    """

    data: DataConfig
    model: Mapping[str, Any]
    tables: TablesConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    rows: RowsConfig = field(default_factory=RowsConfig)


def load_config(path: str | Path, *, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a YAML configuration, see `read_config` and `parse_config`."""
    return parse_config(read_config(path, overrides=overrides), origin=told_origin(path, overrides))


def parse_config(raw: Mapping[str, Any], *, origin: str = ORIGIN) -> Config:
    """Checks a configuration that is plain dicts.

    Args:
        raw: as it comes out of YAML.
        origin: what to call it in messages, such as a file name.

    Raises:
        ConfigError: an unknown key (with its path and the nearest right one), a wrong value.

    Example:
        >>> config = parse_config({"data": {"path": "data/clicks"}, "model": {"name": "fm"}})
        >>> config.tables.of("user_id").method, config.train.epochs
        ('full', 1)
    """
    with written_in(origin):
        return _parse(plain(dict(raw)) if isinstance(raw, Mapping) else raw)


def refuse_language_model(run: Path) -> None:
    """Refuses a language model's run where one that scores rows is asked for.

    Raises:
        ConfigError: it is one.
    """
    try:
        raw = parse_yaml((run / _RUN_CONFIG).read_text(encoding="utf-8"), origin=str(run / _RUN_CONFIG))
    except (OSError, ValueError, ConfigError):
        return  # whoever reads it says what is wrong with it
    if _is_of_language_model(raw):
        raise ConfigError(
            f"the run '{run}' is of a language model, which scores no rows; ask it with `embank lm eval`, `generate` "
            "or `edit`"
        )


def _is_of_language_model(raw: Any) -> bool:
    return isinstance(raw, Mapping) and "corpus" in raw


def _parse(raw: Any) -> Config:
    if _is_of_language_model(raw):
        raise ConfigError(f"it is of a language model (it has the key 'corpus'); {_LM_COMMANDS}")
    refuse_unknown(raw, field_names(Config), path="")
    for required in ("data", "model"):
        if required not in raw:
            raise ConfigError(missing_key(required))
    sections = {
        "data": validated(DataConfig, raw["data"], path="data"),
        "model": _model(raw["model"]),
        "tables": parse_tables(raw.get("tables") or {}),
        "train": validated(TrainConfig, raw.get("train") or {}, path="train"),
        "rows": validated(RowsConfig, raw.get("rows") or {}, path="rows"),
    }
    config = Config(**sections)
    _refuse_out_of_range(config)
    _refuse_through(config.train.straight_through)
    return config


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain dicts, every default filled in; `parse_config` reads it back to an equal one."""

    def table(values: TableConfig) -> dict[str, Any]:
        plain = {key: getattr(values, key) for key in TABLE_KEYS}
        return plain | asdict(values.options)

    tables = table(config.tables.default)
    tables["plain_below"], tables["alignment"] = config.tables.plain_below, config.tables.alignment
    tables["overrides"] = {name: table(values) for name, values in config.tables.overrides.items()}
    return {
        "data": asdict(config.data),
        "model": _plain(dict(config.model)),
        "tables": tables,
        "train": asdict(config.train),
        "rows": asdict(config.rows),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _model(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping) or "name" not in raw:
        known = ", ".join(MODELS)
        raise ConfigError(
            wrong_value("model", raw, f"it needs a name, such as {{name: deepfm}}; known models: {known}")
        )
    name, hyper = str(raw["name"]), {key: value for key, value in raw.items() if key != "name"}
    return {"name": name, **asdict(validated(find_model(name).Config, hyper, path="model"))}


def _refuse_through(codec: str | None) -> None:
    """Raises ConfigError for what rows can't be trained through."""
    if codec is None:
        return
    try:
        row_codec(codec)
    except ConfigError as error:
        raise ConfigError(f"train.straight_through: {error}") from error
    if codec == "fp32":
        raise ConfigError(
            wrong_value(
                "train.straight_through", codec, "it must be a codec of rows that loses something, such as int2"
            )
        )


def _refuse_out_of_range(config: Config) -> None:
    positive = {
        "data.batch_size": config.data.batch_size,
        "data.buffer_rows": config.data.buffer_rows,
        "train.epochs": config.train.epochs,
        "train.eval_every": config.train.eval_every,
        "train.checkpoint_every": config.train.checkpoint_every,
        "train.patience": config.train.patience,
        "train.num_threads": config.train.num_threads,
        "rows.memory_per_rank": config.rows.memory_per_rank,
        "tables.dim": config.tables.default.dim,
        **{f"tables.overrides.{name}.dim": table.dim for name, table in config.tables.overrides.items()},
    }
    for path, value in positive.items():
        if value is not None and value < 1:
            raise ConfigError(wrong_value(path, value, "it must be at least 1"))
    for path, value in {"data.prefetch": config.data.prefetch, "tables.plain_below": config.tables.plain_below}.items():
        if value < 0:
            raise ConfigError(wrong_value(path, value, "it must be 0 or more"))
    for name in (
        "lr",
        "table_lr",
        "search_lr",
        "embedding_l2",
        "weight_decay",
        "warmup_steps",
        "checkpoint_minutes",
        "seed",
    ):
        value = getattr(config.train, name)
        if value != AUTO and not value >= 0:
            raise ConfigError(wrong_value(f"train.{name}", value, "it must be 0 or more"))
    clip = config.train.clip_grad_norm
    if clip is not None and not clip > 0:
        raise ConfigError(wrong_value("train.clip_grad_norm", clip, "it must be above 0, or null to clip nothing"))
    if config.train.table_optimizer == "adam" and config.rows.backend == "fbgemm":
        raise ConfigError(
            "train.table_optimizer is 'adam', which the fbgemm backend lacks on a CPU; use rowwise_adagrad, or set "
            "rows.backend to torch."
        )
