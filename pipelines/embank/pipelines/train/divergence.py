"""Why a loss is not finite: the first number that is not, or the largest one that is, and the rate that made it so."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchrec import KeyedTensor

from embank.ctr_models import CTRModel
from embank.tables import TableCollection
from embank.tables.collections.ids import output_key

_GROWN = 1e4
"""No parameter begins near it, so `train.lr` has made one that is larger."""


@torch.no_grad()
def divergence(model: CTRModel, dense: Tensor, looked_up: KeyedTensor) -> str:
    """The cause, in words, with the rate to lower.

    Args:
        model: as the step has met it.
        dense: the batch's numeric inputs, [B, D].
        looked_up: its embeddings.
    """
    assert isinstance(model.tables, TableCollection)
    table_of = _tables_by_key(model.tables)
    embeddings = {key: looked_up[key] for key in looked_up.keys()}  # noqa: SIM118
    parameters = dict(_parameters(model))
    key, parameter = _not_finite(embeddings), _not_finite(parameters)
    table = None if key is None else table_of[key]
    widest, weight = _largest(embeddings), _largest(parameters)
    if _not_finite({"": dense}) is not None:
        return "a numeric input is not finite"
    if table is not None and parameter is not None:
        return f"rows of table '{table}' and {parameter} are not finite; lower train.table_lr and train.lr"
    if table is not None and weight[1] > _GROWN:
        return f"rows of table '{table}' are not finite, and {weight[0]} has grown to {weight[1]:.3g}; lower train.lr"
    if table is not None:
        return f"rows of table '{table}' are not finite; lower train.table_lr"
    if parameter is not None:
        return f"{parameter} is not finite; lower train.lr"
    number = _largest({"": dense})[1]
    if number > max(widest[1], weight[1]):
        return f"the logits overflow; the largest numeric input is {number:.3g}; scale numbers down, lower train.lr"
    if weight[1] > widest[1]:
        return f"the logits overflow; the largest number is {weight[1]:.3g} in {weight[0]}; lower train.lr"
    where = f"in table '{table_of[widest[0]]}'"
    return f"the logits overflow; the largest embedding is {widest[1]:.3g} {where}; lower train.table_lr"


def _tables_by_key(tables: TableCollection) -> dict[str, str]:
    """The table behind each key of the output, which is "feature@table" where several look a feature up."""
    pairs = ((spec, feature) for spec in tables.specs for feature in spec.feature_names)
    return {output_key(spec, feature, specs=tables.specs): spec.name for spec, feature in pairs}


def _parameters(model: CTRModel) -> Iterator[tuple[str, Tensor]]:
    """What `train.lr` moves, in words."""
    assert isinstance(model.tables, TableCollection)
    for name, parameter in model.network.named_parameters():
        yield f"the network's parameter '{name}'", parameter
    for name, parameter in model.tables.methods.named_parameters():
        yield f"the parameter '{name}' of a table's method", parameter


def _not_finite(named: dict[str, Tensor]) -> str | None:
    return next((name for name, values in named.items() if not bool(values.isfinite().all())), None)


def _largest(named: dict[str, Tensor]) -> tuple[str, float]:
    """The name and the size of the largest finite number; 0 where there is none."""
    sizes = {name: values.abs()[values.isfinite()] for name, values in named.items()}
    found = {name: float(values.max()) for name, values in sizes.items() if values.numel()}
    return max(found.items(), key=lambda pair: pair[1], default=("", 0.0))
