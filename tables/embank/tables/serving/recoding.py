"""From tables as they are served to the same tables under a codec: without the rows that were trained, as from a
bundle."""

import torch

from embank.tables.errors import ConfigError
from embank.tables.method.casts import own_defaults
from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.fp32 import Fp32
from embank.tables.serving.codecs.registry import encode
from embank.tables.serving.packed import PackedCollection
from embank.tables.serving.table import PackedTable, codec_of

_Place = tuple[int, torch.Size]


@torch.no_grad()
def recode_collection(collection: PackedCollection, *, codec: str) -> PackedCollection:
    """Packed tables whose fp32 matrices are held by a codec: what `pack_collection` gives of the trained rows under it.

    Matrices that another codec holds stay as they are; of what methods code themselves, centroids and values are coded,
    as `pack_collection` does. The result shares with the collection what stays.

    Args:
        collection: of a bundle, for example.
        codec: a name, see `named_codec`.

    Raises:
        ConfigError: there is no such codec, or it can't hold the rows of a table; names it.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])
        >>> plain = pack_collection(TableCollection([spec]))
        >>> plain.nbytes(), recode_collection(plain, codec="int4").nbytes()
        (32000, 4500)
    """
    shared: dict[_Place, Coded] = {}
    packs = []
    with own_defaults(), torch.autocast("cpu", enabled=False):
        for spec, pack in collection.packed_tables():
            try:
                matrices = [_recoded(matrix, codec, shared) for matrix in pack.coded]
            except ConfigError as error:
                raise ConfigError(f"table '{spec.name}': {error}") from error
            packs.append(PackedTable(pack.spine, matrices, pack.lookups))
    return PackedCollection(collection.specs, packs).eval()


def _recoded(matrix: Coded, codec: str, shared: dict[_Place, Coded]) -> Coded:
    """A matrix under a codec; one that several tables read becomes one."""
    if type(matrix) is not Fp32:
        return matrix if codec == "fp32" else matrix.recoded(codec)
    rows_RD = matrix.rows
    own = codec_of(codec, rows_RD)
    if own == "fp32":
        return matrix
    place = (rows_RD.data_ptr(), rows_RD.shape)
    if place not in shared:
        shared[place] = encode(rows_RD, codec=own)
    return shared[place]
