"""From a batch's columns to what a network works on: aligned fields [B, F, D], flat inputs [B, W], first-order sums
[B]."""

import torch
from torch import Tensor, nn

from embank.ctr_models.network import Inputs


class FieldAlignment(nn.Module):
    """Bring fields of different dims to the largest one, so that inner products between them exist.

    A field that already has the largest dim passes unchanged. Each other one gets a linear projection without bias
    (those of fields with the same dim run as one batched product), or is padded with zeros. When all dims are equal the
    module has no parameters and returns a view.

    Source: Ginart et al. 2019 (mixed dimension embeddings), section 3, equation 4, where every narrow block is
    projected likewise. Padding is what a search over nested widths means by a narrow field (Lyu et al. 2022, OptEmbed,
    section 3.3).

    Args:
        dims: embedding dim of each field.
        padded_dim: pad narrower fields to this dim; None projects them to the largest one.

    Attributes:
        flat_width: columns of `flat`.
    """

    columns: Tensor | None

    def __init__(self, dims: tuple[int, ...], *, padded_dim: int | None = None) -> None:
        super().__init__()
        self.dims = dims
        self.dim = padded_dim or max(dims)
        narrow = sorted({dim for dim in dims if dim < self.dim})
        self.weights = nn.ParameterDict()
        self.groups: dict[int, list[int]] = {}
        columns = [i * self.dim + column for i, dim in enumerate(dims) for column in range(dim)]
        pads = padded_dim is not None and bool(narrow)
        self.flat_width = len(columns) if pads else len(dims) * self.dim
        # Where the embeddings' columns go; None where nothing is padded.
        self.register_buffer("columns", torch.tensor(columns) if pads else None, persistent=False)
        if padded_dim is None:
            self.groups = {dim: [i for i, d in enumerate(dims) if d == dim] for dim in narrow}
        for dim, members in self.groups.items():
            weight = torch.empty(len(members), dim, self.dim)
            for matrix in weight:
                nn.init.xavier_normal_(matrix)
            self.weights[str(dim)] = nn.Parameter(weight)

    def forward(self, embeddings_BE: Tensor) -> Tensor:
        """Align: [B, E] to [B, F, D]."""
        if self.columns is not None:
            zeros_BW = embeddings_BE.new_zeros(embeddings_BE.shape[0], len(self.dims) * self.dim)
            embeddings_BE = zeros_BW.index_copy(1, self.columns, embeddings_BE)
        if not self.groups:
            return embeddings_BE.view(embeddings_BE.shape[0], len(self.dims), self.dim)
        columns = list(torch.split(embeddings_BE, list(self.dims), dim=1))
        for dim, members in self.groups.items():
            narrow_GBd = torch.stack([columns[i] for i in members])
            wide_GBD = torch.bmm(narrow_GBd, self.weights[str(dim)])
            for i, wide_BD in zip(members, wide_GBD.unbind(0), strict=True):
                columns[i] = wide_BD
        return torch.stack(columns, dim=1)

    def flat(self, fields_BFD: Tensor, embeddings_BE: Tensor) -> Tensor:
        """The fields side by side for a layer that reads them all, [B, flat_width], without the padding."""
        return fields_BFD.flatten(1) if self.columns is None else embeddings_BE

    def embedding_columns(self, weight_OW: Tensor) -> Tensor:
        """Of a layer over the flat fields, [O, flat_width], the weights of the columns before alignment, [O, E]."""
        if self.columns is not None:
            return weight_OW
        blocks = list(weight_OW.reshape(-1, len(self.dims), self.dim).unbind(1))
        for dim, members in self.groups.items():
            for matrix_dD, i in zip(self.weights[str(dim)], members, strict=True):
                blocks[i] = blocks[i] @ matrix_dD.T
        return torch.cat(blocks, dim=1)


class NumericVectors(nn.Module):
    """A learned vector v_i per numeric input; the input's field is x_i * v_i (DeepFM, section 3.1; FuxiCTR does the
    same)."""

    def __init__(self, num_dense: int, dim: int) -> None:
        super().__init__()
        # Small, as tables start. Numeric inputs reach 10 after a logarithm, and a sum over pairs of fields multiplies
        # two of them: with Xavier's rule the first logits would be in the hundreds.
        self.weight = nn.Parameter(torch.randn(num_dense, dim) * 0.01)

    def forward(self, dense_BI: Tensor) -> Tensor:
        """Scale: [B, I] to [B, I, D]."""
        return dense_BI.unsqueeze(2) * self.weight


