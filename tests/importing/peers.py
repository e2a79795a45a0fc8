"""Models with the names and the arithmetic of FuxiCTR's and DeepCTR-Torch's, in torch alone.

`benchmarks/imports.py` compares the libraries themselves to what is imported; these stand for them in the test suite.
Shapes: B batch, F fields, D dim.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OOV, PAD = "__OOV__", "__PAD__"


def stack(
    sizes: Sequence[int], *, out: int | None = None, batch_norm: bool = False, dropout: bool = False
) -> nn.Module:
    """FuxiCTR's block of layers, under its name `mlp`."""
    layers: list[nn.Module] = []
    for width, units in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(width, units), *([nn.BatchNorm1d(units)] if batch_norm else []), nn.ReLU()]
        layers += [nn.Dropout(0.5)] if dropout else []
    layers += [] if out is None else [nn.Linear(sizes[-1], out)]
    block = nn.Module()
    block.mlp = nn.Sequential(*layers)
    return block


class FuxiTables(nn.Module):
    """`embedding_layer.embedding_layer.embedding_layers`: ids and numbers in one order."""

    def __init__(self, sizes: Mapping[str, int | None], dim: int) -> None:
        super().__init__()
        layers = {
            name: nn.Linear(1, dim, bias=False) if size is None else nn.Embedding(size, dim, padding_idx=0)
            for name, size in sizes.items()
        }
        self.embedding_layer = nn.Module()
        self.embedding_layer.embedding_layers = nn.ModuleDict(layers)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        layers = self.embedding_layer.embedding_layers
        return torch.stack(
            [layers[n](inputs[n].view(-1, 1) if inputs[n].is_floating_point() else inputs[n]) for n in layers], 1
        )


def products(fields_BFD: Tensor) -> Tensor:
    """Of all pairs of fields."""
    rows, columns = torch.triu_indices(fields_BFD.shape[1], fields_BFD.shape[1], offset=1)
    return (fields_BFD[:, rows] * fields_BFD[:, columns]).sum(2)


class FuxiDeepFM(nn.Module):
    def __init__(self, sizes: Mapping[str, int | None], *, dim: int) -> None:
        super().__init__()
        self.embedding_layer = FuxiTables(sizes, dim)
        self.fm = nn.Module()
        self.fm.lr_layer = nn.Module()
        self.fm.lr_layer.bias = nn.Parameter(torch.randn(1))
        self.fm.lr_layer.embedding_layer = FuxiTables(sizes, 1)
        self.mlp = stack([len(sizes) * dim, 8, 6], out=1, batch_norm=True, dropout=True)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        fields_BFD = self.embedding_layer(inputs)
        linear_B = self.fm.lr_layer.embedding_layer(inputs).sum(dim=(1, 2)) + self.fm.lr_layer.bias
        return linear_B + products(fields_BFD).sum(1) + self.mlp.mlp(fields_BFD.flatten(1)).squeeze(1)


class FuxiDLRM(nn.Module):
    def __init__(self, sizes: Mapping[str, int | None], *, dim: int) -> None:
        super().__init__()
        self.numbers = [name for name, size in sizes.items() if size is None]
        self.embedding_layer = FuxiTables({name: size for name, size in sizes.items() if size}, dim)
        fields = len(sizes) - len(self.numbers) + 1
        self.bottom_mlp = stack([len(self.numbers), 5], out=dim)
        self.interact = nn.Module()
        self.interact.triu_mask = nn.Parameter(torch.ones(fields, fields).triu(1).bool(), requires_grad=False)
        self.top_mlp = stack([fields * (fields - 1) // 2 + dim, 6], out=1)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        bottom_BD = self.bottom_mlp.mlp(torch.stack([inputs[name] for name in self.numbers], 1)).relu()
        fields_BFD = torch.cat([self.embedding_layer(inputs), bottom_BD.unsqueeze(1)], dim=1)
        return self.top_mlp.mlp(torch.cat([products(fields_BFD), bottom_BD], dim=1)).squeeze(1)


class FuxiDCNv2(nn.Module):
    def __init__(self, sizes: Mapping[str, int | None], *, dim: int) -> None:
        super().__init__()
        width = len(sizes) * dim
        self.embedding_layer = FuxiTables(sizes, dim)
        self.crossnet = nn.Module()
        self.crossnet.cross_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.parallel_dnn = stack([width, 6])
        self.fc = nn.Linear(width + 6, 1)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        flat_BW = self.embedding_layer(inputs).flatten(1)
        cross_BW = flat_BW
        for layer in self.crossnet.cross_layers:
            cross_BW = cross_BW + flat_BW * layer(cross_BW)
        return self.fc(torch.cat([cross_BW, self.parallel_dnn.mlp(flat_BW)], dim=1)).squeeze(1)


class DeepCTRWDL(nn.Module):
    def __init__(self, sizes: Mapping[str, int], numbers: Sequence[str], *, dim: int) -> None:
        super().__init__()
        self.numbers = list(numbers)
        self.embedding_dict = nn.ModuleDict({name: nn.Embedding(size, dim) for name, size in sizes.items()})
        self.linear_model = nn.Module()
        self.linear_model.embedding_dict = nn.ModuleDict({name: nn.Embedding(size, 1) for name, size in sizes.items()})
        self.linear_model.weight = nn.Parameter(torch.randn(len(numbers), 1))
        self.out = nn.Module()
        self.out.bias = nn.Parameter(torch.randn(1))
        widths = [len(sizes) * dim + len(numbers), 8, 6]
        self.dnn = nn.Module()
        self.dnn.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.dnn_linear = nn.Linear(6, 1, bias=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        numbers_BI = torch.stack([inputs[name] for name in self.numbers], 1)
        hidden_BW = torch.cat([*(table(inputs[n]) for n, table in self.embedding_dict.items()), numbers_BI], dim=1)
        linear_B = sum(table(inputs[n]).squeeze(1) for n, table in self.linear_model.embedding_dict.items())
        for layer in self.dnn.linears:
            hidden_BW = layer(hidden_BW).relu()
        deep_B = self.dnn_linear(hidden_BW).squeeze(1)
        return linear_B + (numbers_BI @ self.linear_model.weight).squeeze(1) + deep_B + self.out.bias


def randomised(model: nn.Module) -> nn.Module:
    """A model as if it were trained: other statistics, larger tables."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator) / 3)
    return model.eval()


def fuxictr_files(
    folder: Path, vocabularies: Mapping[str, Sequence[str]], order: Sequence[str]
) -> dict[str, dict[str, int]]:
    """FuxiCTR's feature_vocab.json and feature_map.json of features in an order; those without tokens are numbers."""
    rows, features = {}, []
    for name in order:
        if name not in vocabularies:
            features.append({name: {"source": "", "type": "numeric"}})
            continue
        tokens = sorted(vocabularies[name])
        rows[name] = {PAD: 0, **{token: i + 1 for i, token in enumerate(tokens)}, OOV: len(tokens) + 1}
        spec: dict[str, Any] = {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": len(tokens) + 2}
        features.append({name: spec})
    (folder / "feature_vocab.json").write_text(json.dumps(rows))
    (folder / "feature_map.json").write_text(json.dumps({"dataset_id": "x", "features": features, "labels": ["click"]}))
    return rows
