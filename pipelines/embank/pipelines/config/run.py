"""The configuration of a run: YAML in, checked dataclasses out. Unknown keys are refused with their path."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from embank.ctr_models import MODELS, build_config
from embank.ctr_models.registry import find_model
from embank.pipelines.config.file import read_config
from embank.tables import ConfigError, method_class, option_class
from embank.tables.rows.store_spec import RowOptimizerName
from embank.tables.scalars import as_whole, plain
from embank.tables.specs import Pooling
from embank.tables.validation import mistaken_boolean, problem_in_words
from embank.tables.wording import nearest_or_all


@option_class
class DataConfig:
    """Which prepared folder, and how it is read.

    Args:
        path: what `embank prepare` wrote.
        batch_size: rows per step, over all ranks.
        shuffle: whether the training rows are shuffled anew in each epoch.
        buffer_rows: rows that are shuffled together; bounds the loader's memory.
        prefetch: batches that the loader prepares ahead on its thread.
    """

    path: str
    batch_size: int = 4096
    shuffle: bool = True
    buffer_rows: int = 262_144
    prefetch: int = 4


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """How the table of one feature is stored, with every default filled in.

    Args:
        dim: embedding dim.
        method: name of a registered method.
        budget: serving bytes / bytes of the plain fp32 table; None leaves the size to the method's options.
        pooling: how the rows of a multi-valued feature become one.
        init_std: standard deviation of normal initial values; None draws from U(-b, b), b = num_embeddings ** -0.5.
        options: the method's own options.
    """

    dim: int
    method: str
    budget: float | None
    pooling: Pooling
    init_std: float | None
    options: Any


Alignment = Literal["project", "pad"]


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """Defaults for every feature, and what single features do differently.

    Args:
        default: for every feature that is not overridden.
        overrides: by feature.
        plain_below: under a default budget, tables of fewer ids stay plain (the smallest ones, if they would take more
            than half of it), and the others get what is left, so that all of them together keep the budget.
        alignment: how fields of different dims come to one where the model multiplies them: "project" learns a matrix
            for each narrow one, "pad" puts zeros behind it up to `tables.dim`, as a search over widths means it.
    """

    default: TableConfig
    overrides: Mapping[str, TableConfig]
    plain_below: int = 100
    alignment: Alignment = "project"

    def of(self, feature: str) -> TableConfig:
        """The configuration of one feature's table."""
        return self.overrides.get(feature, self.default)


@option_class
class TrainConfig:
    """How a model is trained.

    Args:
        epochs: passes over the training split.
        lr: peak learning rate of the dense parameters.
        optimizer: of the dense parameters; adam and adamw are the same, since decay is decoupled in both.
        weight_decay: of the network's weights, decoupled for adam, added to the gradient for sgd and adagrad. Biases,
            norms and what methods learn are left alone, see `embank.pipelines.train.optimizer`.
        clip_grad_norm: largest norm of the gradient of all dense parameters together; a longer one is scaled down to
            it. Rows are
            neither counted nor scaled: their update is part of the backward pass. None clips nothing.
        table_optimizer: of the rows; adam needs `rows.backend: torch`.
        table_lr: peak learning rate of the rows.
        search_lr: learning rate (Adam) of what methods search for on validation batches, in stages that alternate.
        embedding_l2: adds embedding_l2 / 2 * (sum of squares of all rows) to the loss of each step, spread over the
            lookups: see `embank.pipelines.train.penalty`.
        warmup_steps: steps in which both learning rates rise linearly from 0.
        decay: of both learning rates after the warm-up. linear and cosine go to 0 at the end of the last epoch; plateau
            divides them by 10 after each evaluation without improvement.
        seed: of initial values, shuffling and dropout.
        patience: evaluations without improvement on validation before training stops; None trains all epochs.
        monitor: what is improved on validation; gauc needs data with a group key.
        eval_every: steps between evaluations on validation; None evaluates at the end of each epoch.
        checkpoint_every: steps between checkpoints besides those at evaluations.
        checkpoint_minutes: minutes after which a checkpoint is written in any case.
        precision: fp32, or bf16 (autocast of the network; rows and optimizers stay fp32).
        compile: run the network through torch.compile.
        tensorboard: also write TensorBoard event files (the extra `embank[tensorboard]`).
        num_threads: threads of torch; None leaves torch's own choice.
    """

    epochs: int = 1
    lr: float = 0.001
    optimizer: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    weight_decay: float = 0.0
    clip_grad_norm: float | None = None
    table_optimizer: RowOptimizerName = "rowwise_adagrad"
    table_lr: float = 0.02
    search_lr: float = 0.001
    embedding_l2: float = 0.0
    warmup_steps: int = 0
    decay: Literal["none", "linear", "cosine", "plateau"] = "none"
    seed: int = 0
    patience: int | None = None
    monitor: Literal["auc", "gauc", "logloss"] = "auc"
    eval_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_minutes: float = 10.0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    tensorboard: bool = False
    num_threads: int | None = None