class Fields(nn.Module):
    """Every input as a field of one common dim: categorical fields first, numeric ones behind them.

    Attributes:
        num_fields: F + I.
        dim: the common dim D, the largest of the categorical fields.
        flat_width: columns of `flat`.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.num_fields = inputs.num_fields + inputs.num_dense
        self.dim = inputs.common_dim
        self.alignment = FieldAlignment(inputs.dims, padded_dim=inputs.padded_dim)
        self.numeric = NumericVectors(inputs.num_dense, self.dim) if inputs.num_dense else None
        self.flat_width = self.alignment.flat_width + inputs.num_dense * self.dim

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor) -> Tensor:
        """Build [B, F + I, D]."""
        fields_BFD: Tensor = self.alignment(embeddings_BE)
        if self.numeric is None:
            return fields_BFD
        return torch.cat([fields_BFD, self.numeric(dense_BI).to(fields_BFD.dtype)], dim=1)

    def flat(self, fields_BFD: Tensor, embeddings_BE: Tensor) -> Tensor:
        """Every field side by side, [B, flat_width]: what `forward` returned, without the zeros of padded fields.

        Args:
            fields_BFD: what `forward` returned.
            embeddings_BE: what it was made of.
        """
        if self.alignment.columns is None:
            return fields_BFD.flatten(1)
        numeric_BW = fields_BFD[:, len(self.alignment.dims) :].flatten(1)
        return torch.cat([embeddings_BE.to(fields_BFD.dtype), numeric_BW], dim=1)

    def embedding_columns(self, weight_OW: Tensor) -> Tensor:
        """Of a layer that reads `flat` first (and other columns after it), the embeddings' weights [O, E]."""
        return self.alignment.embedding_columns(weight_OW[:, : self.alignment.flat_width])


class FlatInputs(nn.Module):
    """All inputs side by side, each field with its own dim, numeric inputs in front.

    Args:
        inputs: the batch's description.
        embed_numeric: give each numeric input a learned vector of the common dim instead of one raw column.

    Attributes:
        width: number of columns.
    """

    def __init__(self, inputs: Inputs, *, embed_numeric: bool = False) -> None:
        super().__init__()
        self.has_fields = inputs.num_fields > 0
        self.has_dense = inputs.num_dense > 0
        embed = embed_numeric and self.has_dense and self.has_fields
        self.numeric = NumericVectors(inputs.num_dense, inputs.common_dim) if embed else None
        self.width = inputs.width + inputs.num_dense * (inputs.common_dim if embed else 1)
        self.num_embedding_columns = inputs.width

    def forward(self, dense_BI: Tensor, embeddings_BE: Tensor) -> Tensor:
        """Concatenate to [B, width]."""
        if not self.has_dense:
            return embeddings_BE
        numeric_BI = dense_BI if self.numeric is None else self.numeric(dense_BI).flatten(1)
        return torch.cat([numeric_BI, embeddings_BE], dim=1) if self.has_fields else numeric_BI

    def embedding_columns(self, weight_OW: Tensor) -> Tensor:
        """Of a layer that reads these inputs, the embeddings' weights [O, E]."""
        return weight_OW[:, self.width - self.num_embedding_columns :]


class FirstOrder(nn.Module):
    """The linear part: bias + sum of the ids' weights + sum of w_i * x_i over the numeric inputs."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        # The scale of a Linear(1, 1) by Xavier's rule would be 1; a sum of many such terms starts far too loud.
        self.weight = nn.Parameter(torch.randn(inputs.num_dense) * 0.01) if inputs.num_dense else None

    def forward(self, dense_BI: Tensor, first_order_BF: Tensor) -> Tensor:
        """Sum up: [B, I] and [B, F] (F may be 0) to [B]."""
        out_B = first_order_BF.sum(dim=1) + self.bias
        return out_B if self.weight is None else out_B + dense_BI @ self.weight
