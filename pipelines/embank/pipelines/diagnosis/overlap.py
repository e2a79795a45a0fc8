"""Do features read the rows that they share in different directions?

Coleman et al. (NeurIPS 2023, section 4 on gradients of a shared row): a row that a feature t reads by weights A_t gets
from every other feature s that hits it a gradient in the row space of A_s. It leaves what t reads of the row alone if
and only if A_t A_s^T = 0, which training pushes towards. Readers of a table of width w that are all orthogonal have
ranks that sum up to at most w, so w is the budget of ranks that features compete for.

Legend: O outputs of a first layer, D dim of a feature, w width of a row, c lookups of a feature, F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embank.compression.methods.unified import Unified
from embank.ctr_models import Network
from embank.tables import Method, TableCollection


@dataclass(frozen=True, kw_only=True)
class Reader:
    """The weights by which one lookup of a feature is read by a first layer.

    Args:
        feature: its name.
        table: the physical table that is looked up.
        lookup: number of the lookup within the feature.
        weight: float64 [O, w].
    """

    feature: str
    table: str
    lookup: int
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The readers of one table, or of tables of one width that are not shared, in one first layer.

    Args:
        layer: its name, see `Network.readers`.
        table: the physical table; None for features that have tables of their own.
        width: w.
        features: in the order of the network's inputs.
        matrix: float64 [F, F], see `overlap_of`.
        ranks: by feature, the effective rank of the reader of each of its lookups.
    """

    layer: str
    table: str | None
    width: int
    features: Sequence[str]
    matrix: Tensor
    ranks: Mapping[str, Sequence[float]]

    @property
    def mean(self) -> float:
        """Mean overlap of two different features."""
        num = len(self.features)
        return float((self.matrix.sum() - self.matrix.trace()) / (num * (num - 1)))

    @property
    def rank_sum(self) -> float:
        """Effective ranks of all readers together; above `width` they can't all be orthogonal."""
        return sum(sum(ranks) for ranks in self.ranks.values())


def overlap_of(first_Ow: Tensor, second_Ow: Tensor) -> float:
    """How far two readers have the same row space: ||A B^T|| / sqrt(||A A^T|| ||B B^T||) in Frobenius norms.

    0 if and only if A B^T = 0, so that what one feature teaches a row is invisible to the other; 1 if and only if A^T A
    and B^T B are multiples of each other; |cos| of the angle for readers of one output. It is the square root of the
    cosine between A^T A and B^T B, and depends on neither number of outputs nor scale. (Over ||A|| ||B|| instead, a
    reader of rank r would overlap with itself by r**-0.5.) Two readers that use the whole width evenly overlap by 1:
    nothing can hide there.

    Args:
        first_Ow, second_Ow: of one width; their numbers of outputs may differ.

    Returns:
        0 where either is zero.
    """
    first, second = first_Ow.T @ first_Ow, second_Ow.T @ second_Ow
    scale = float(first.norm() * second.norm())
    return 0.0 if scale == 0 else float(((first * second).sum() / scale).clamp(0, 1).sqrt())


def effective_rank(weight_Ow: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli, EUSIPCO 2007); 0 for a zero
    matrix."""
    values = torch.linalg.svdvals(weight_Ow.double())
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values[values > 0] / total
    return float((-(shares * shares.log()).sum()).exp())


def readers_of(method: Method, weight_OD: Tensor) -> list[Reader]:
    """The readers of a feature's physical rows, from the weights of its logical row.

    For Unified Embedding there is one per lookup, projections multiplied in. Of another method it is the whole block,
    by which rows of its first physical table are read up to what the method does to single rows or elements (a
    multiplier, a second factor).
    """
    feature, tables = method.spec.feature_names[0], [method.physical[0].name if method.physical else method.spec.name]
    weights = [weight_OD]
    if isinstance(method, Unified) and method.placement != "exact":
        tables = [table.name for table in method.physical]
        if method.projection is None:
            weights = list(torch.split(weight_OD, method.width, dim=1))
        else:
            weights = [weight_OD @ matrix_wD.T for matrix_wD in method.projection.detach().to(weight_OD.dtype)]
    return [
        Reader(feature=feature, table=table, lookup=i, weight=weight)
        for i, (table, weight) in enumerate(zip(tables, weights, strict=True))
    ]


@torch.no_grad()
def overlaps(network: Network, tables: TableCollection) -> list[Overlap]:
    """Overlaps of the features in every first layer: by shared table, or where no two features share one, by width.

    Args:
        network: of the model.
        tables: of the model; each table of one feature.

    Returns:
        None for a network that reads no embedding linearly, see `Network.readers`.
    """
    found = []
    methods = {method.spec.name: method for method in tables.built_methods()}
    for layer, weight_OE in network.readers().items():
        columns = torch.split(weight_OE.detach().double(), list(network.inputs.dims), dim=1)
        readers = [
            reader
            for name, weight_OD in zip(network.inputs.names, columns, strict=True)
            for reader in readers_of(methods[name], weight_OD)
        ]
        groups: dict[str, list[Reader]] = {}
        for reader in readers:
            groups.setdefault(reader.table, []).append(reader)
        shared = {table: group for table, group in groups.items() if len({reader.feature for reader in group}) > 1}
        found += [_overlap(layer, table, group) for table, group in shared.items()]
        if not shared:
            widths = dict.fromkeys(reader.weight.shape[1] for reader in readers)
            same = [[reader for reader in readers if reader.weight.shape[1] == width] for width in widths]
            found += [_overlap(layer, None, g) for g in same if len({reader.feature for reader in g}) > 1]
    return found


def _overlap(layer: str, table: str | None, readers: Sequence[Reader]) -> Overlap:
    features = list(dict.fromkeys(reader.feature for reader in readers))
    of = {name: [reader for reader in readers if reader.feature == name] for name in features}
    stacked = [torch.cat([reader.weight for reader in of[name]]) for name in features]
    return Overlap(
        layer=layer,
        table=table,
        width=readers[0].weight.shape[1],
        features=features,
        matrix=torch.tensor([[overlap_of(a, b) for b in stacked] for a in stacked], dtype=torch.float64),
        ranks={name: [effective_rank(reader.weight) for reader in of[name]] for name in features},
    )