@option_class
class RowsConfig:
    """Where rows are held.

    Args:
        backend: fbgemm, or its slow twin torch (which has adam).
        device: cpu, or cuda for tables and network on a GPU (with several ranks, each on its own).
        tier: memory of the device, of the host (the same without a GPU), or memory-mapped files.
        dtype: fp32, or fp16 and bf16 in half the memory (on a CPU with backend torch).
        directory: of the disk tier's files; None takes `rows/` in the run directory.
        prefetch: on the disk tier, read the rows of the batches that the loader has made (`data.prefetch`) ahead of
            their use.
        planner: who decides which rank holds what, when there are several: embank, or torchrec's own planner.
        plan: a file with a plan, as `embank plan --out` writes it, instead of a planner.
        memory_per_rank: bytes that rows and their optimizer state may take on each rank; None for no limit.
    """

    backend: Literal["fbgemm", "torch"] = "fbgemm"
    device: Literal["cpu", "cuda"] = "cpu"
    tier: Literal["device", "host", "disk"] = "device"
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    directory: str | None = None
    prefetch: bool = True
    planner: Literal["embank", "torchrec"] = "embank"
    plan: str | None = None
    memory_per_rank: int | None = None


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


TABLE_KEYS: dict[str, tuple[Any, Any]] = {
    "dim": (int, 16),
    "method": (str, "full"),
    "budget": (float | None, None),
    "pooling": (Pooling, "sum"),
    "init_std": (float | None, None),
}

COLLECTION_KEYS = ("overrides", "plain_below", "alignment")


def load_config(path: str | Path, *, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a YAML configuration, see `read_config` and `parse_config`."""
    return parse_config(read_config(path, overrides=overrides))


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Checks a configuration that is plain dicts.

    Raises:
        ConfigError: an unknown key (with its path and the nearest right one), a wrong value.
    """
    raw = plain(dict(raw)) if isinstance(raw, Mapping) else raw
    _refuse_unknown(raw, _names(Config), path="")
    for required in ("data", "model"):
        if required not in raw:
            raise ConfigError(f"the configuration lacks '{required}'; add it, see `embank train --help`")
    sections = {
        "data": _validate(DataConfig, raw["data"], path="data"),
        "model": _model(raw["model"]),
        "tables": _tables(raw.get("tables") or {}),
        "train": _validate(TrainConfig, raw.get("train") or {}, path="train"),
        "rows": _validate(RowsConfig, raw.get("rows") or {}, path="rows"),
    }
    config = Config(**sections)
    _check_numbers(config)
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


def _names(cls: type) -> list[str]:
    return [f.name for f in fields(cls)]


def _refuse_unknown(raw: Any, known: Sequence[str], *, path: str) -> None:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"'{path}' must be a mapping with the keys {', '.join(known)}; it is {raw!r}")
    for key in raw:
        if key not in known:
            full = f"{path}.{key}" if path else str(key)
            hint = nearest_or_all(str(key), known, label="known keys")
            raise ConfigError(f"unknown key '{full}' in the configuration; {hint}")


def _validate(cls: type, raw: Any, *, path: str) -> Any:
    assert is_dataclass(cls)
    _refuse_unknown(raw, _names(cls), path=path)
    types = get_type_hints(cls)
    for key, value in raw.items():
        _refuse_boolean(value, types[key], path=f"{path}.{key}")
    try:
        return TypeAdapter(cls).validate_python(_numbers(cls, raw))
    except ValidationError as error:
        raise ConfigError(_first_problem(error, path)) from error


def _refuse_boolean(value: Any, wanted: Any, *, path: str) -> None:
    words = mistaken_boolean(value, wanted)
    if words:
        raise ConfigError(f"'{path}' is {value!r}: {words}")


