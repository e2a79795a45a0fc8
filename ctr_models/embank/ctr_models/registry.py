"""The models by name, and how a name with hyper-parameters becomes a model."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import nn

from embank.ctr_models.autoint import AutoInt
from embank.ctr_models.dcn import DCN
from embank.ctr_models.dcn_v2 import DCNv2
from embank.ctr_models.deepfm import DeepFM
from embank.ctr_models.dlrm import DLRM
from embank.ctr_models.finalmlp import FinalMLP
from embank.ctr_models.fm import FM
from embank.ctr_models.fnn import FNN
from embank.ctr_models.ipnn import IPNN
from embank.ctr_models.lr import LR
from embank.ctr_models.model import CTRModel
from embank.ctr_models.network import Inputs, Network
from embank.ctr_models.wdl import WDL
from embank.ctr_models.xdeepfm import XDeepFM
from embank.tables.errors import ConfigError
from embank.tables.validation import mistaken_boolean, problem_in_words
from embank.tables.wording import did_you_mean

MODELS: dict[str, type[Network]] = {
    "lr": LR,
    "fm": FM,
    "wdl": WDL,
    "fnn": FNN,
    "ipnn": IPNN,
    "deepfm": DeepFM,
    "dcn": DCN,
    "dcn_v2": DCNv2,
    "dlrm": DLRM,
    "xdeepfm": XDeepFM,
    "autoint": AutoInt,
    "finalmlp": FinalMLP,
}


def find_model(name: str) -> type[Network]:
    """The network class of that name.

    Raises:
        ConfigError: no such model.
    """
    if name not in MODELS:
        raise ConfigError(
            f"model.name '{name}' is unknown.{did_you_mean(name, MODELS)} There are: {', '.join(MODELS)}."
        )
    return MODELS[name]


def build_config(name: str, hyper: Mapping[str, Any]) -> Any:
    """The model's config dataclass from plain values, as they come out of YAML (lists become tuples).

    Raises:
        ConfigError: unknown model, unknown hyper-parameter, or a value of the wrong type or out of range.
    """
    config = find_model(name).Config
    known = [field.name for field in fields(config)]
    for key in hyper:
        if key not in known:
            there_are = f"There are: {', '.join(known)}." if known else "It has none."
            raise ConfigError(
                f"model.{key} is not a hyper-parameter of '{name}'.{did_you_mean(key, known)} {there_are}"
            )
    types = get_type_hints(config)
    for key, value in hyper.items():
        if words := mistaken_boolean(value, types[key]):
            raise ConfigError(f"model.{key} is {value!r}: {words}.")
    try:
        return TypeAdapter(config).validate_python(dict(hyper))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in ("model", *first["loc"]))
        raise ConfigError(
            f"{path} is {first['input']!r}: {problem_in_words(first)}. See the config of '{name}' for its types."
        ) from None


def build_network(name: str, *, inputs: Inputs, **hyper: Any) -> Network:
    """The network alone, freshly initialised from torch's global generator.

    Raises:
        ConfigError: as `build_config`, or inputs that the model can't work on.

    Example:
        >>> inputs = Inputs(names=("user", "item"), dims=(4, 4), num_dense=1)
        >>> network = build_network("deepfm", inputs=inputs, hidden_units=(8,))
        >>> dense_BI, embeddings_BE, first_order_BF = torch.zeros(3, 1), torch.zeros(3, 8), torch.zeros(3, 2)
        >>> network(dense_BI, embeddings_BE, first_order_BF).shape
        torch.Size([3])
    """
    return find_model(name)(build_config(name, hyper), inputs=inputs)


def build_model(name: str, *, tables: nn.Module, inputs: Inputs, **hyper: Any) -> CTRModel:
    """A model over a collection.

    Args:
        name: a key of `MODELS`.
        tables: the collection; see `CTRModel` for the columns that it returns.
        inputs: the fields, their dims, and the number of numeric inputs.
        **hyper: the model's own hyper-parameters, as in its config dataclass.

    Raises:
        ConfigError: unknown name or hyper-parameter (with the nearest right one), or inputs that the model can't work
            on.
    """
    return CTRModel(tables, build_network(name, inputs=inputs, **hyper))
