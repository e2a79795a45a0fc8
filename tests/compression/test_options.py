"""Options of every registered method: values of a wrong type are refused wherever they are read, and so are tables that
disagree on what acts for all of them."""

from dataclasses import fields, replace
from typing import Any

import pytest

from embank.compression.budget.solver import share
from embank.compression.methods.autodim import AutoDimConfig
from embank.compression.methods.deeplight import DeepLightConfig
from embank.compression.methods.hash import HashConfig
from embank.compression.methods.low_precision import LowPrecisionConfig
from embank.compression.methods.memcom import MemcomConfig
from embank.compression.methods.optembed import OptEmbedConfig
from embank.compression.methods.robe import RobeConfig
from embank.compression.parts.evolution import EvolutionConfig
from embank.tables import ConfigError, TableCollection, TableSpec, build_method, method_class
from tests.contracts.specs import NAMES


def spec(method: str, *, name: str = "t", **more: Any) -> TableSpec:
    return TableSpec(name=name, num_embeddings=300, embedding_dim=8, feature_names=[name], method=method, **more)


@pytest.mark.parametrize("method", NAMES)
def test_values_of_a_wrong_type_are_refused_when_building_and_when_sharing_a_budget(method: str) -> None:
    for field in fields(method_class(method).Config):
        options = method_class(method).Config()
        object.__setattr__(options, field.name, b"5")
        table = spec(method, options=options)
        for use in (lambda t=table: build_method(t), lambda t=table: share([t], budget=1.0)):
            with pytest.raises(ConfigError, match=rf"^table 't' has {field.name} b'5'; it must be "):
                use()


@pytest.mark.parametrize("method", NAMES)
def test_options_of_another_method_are_not_replaced_by_defaults_when_a_budget_is_shared(method: str) -> None:
    other = HashConfig() if method != "hash" else MemcomConfig()
    with pytest.raises(
        ConfigError, match=f"table 't' has method '{method}' but options of type {type(other).__name__}"
    ):
        share([spec(method, options=other)], budget=1.0)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("hash", HashConfig(num_rows=True), r"num_rows True; it must be a whole number or None"),
        ("hash", HashConfig(num_rows=5.0), r"num_rows 5\.0; it must be a whole number or None"),  # type: ignore[arg-type]
        ("memcom", MemcomConfig(bias=1), r"bias 1; it must be True or False"),  # type: ignore[arg-type]
        ("low_precision", LowPrecisionConfig(bits=4), r"bits 4; it must be 8 or 16 or None"),  # type: ignore[arg-type]
        ("autodim", AutoDimConfig(widths=(1, "8")), r"widths \(1, '8'\); it must be a tuple, each item a whole number"),  # type: ignore[arg-type]
        ("optembed", OptEmbedConfig(alpha=float("nan")), "alpha nan; it must be a finite number"),
    ],
)
def test_messages(method: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^table 't' has {message}"):
        build_method(spec(method, options=options))


def test_a_config_refuses_what_it_can_not_compare() -> None:
    with pytest.raises(ConfigError, match="^generations '5'; it must be a whole number$"):
        EvolutionConfig(generations="5")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "options", "name"),
    [
        ("deeplight", DeepLightConfig(end=0.5), "end"),
        ("deeplight", DeepLightConfig(num_prunings=7), "num_prunings"),
        ("optembed", OptEmbedConfig(evolution=EvolutionConfig(generations=3)), "evolution"),
    ],
)
def test_tables_must_agree_on_what_acts_for_all(method: str, options: Any, name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^table 't' has {name} .* and table 'u' has {name} .*; give them one {name}$"
    ):
        TableCollection([spec(method), spec("full", name="v"), spec(method, name="u", options=options)])
    TableCollection([spec(method, options=options), spec(method, name="u", options=options)])


def test_sharing_an_array_overrides_no_option() -> None:
    one, two = (
        spec("robe", name=name, options=RobeConfig(array="a", chunk=chunk)) for name, chunk in (("t", 4), ("u", 8))
    )
    with pytest.raises(ConfigError, match="table 't' has chunk 4, but array 'a' has a table with chunk 8"):
        share([one, two], budget=0.5)
    with pytest.raises(ConfigError, match="table 't' has num_weights 16 while the collection has a budget"):
        share([replace(one, options=RobeConfig(array="a", num_weights=16)), two], budget=0.5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("budget", "0.5", "budget '0.5'; it must be a number"),
        ("budget", True, "budget True; it must be a number"),
        ("init_std", "1", "init_std '1'; it must be a number"),
        ("init_std", float("nan"), "init_std nan; it must be finite and 0 or more"),
        ("init_std", -1.0, r"init_std -1\.0; it must be finite and 0 or more"),
    ],
)
def test_numbers_of_a_spec(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^table 't' has {message}"):
        spec("full", **{field: value})
