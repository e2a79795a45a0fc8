"""Which parameter of another framework's model is which of ours, where the mathematics are the same.

What can't be seen from parameters, activations and dropout, is the configuration's to say as the source had it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A stack of linear layers, with normalisations and learned activations between them.

    Args:
        ours: what the names of its parameters begin with.
        theirs: the same in the source; a stack may have several parts there, one behind the other.
        inputs: layouts of the columns that the first layer reads, the source's and ours; None for the same order.
        setting: of the configuration that has their sizes.
    """

    ours: str
    theirs: Sequence[str]
    inputs: tuple[str, str] | None = None
    setting: str


@dataclass(frozen=True, kw_only=True)
class One:
    """A single parameter, or one for each layer where the names have an {i}.

    Args:
        ours: its name.
        theirs: names that it may have in the source; {number} is each number, {k} each expert, [i] the i-th part of
            one tensor. None of them: the source has no such parameter, and it is 0.
        inputs: layouts of what is read or written, the source's and ours.
        axes: of ours whose columns are in the layouts' order.
        transposed: whether the source has the last two axes the other way round.
        setting: of the configuration that has its size.
        unless: a setting and the values of it where the order of columns is the same.
    """

    ours: str
    theirs: Sequence[str]
    inputs: tuple[str, str] | None = None
    axes: Sequence[int] = ()
    transposed: bool = False
    setting: str
    unless: tuple[str, Sequence[str]] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model of a framework becomes one of ours.

    Args:
        theirs: the model's name there.
        parts: of the network.
        needs: what the configuration has to say, where there are numbers, for the mathematics to be the same.
        numbers: False where they are others with numbers among the inputs.
    """

    theirs: str
    parts: Sequence[Layers | One]
    needs: Mapping[str, Any] = field(default_factory=dict)
    numbers: bool = True


_FUXI = "embedding_layer.embedding_layer.embedding_layers.{number}.weight"
_MIXED = ("mixed", "numbers_then_ids")
_FIELDS = ("mixed", "ids_then_numbers")
_DEEP = ("ids_then_numbers", "numbers_then_ids")
_VECTORS = {"embed_numeric": True}
_COLUMNS = {"embed_numeric": False}


def _linear(*, bias: Sequence[str], weight: Sequence[str]) -> list[One]:
    return [
        One(ours="linear.bias", theirs=bias, setting="name"),
        One(ours="linear.weight", theirs=weight, setting="name"),
    ]


def _fuxi_linear(*, at: Sequence[str], has_bias: bool = True) -> list[One]:
    return _linear(
        bias=[f"{place}.bias" for place in at] if has_bias else [], weight=[f"{place}.{_FUXI}" for place in at]
    )


_DEEPCTR_LINEAR = _linear(bias=["out.bias"], weight=["linear_model.weight"])
_FUXI_FIELDS = One(ours="fields.numeric.weight", theirs=[_FUXI], setting="name")
_FUXI_FLAT = One(ours="flat.numeric.weight", theirs=[_FUXI], setting="name")
_DEEPCTR_DNN = ["dnn.linears", "dnn.bn", "dnn_linear"]


_FUXI_OUT = [
    One(
        ours="out.weight",
        theirs=["fc.weight"],
        inputs=_MIXED,
        axes=[1],
        setting="hidden_units",
        unless=("structure", ["stacked", "stacked_parallel"]),  # which has no column of the inputs
    ),
    One(ours="out.bias", theirs=["fc.bias"], setting="hidden_units"),
]
_CROSS = "num_cross_layers"
RECIPES: Mapping[str, Mapping[str, Recipe]] = {
    "torchrec": {
        "dlrm": Recipe(
            theirs="torchrec.models.dlrm.DLRM",
            parts=[
                Layers(ours="bottom", theirs=["dense_arch.model._mlp"], setting="bottom"),
                Layers(
                    ours="top",
                    theirs=["over_arch.model.0._mlp", "over_arch.model.1"],
                    inputs=("bottom_first", "bottom_first"),
                    setting="top",
                ),
            ],
        ),
    },
    "fuxictr": {
        "lr": Recipe(theirs="LR", parts=_fuxi_linear(at=["lr_layer", "lr"])),
        "fm": Recipe(theirs="FM", parts=[*_fuxi_linear(at=["fm.lr_layer"]), _FUXI_FIELDS]),
        "wdl": Recipe(
            theirs="WideDeep",
            parts=[
                *_fuxi_linear(at=["lr_layer"], has_bias=False),
                _FUXI_FLAT,
                Layers(ours="deep", theirs=["dnn.mlp"], inputs=_MIXED, setting="hidden_units"),
            ],
            needs=_VECTORS,
        ),
        "fnn": Recipe(
            theirs="DNN",
            parts=[_FUXI_FLAT, Layers(ours="deep", theirs=["mlp.mlp"], inputs=_MIXED, setting="hidden_units")],
            needs=_VECTORS,
        ),
        "ipnn": Recipe(
            theirs="PNN",
            parts=[
                _FUXI_FIELDS,
                Layers(
                    ours="deep", theirs=["dnn.mlp"], inputs=("mixed_pairs", "ids_numbers_pairs"), setting="hidden_units"
                ),
            ],
        ),
        "deepfm": Recipe(
            theirs="DeepFM",
            parts=[
                *_fuxi_linear(at=["fm.lr_layer"]),
                _FUXI_FIELDS,
                Layers(ours="deep", theirs=["mlp.mlp"], inputs=_FIELDS, setting="hidden_units"),
            ],
        ),
        "dcn": Recipe(
            theirs="DCN",
            parts=[
                _FUXI_FLAT,
                One(
                    ours="cross.weights.{i}",
                    theirs=["crossnet.cross_net.{i}.weight.weight"],
                    inputs=_MIXED,
                    axes=[0],
                    transposed=True,
                    setting=_CROSS,
                ),
                One(
                    ours="cross.biases.{i}",
                    theirs=["crossnet.cross_net.{i}.bias"],
                    inputs=_MIXED,
                    axes=[0],
                    setting=_CROSS,
                ),
                Layers(ours="deep", theirs=["dnn.mlp"], inputs=_MIXED, setting="hidden_units"),
                *_FUXI_OUT,
            ],
            needs=_VECTORS,
        ),
        "dcn_v2": Recipe(
            theirs="DCNv2",
            parts=[
                _FUXI_FLAT,
                One(
                    ours="cross.layers.{i}.weight",
                    theirs=["crossnet.cross_layers.{i}.weight"],
                    inputs=_MIXED,
                    axes=[0, 1],
                    setting=_CROSS,
                ),
                One(
                    ours="cross.layers.{i}.bias",
                    theirs=["crossnet.cross_layers.{i}.bias"],
                    inputs=_MIXED,
                    axes=[0],
                    setting=_CROSS,
                ),
                One(ours="cross.down.{i}", theirs=["crossnet.V_list.{i}"], inputs=_MIXED, axes=[1], setting=_CROSS),
                One(ours="cross.middle.{i}", theirs=["crossnet.C_list.{i}"], transposed=True, setting=_CROSS),
                One(
                    ours="cross.up.{i}",
                    theirs=["crossnet.U_list.{i}"],
                    inputs=_MIXED,
                    axes=[2],
                    transposed=True,
                    setting=_CROSS,
                ),
                One(ours="cross.biases.{i}", theirs=["crossnet.bias.{i}"], inputs=_MIXED, axes=[0], setting=_CROSS),
                One(
                    ours="cross.gate.weight",
                    theirs=["crossnet.gating.{k}.weight"],
                    inputs=_MIXED,
                    axes=[1],
                    setting="num_experts",
                ),
                Layers(ours="beside", theirs=["parallel_dnn.mlp"], inputs=_MIXED, setting="hidden_units"),
                Layers(ours="above", theirs=["stacked_dnn.mlp"], inputs=_MIXED, setting="hidden_units"),
                *_FUXI_OUT,
            ],
            needs=_VECTORS,
        ),
        "dlrm": Recipe(
            theirs="DLRM",
            parts=[
                Layers(ours="bottom", theirs=["bottom_mlp.mlp"], inputs=("numbers", "numbers"), setting="bottom"),
                Layers(ours="top", theirs=["top_mlp.mlp"], inputs=("bottom_last", "bottom_first"), setting="top"),
            ],
        ),
    },
    "deepctr": {
        "deepfm": Recipe(
            theirs="DeepFM",
            parts=[
                *_DEEPCTR_LINEAR,
                Layers(
                    ours="deep",
                    theirs=_DEEPCTR_DNN,
                    inputs=("ids_then_numbers", "ids_then_numbers"),
                    setting="hidden_units",
                ),
            ],
            numbers=False,
        ),
        "wdl": Recipe(
            theirs="WDL",
            parts=[
                *_DEEPCTR_LINEAR,
                Layers(ours="deep", theirs=_DEEPCTR_DNN, inputs=_DEEP, setting="hidden_units"),
            ],
            needs=_COLUMNS,
        ),
        "dcn": Recipe(
            theirs="DCN without linear_feature_columns",
            parts=[
                One(ours="cross.weights.{i}", theirs=["crossnet.kernels[i]"], inputs=_DEEP, axes=[0], setting=_CROSS),
                One(ours="cross.biases.{i}", theirs=["crossnet.bias[i]"], inputs=_DEEP, axes=[0], setting=_CROSS),
                Layers(ours="deep", theirs=["dnn.linears", "dnn.bn"], inputs=_DEEP, setting="hidden_units"),
                One(ours="out.weight", theirs=["dnn_linear.weight"], inputs=_DEEP, axes=[1], setting="hidden_units"),
                One(ours="out.bias", theirs=["out.bias"], setting="hidden_units"),
            ],
            needs=_COLUMNS,
        ),
        "dcn_v2": Recipe(
            theirs="DCN without linear_feature_columns, cross_parameterization='matrix'",
            parts=[
                One(
                    ours="cross.layers.{i}.weight",
                    theirs=["crossnet.kernels[i]"],
                    inputs=_DEEP,
                    axes=[0, 1],
                    setting=_CROSS,
                ),
                One(ours="cross.layers.{i}.bias", theirs=["crossnet.bias[i]"], inputs=_DEEP, axes=[0], setting=_CROSS),
                Layers(ours="beside", theirs=["dnn.linears", "dnn.bn"], inputs=_DEEP, setting="hidden_units"),
                One(ours="out.weight", theirs=["dnn_linear.weight"], inputs=_DEEP, axes=[1], setting="hidden_units"),
                One(ours="out.bias", theirs=["out.bias"], setting="hidden_units"),
            ],
            needs=_COLUMNS,
        ),
    },
}
"""By framework and by the name of our model."""
