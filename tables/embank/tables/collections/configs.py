"""Tables as TorchRec's configs describe them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torchrec import PoolingType
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType, EmbeddingBagConfig

from embank.tables.errors import ConfigError
from embank.tables.rows import RowTier
from embank.tables.rows.store_spec import RowDtype, refuse_names
from embank.tables.specs import TableSpec

ByTable = Mapping[str, Any]
_DTYPES: dict[DataType, RowDtype] = {DataType.FP32: "fp32", DataType.FP16: "fp16", DataType.BF16: "bf16"}


def specs_of(
    configs: Sequence[BaseEmbeddingConfig],
    *,
    method: str | Mapping[str, str],
    budget: float | Mapping[str, float] | None,
    options: Any,
    weighted: bool,
    init_of: Callable[[BaseEmbeddingConfig], Any] | None = None,
) -> list[TableSpec]:
    """Specs of the tables that TorchRec's configs describe.

    Args:
        configs: `EmbeddingBagConfig` or `EmbeddingConfig`; one without feature names looks up the feature of its own
            name.
        method: how all tables are stored, or by table; tables that are not named are plain.
        budget: of all tables that have a method, or by table.
        options: of the method, or by table.
        weighted: whether ids have weights.
        init_of: the `init_fn` of a plain table, from its config; by default the config's own, where it has one.

    Raises:
        ConfigError: no configs, a mapping of a table that is not there, or what a spec refuses.
    """
    refuse_no_configs(configs)
    listed = list(configs)
    names = [config.name for config in listed]
    for what, value in (("method", method), ("budget", budget), ("options", options)):
        for name in value if isinstance(value, Mapping) else ():
            if name not in names:
                raise ConfigError(f"{what} names table '{name}', which is none of {', '.join(names)}")
    methods = {config.name: _of(method, config.name, "full") for config in listed}
    asked = budget if isinstance(budget, Mapping) else dict.fromkeys(names, budget)
    plain = [name for name in names if methods[name] == "full"]
    if any(value is not None for value in asked.values()):
        idle = [name for name in plain if isinstance(budget, Mapping) and asked.get(name) is not None]
        if idle or len(plain) == len(names):
            raise ConfigError(
                f"budget is {budget}, but table '{(idle or plain)[0]}' has method 'full', which stores all rows; name "
                "a method that makes it smaller (method='hash', for example), or leave the budget out"
            )
    inits = {
        config.name: own_init(config) if init_of is None or methods[config.name] != "full" else init_of(config)
        for config in listed
    }
    return [
        TableSpec(
            name=config.name,
            num_embeddings=config.num_embeddings,
            embedding_dim=config.embedding_dim,
            feature_names=list(config.feature_names) or [config.name],
            pooling=_pooling(config),
            method=methods[config.name],
            budget=_of(budget, config.name, None) if methods[config.name] != "full" else None,
            options=_of(options, config.name, None),
            weighted=weighted,
            init_fn=inits[config.name],
        )
        for config in listed
    ]


def refuse_no_configs(configs: Any) -> None:
    """Raises ConfigError for anything but TorchRec's configs."""
    listed = list(configs) if isinstance(configs, Sequence) and not isinstance(configs, str) else [configs]
    if not listed or not all(isinstance(config, BaseEmbeddingConfig) for config in listed):
        given = f"{configs!r:.80}" if listed else "none"
        raise ConfigError(
            f"tables are made of a list of EmbeddingBagConfigs or EmbeddingConfigs of torchrec; there are {given}"
        )


def _of(value: Any, table: str, default: Any) -> Any:
    return value.get(table, default) if isinstance(value, Mapping) else value


def _pooling(config: BaseEmbeddingConfig) -> Any:
    pooling = config.pooling if isinstance(config, EmbeddingBagConfig) else PoolingType.SUM
    if pooling not in (PoolingType.SUM, PoolingType.MEAN):
        raise ConfigError(f"table '{config.name}' has pooling {pooling.value}; use SUM or MEAN")
    return "sum" if pooling == PoolingType.SUM else "mean"


def own_init(config: BaseEmbeddingConfig) -> Callable[[torch.Tensor], Any] | None:
    """The config's `init_fn`, unless it is what every table begins with, U(-b, b), b = num_embeddings ** -0.5."""
    init: Callable[[torch.Tensor], Any] | None = config.init_fn
    bound = config.num_embeddings**-0.5
    if isinstance(init, partial) and init.func is torch.nn.init.uniform_ and not init.args:
        keywords = init.keywords
        if set(keywords) == {"a", "b"} and abs(keywords["a"] + bound) < 1e-12 and abs(keywords["b"] - bound) < 1e-12:
            return None
    return init


def tier_of(configs: Sequence[BaseEmbeddingConfig], *, tier: RowTier | None, device: Any) -> RowTier:
    """Where rows are held, and as which type, as TorchRec's arguments say.

    Args:
        configs: whose `data_type` is that of the rows.
        tier: the rest.
        device: of the tables; None takes torch's default, which a `with torch.device(...)` block sets.

    Raises:
        ConfigError: types that rows can't be trained in, or several in one collection; a device that contradicts the
            tier's.
    """
    types = {config.data_type for config in configs} or {DataType.FP32}
    unknown = next((config for config in configs if config.data_type not in _DTYPES), None)
    if unknown is not None:
        raise ConfigError(
            f"table '{unknown.name}' has data_type {unknown.data_type.value}; rows are trained as FP32, FP16 or BF16, "
            "and served in fewer bits by a codec (embank export --codec int8)"
        )
    if len(types) > 1:
        raise ConfigError(
            f"the tables have data_types {', '.join(sorted(t.value for t in types))}; all rows of a collection have "
            "one: make a collection for each"
        )
    refuse_names(tier=tier, optimizer=None)
    own = tier or RowTier()
    chosen = torch.get_default_device() if device is None else torch.device(device)
    name = chosen.type if chosen.index is None or chosen.type == "cpu" else str(chosen)
    if tier is not None and device is None:
        name = own.device
    if tier is not None and own.device not in ("cpu", name):
        raise ConfigError(f"device is '{name}' and tier.device '{own.device}'; give one of them")
    (dtype,) = types
    return replace(own, device=name, dtype=_DTYPES[dtype] if dtype != DataType.FP32 else own.dtype)
