"""The section `tables` of a run's configuration: how features are stored, by default and one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from embank.compression.budget.coded import refuse_unknown_nbytes
from embank.pipelines.config.problems import refuse_boolean, refuse_unknown, wrong_value
from embank.pipelines.config.values import as_number, field_names, validated, validated_as
from embank.tables import ConfigError, method_class
from embank.tables.scalars import as_whole
from embank.tables.serving.codecs.registry import row_codec
from embank.tables.specs import Pooling

TABLE_KEYS: dict[str, tuple[Any, Any]] = {
    "dim": (int, 16),
    "method": (str, "full"),
    "budget": (float | None, None),
    "pooling": (Pooling, "sum"),
    "init_std": (float | None, None),
    "codec": (str, "fp32"),
}

COLLECTION_KEYS = ("overrides", "plain_below", "alignment")

Alignment = Literal["project", "pad"]


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """How the table of one feature is stored, with every default filled in.

    Args:
        dim: embedding dim.
        method: name of a registered method.
        budget: serving bytes, coded, / bytes of the plain fp32 table; None leaves the size to the method's options.
        pooling: how the rows of a multi-valued feature become one.
        init_std: standard deviation of normal initial values; None draws from U(-b, b), b = num_embeddings ** -0.5.
        codec: how rows are held once they are trained, see `embank.tables.named_codec`; the bundle's, and so the one of
            the final figures.
        options: the method's own options.
    """

    dim: int
    method: str
    budget: float | None
    pooling: Pooling
    init_std: float | None
    codec: str
    options: Any


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


def parse_tables(raw: Any) -> TablesConfig:
    """Checks the section `tables`.

    Raises:
        ConfigError: an unknown key or method, or a wrong value.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(wrong_value("tables", raw, "it must be a mapping of keys to values"))
    defaults = {key: default for key, (_, default) in TABLE_KEYS.items()}
    own = {key: value for key, value in raw.items() if key not in COLLECTION_KEYS}
    default = _table(own, defaults, path="tables", more=COLLECTION_KEYS)
    plain_below = raw.get("plain_below", TablesConfig.plain_below)
    if as_whole(plain_below) is None:
        raise ConfigError(wrong_value("tables.plain_below", plain_below, "it must be a number of ids"))
    alignment = raw.get("alignment", TablesConfig.alignment)
    if alignment not in get_args(Alignment):
        raise ConfigError(wrong_value("tables.alignment", alignment, f"it must be {' or '.join(get_args(Alignment))}"))
    overrides = raw.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        raise ConfigError(wrong_value("tables.overrides", overrides, "it must map features to settings"))
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
        raise ConfigError(wrong_value(path, values, "it must be a mapping, for example {method: full, dim: 8}"))
    if values.get("method", inherited["method"]) != inherited["method"]:
        return _table(values, inherited | {"budget": None}, path=path)
    options = {key: value for key, value in own.items() if key not in TABLE_KEYS}
    return _table({**options, **values}, inherited, path=path)


def _table(raw: Mapping[str, Any], defaults: dict[str, Any], *, path: str, more: Sequence[str] = ()) -> TableConfig:
    values = {}
    for key, (kind, _) in TABLE_KEYS.items():
        refuse_boolean(raw.get(key), kind, path=f"{path}.{key}")
        if kind is str and raw.get(key, defaults[key]) is None:
            raise ConfigError(
                wrong_value(f"{path}.{key}", None, f"nothing stands there; leave the key out for '{defaults[key]}'")
            )
        values[key] = validated_as(kind, as_number(raw.get(key, defaults[key]), kind), path=f"{path}.{key}")
    _refuse_codec(values["codec"], has_budget=values["budget"] is not None, path=path)
    options_class = method_class(values["method"]).Config
    clash = [name for name in field_names(options_class) if name in (*TABLE_KEYS, *COLLECTION_KEYS)]
    if clash:
        raise ConfigError(
            f"{path}.method is '{values['method']}', whose option '{clash[0]}' is a key of every table; its author "
            "must give it another name."
        )
    known = [*TABLE_KEYS, *more, *field_names(options_class)]
    refuse_unknown(raw, known, path=path)
    options = validated(options_class, {k: v for k, v in raw.items() if k not in TABLE_KEYS}, path=path)
    return TableConfig(**values, options=options)


def _refuse_codec(codec: str, *, has_budget: bool, path: str) -> None:
    """Raises ConfigError for a codec that is none, that rows alone can't be coded by, or whose bytes a budget can't
    count."""
    try:
        row_codec(codec)
    except ConfigError as error:
        raise ConfigError(f"{path}.codec: {error}") from error
    if has_budget:
        refuse_unknown_nbytes(codec, where=f"'{path}'")
