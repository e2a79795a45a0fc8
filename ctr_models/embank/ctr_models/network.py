"""What every CTR network is: a torch module over plain tensors, and the description of its inputs.

Shapes: B batch, F categorical fields, I numeric (dense) inputs, D dim, E sum of the fields' dims, P pairs of fields.
"""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embank.tables.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a batch holds: named categorical fields with their embedding dims, and a number of numeric inputs.

    Args:
        names: categorical fields, in the order of the embedding columns.
        dims: embedding dim of each field, same order.
        num_dense: numeric inputs per row; may be 0.
        padded_dim: where a model multiplies fields, narrower ones come to this dim by zeros behind them, which adds no
            parameters, and layers that read all fields side by side leave the zeros out. None brings them to the
            largest dim by a learned matrix per field.

    Raises:
        ConfigError: names and dims differ in number, a name appears twice, a dim is below 1, or there is no input at
            all.

    Example:
        >>> inputs = Inputs(names=("user", "item"), dims=(8, 4), num_dense=1)
        >>> inputs.num_fields, inputs.width
        (2, 12)
    """

    names: tuple[str, ...]
    dims: tuple[int, ...]
    num_dense: int
    padded_dim: int | None = None

    def __post_init__(self) -> None:
        if len(self.names) != len(self.dims):
            raise ConfigError(f"{len(self.names)} fields but {len(self.dims)} dims. Give one dim for each field.")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise ConfigError(f"field '{twice[0]}' appears twice. Give every field a name of its own.")
        for name, dim in zip(self.names, self.dims, strict=True):
            if dim < 1:
                raise ConfigError(f"field '{name}' has dim {dim}. Use a dim of at least 1.")
        if self.padded_dim is not None and self.padded_dim < max(self.dims, default=0):
            raise ConfigError(
                f"padded_dim is {self.padded_dim}, but a field has dim {max(self.dims)}. Pad to the largest dim or "
                "more."
            )
        if self.num_dense < 0:
            raise ConfigError(f"num_dense is {self.num_dense}. Use 0 when there is no numeric input.")
        if not self.names and not self.num_dense:
            raise ConfigError(
                "there is no input: 0 categorical fields and 0 numeric inputs. Name at least one feature."
            )

    @property
    def num_fields(self) -> int:
        """Number of categorical fields (F)."""
        return len(self.names)

    @property
    def width(self) -> int:
        """Number of embedding columns (E)."""
        return sum(self.dims)

    @property
    def common_dim(self) -> int:
        """The dim to which fields of different dims are aligned: `padded_dim`, or the largest (0 without fields)."""
        return max(self.dims, default=0) if self.padded_dim is None else self.padded_dim


class _Values(torch.autograd.Function):
    """What the tables have returned. Its gradient is contiguous, as they want it: made so within the graph, that is no
    copy of its own."""

    @staticmethod
    def forward(values_BV: Tensor) -> Tensor:
        return values_BV.view_as(values_BV)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous()


class Network(nn.Module, ABC):
    """A CTR model without its tables. One file per model; each has a frozen dataclass `Config` beside it."""

    Config: ClassVar[type]
    # Whether the model has a weight per id (tables of dim 1, one per field), and whether it has embeddings at all.
    first_order: ClassVar[bool] = False
    embeddings: ClassVar[bool] = True

    @abstractmethod
    def __init__(self, config: Any, *, inputs: Inputs) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs

    @abstractmethod
    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor, first_order_BF: Tensor) -> Tensor:
        """Compute logits.

        Args:
            dense_BI: numeric inputs; I may be 0.
            embeddings_BE: the fields' pooled embeddings side by side, in the order of `Inputs.names`.
            first_order_BF: one weight per field, or [B, 0] for a model without first-order tables.

        Returns:
            logits_B, before the sigmoid.
        """

    @property
    def num_embedding_columns(self) -> int:
        """E, of the embeddings that it reads."""
        return self.inputs.width if self.embeddings else 0

    @property
    def num_first_order_columns(self) -> int:
        """F, of the weights per id that it reads."""
        return self.inputs.num_fields if self.first_order else 0

    def score(self, dense_BI: Tensor, values_BV: Tensor) -> Tensor:
        """Logits [B] of numeric inputs and of what the tables have returned, [B, E + F]."""
        if torch.is_grad_enabled():
            values_BV = _Values.apply(values_BV)  # type: ignore[no-untyped-call]
        sizes = [self.num_embedding_columns, self.num_first_order_columns]
        if all(sizes):  # one split, not two slices: its backward is one concatenation
            embeddings_BE, first_order_BF = torch.split(values_BV, sizes, dim=1)
        else:  # nothing to split, and so no copy of the gradient
            none_B0 = values_BV.new_empty(values_BV.shape[0], 0)
            embeddings_BE, first_order_BF = (values_BV, none_B0) if sizes[0] else (none_B0, values_BV)
        logits_B: Tensor = self(dense_BI, embeddings_BE, first_order_BF)
        return logits_B

    def readers(self) -> dict[str, Tensor]:
        """Weights [O, E] of the linear layers that read the embeddings as they were looked up, by the layer's name.

        Columns are the embeddings' in the order of `Inputs.names`; what lies between them and the layer (an alignment
        of dims, a constant gate) is multiplied in. Empty for a network whose first step is a product of fields, of
        which none is linear in them. Layers that read every field by the same weights, such as attention, do not tell
        fields apart and are left out.
        """
        return {}


def require_fields(inputs: Inputs, *, model: str, instead: str) -> None:
    """Refuse inputs without a categorical field for a model that needs their dim.

    Raises:
        ConfigError: `inputs` has no categorical field.
    """
    if not inputs.num_fields:
        raise ConfigError(
            f"model '{model}' works on embeddings, but there are 0 categorical fields ({inputs.num_dense} numeric "
            f"inputs). Add a categorical feature or use {instead}."
        )


def check_positive(name: str, values: tuple[int, ...]) -> None:
    """Refuse a layer size or count below 1; `name` is the key as the user wrote it.

    Raises:
        ConfigError: a value is below 1.
    """
    for value in values:
        if value < 1:
            raise ConfigError(f"model.{name} holds {value}. Use values of at least 1.")


def check_dropout(value: float, *, name: str = "dropout") -> None:
    """Refuse a dropout rate outside [0, 1).

    Raises:
        ConfigError: the rate is outside [0, 1).
    """
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"model.{name} is {value}. Use a rate of at least 0 and below 1.")
