"""DeepFM, DCN-V2 and DLRM on FuxiCTR's base model and layers (runs inside `.venv-fuxictr`).

The package on PyPI ships the library (base model, training loop, layers, loaders) but not its model zoo, where these
three classes live. They are wired here from the library's layers, in the order in which the zoo creates its modules, so
that one seed gives the same weights: `--zoo DIR` of fuxictr_run.py runs the classes of a checkout instead, to compare.
"""

import importlib.util
from pathlib import Path

import torch
from fuxictr.pytorch.layers import (
    CrossNetV2,
    FactorizationMachine,
    FeatureEmbedding,
    InnerProductInteraction,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

ZOO_FILES = {
    "deepfm": ("DeepFM", "model_zoo/DeepFM/DeepFM_torch/src/DeepFM.py"),
    "dcn_v2": ("DCNv2", "model_zoo/DCNv2/src/DCNv2.py"),
    "dlrm": ("DLRM", "model_zoo/DLRM/src/DLRM.py"),
}


class Peer(BaseModel):
    """What the three models share: the library's set-up with its optimizer, loss and initialisation."""

    def finish(self, *, optimizer: str, loss: str, learning_rate: float) -> None:
        self.compile(optimizer, loss, learning_rate)
        self.reset_parameters()
        self.model_to_device()


class DeepFM(Peer):
    """First order + factorization machine + MLP over the same embeddings, summed; every field has an embedding."""

    def __init__(self, feature_map, *, embedding_dim, learning_rate, hidden_units, net_dropout, batch_norm, **base):
        super().__init__(feature_map, **base)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(),
            output_dim=1,
            hidden_units=hidden_units,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.finish(optimizer=base["optimizer"], loss=base["loss"], learning_rate=learning_rate)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self.get_inputs(inputs)
        embeddings_BFD = self.embedding_layer(features)
        logits_B1 = self.fm(features, embeddings_BFD) + self.mlp(embeddings_BFD.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logits_B1)}


class DCNv2(Peer):
    """Full-matrix cross layers beside an MLP ("parallel"), concatenated."""

    def __init__(
        self,
        feature_map,
        *,
        embedding_dim,
        learning_rate,
        num_cross_layers,
        parallel_dnn_hidden_units,
        net_dropout,
        batch_norm,
        **base,
    ):
        super().__init__(feature_map, **base)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        width = feature_map.sum_emb_out_dim()
        self.crossnet = CrossNetV2(width, num_cross_layers)
        self.parallel_dnn = MLP_Block(
            input_dim=width,
            hidden_units=parallel_dnn_hidden_units,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.fc = nn.Linear(width + parallel_dnn_hidden_units[-1], 1)
        self.finish(optimizer=base["optimizer"], loss=base["loss"], learning_rate=learning_rate)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        embeddings_BE = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        both = torch.cat([self.crossnet(embeddings_BE), self.parallel_dnn(embeddings_BE)], dim=-1)
        return {"y_pred": self.output_activation(self.fc(both))}


class DLRM(Peer):
    """Bottom MLP over the numeric inputs, pairwise dot products of the fields, top MLP."""

    def __init__(
        self,
        feature_map,
        *,
        embedding_dim,
        learning_rate,
        bottom_mlp_units,
        bottom_mlp_dropout,
        top_mlp_units,
        top_mlp_dropout,
        batch_norm,
        **base,
    ):
        super().__init__(feature_map, **base)
        self.dense_feats = [name for name, spec in feature_map.features.items() if spec["type"] == "numeric"]
        self.embedding_layer = FeatureEmbedding(
            feature_map, embedding_dim, not_required_feature_columns=self.dense_feats
        )
        num_fields = feature_map.num_fields - len(self.dense_feats) + bool(self.dense_feats)
        if self.dense_feats:
            self.bottom_mlp = MLP_Block(
                input_dim=len(self.dense_feats),
                output_dim=embedding_dim,
                hidden_units=bottom_mlp_units,
                output_activation="ReLU",
                dropout_rates=bottom_mlp_dropout,
                batch_norm=batch_norm,
            )
        self.interact = InnerProductInteraction(num_fields=num_fields, output="inner_product")
        self.top_mlp = MLP_Block(
            input_dim=num_fields * (num_fields - 1) // 2 + embedding_dim * bool(self.dense_feats),
            output_dim=1,
            hidden_units=top_mlp_units,
            output_activation=self.output_activation,
            dropout_rates=top_mlp_dropout,
            batch_norm=batch_norm,
        )
        self.finish(optimizer=base["optimizer"], loss=base["loss"], learning_rate=learning_rate)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self.get_inputs(inputs)
        fields_BFD = self.embedding_layer(features)
        if not self.dense_feats:
            return {"y_pred": self.top_mlp(self.interact(fields_BFD))}
        # The zoo concatenates the columns as they come, [B] each, which its own loader makes one long vector: [B, I]
        # here.
        dense_BI = torch.stack([features[name].view(-1) for name in self.dense_feats], dim=-1).float()
        dense_BD = self.bottom_mlp(dense_BI)
        crossed = self.interact(torch.cat([fields_BFD, dense_BD.unsqueeze(1)], dim=1))
        return {"y_pred": self.top_mlp(torch.cat([crossed, dense_BD], dim=-1))}


MODELS: dict[str, type[BaseModel]] = {"deepfm": DeepFM, "dcn_v2": DCNv2, "dlrm": DLRM}


def shape_arguments(model: str, *, hidden: list[int], bottom: list[int], cross_layers: int, dropout: float) -> dict:
    """The model's own names for its layer sizes and its dropout."""
    if model == "deepfm":
        return {"hidden_units": hidden, "net_dropout": dropout}
    if model == "dcn_v2":
        return {"parallel_dnn_hidden_units": hidden, "num_cross_layers": cross_layers, "net_dropout": dropout}
    bottom_arguments = {"bottom_mlp_units": bottom, "bottom_mlp_dropout": dropout}
    return {**bottom_arguments, "top_mlp_units": hidden, "top_mlp_dropout": dropout}


def model_class(model: str, zoo: Path | None) -> type[BaseModel]:
    """The class wired here, or the one in a checkout of FuxiCTR."""
    if zoo is None:
        return MODELS[model]
    name, path = ZOO_FILES[model]
    spec = importlib.util.spec_from_file_location(f"zoo_{name}", zoo / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