def _numbers(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    """YAML 1.1 reads 1e-3 as text; takes it as the number that was meant where the dataclass wants one."""
    types = get_type_hints(cls)
    return {key: _number(value, types.get(key)) for key, value in raw.items()}


def _number(value: Any, wanted: Any) -> Any:
    is_number = bool({int, float} & {wanted, *get_args(wanted)})
    if not is_number or not isinstance(value, str) or "e" not in value.lower():
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _first_problem(error: ValidationError, path: str) -> str:
    problem = error.errors()[0]
    where = ".".join([path, *(str(part) for part in problem["loc"])])
    if problem["type"] == "missing":
        return f"the configuration lacks '{where}'"
    return f"'{where}' is {problem['input']!r}: {problem_in_words(problem)}"


def _model(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping) or "name" not in raw:
        raise ConfigError(
            f"'model' needs a name, for example model: {{name: deepfm}}; known models: {', '.join(MODELS)}"
        )
    name, hyper = str(raw["name"]), {key: value for key, value in raw.items() if key != "name"}
    return {"name": name, **asdict(build_config(name, _numbers(find_model(name).Config, hyper)))}


def _tables(raw: Any) -> TablesConfig:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"'tables' must be a mapping; it is {raw!r}")
    defaults = {key: default for key, (_, default) in TABLE_KEYS.items()}
    own = {key: value for key, value in raw.items() if key not in COLLECTION_KEYS}
    default = _table(own, defaults, path="tables", more=COLLECTION_KEYS)
    plain_below = raw.get("plain_below", TablesConfig.plain_below)
    if as_whole(plain_below) is None:
        raise ConfigError(f"'tables.plain_below' is {plain_below!r}; it must be a number of ids")
    alignment = raw.get("alignment", TablesConfig.alignment)
    if alignment not in get_args(Alignment):
        raise ConfigError(f"'tables.alignment' is {alignment!r}; it must be {' or '.join(get_args(Alignment))}")
    overrides = raw.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"'tables.overrides' must map features to settings; it is {overrides!r}")
    inherited = {key: getattr(default, key) for key in TABLE_KEYS}
    return TablesConfig(
        default=default,
        plain_below=plain_below,
        alignment=alignment,
        overrides={
            str(feature): _override(values, own, inherited, path=f"tables.overrides.{feature}")
            for feature, values in overrides.items()
        },
    )


def _override(values: Any, own: Mapping[str, Any], inherited: dict[str, Any], *, path: str) -> TableConfig:
    """A feature inherits the defaults; with another method it inherits neither the old one's options nor its budget."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"'{path}' must be a mapping, for example {{method: full, dim: 8}}; it is {values!r}")
    if values.get("method", inherited["method"]) != inherited["method"]:
        return _table(values, inherited | {"budget": None}, path=path)
    options = {key: value for key, value in own.items() if key not in TABLE_KEYS}
    return _table({**options, **values}, inherited, path=path)


def _table(raw: Mapping[str, Any], defaults: dict[str, Any], *, path: str, more: Sequence[str] = ()) -> TableConfig:
    values = {}
    for key, (kind, _) in TABLE_KEYS.items():
        _refuse_boolean(raw.get(key), kind, path=f"{path}.{key}")
        try:
            values[key] = TypeAdapter(kind).validate_python(_number(raw.get(key, defaults[key]), kind))
        except ValidationError as error:
            raise ConfigError(_first_problem(error, f"{path}.{key}")) from error
    options_class = method_class(values["method"]).Config
    clash = [name for name in _names(options_class) if name in (*TABLE_KEYS, *COLLECTION_KEYS)]
    if clash:
        raise ConfigError(
            f"'{path}.method' is '{values['method']}', whose option '{clash[0]}' is a key of every table; its author "
            "must give it another name"
        )
    known = [*TABLE_KEYS, *more, *_names(options_class)]
    _refuse_unknown(raw, known, path=path)
    options = _validate(options_class, {k: v for k, v in raw.items() if k not in TABLE_KEYS}, path=path)
    return TableConfig(**values, options=options)


def _check_numbers(config: Config) -> None:
    positive = {
        "data.batch_size": config.data.batch_size,
        "data.buffer_rows": config.data.buffer_rows,
        "train.epochs": config.train.epochs,
        "train.eval_every": config.train.eval_every,
        "train.checkpoint_every": config.train.checkpoint_every,
        "train.patience": config.train.patience,
        "train.num_threads": config.train.num_threads,
        "tables.dim": config.tables.default.dim,
        **{f"tables.overrides.{name}.dim": table.dim for name, table in config.tables.overrides.items()},
    }
    for path, value in positive.items():
        if value is not None and value < 1:
            raise ConfigError(f"'{path}' is {value}; it must be at least 1")
    for path, value in {"data.prefetch": config.data.prefetch, "tables.plain_below": config.tables.plain_below}.items():
        if value < 0:
            raise ConfigError(f"'{path}' is {value}; it must be 0 or more")
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
        if not value >= 0:
            raise ConfigError(f"'train.{name}' is {value}; it must be 0 or more")
    clip = config.train.clip_grad_norm
    if clip is not None and not clip > 0:
        raise ConfigError(f"'train.clip_grad_norm' is {clip}; it must be above 0, or null to clip nothing")
    if config.train.table_optimizer == "adam" and config.rows.backend == "fbgemm":
        raise ConfigError(
            "'train.table_optimizer' is 'adam', which the fbgemm backend lacks on a CPU; use rowwise_adagrad, or set "
            "rows.backend to torch"
        )
