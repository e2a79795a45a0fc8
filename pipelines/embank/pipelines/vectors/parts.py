"""Product codes that come out coarser than they were asked for, since the width of the vectors has no fitting divisor.

`pq` cuts a vector into parts of one width. A prime width has none but the whole: 16 centroids hold all vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

from embank.compression.codecs.product import ProductRows
from embank.tables import Coded, named_codec
from embank.tables.serving.codecs.composite import Composite

_COLUMNS = 2
"""Of a part, where no number of parts is asked for."""


def coarse_parts(coded: Coded, codec: str, *, dim: int) -> str | None:
    """What there is to say of vectors that are cut into half as many parts as was asked for, or fewer; else None.

    Args:
        coded: the vectors.
        codec: its name.
        dim: width of the vectors.
    """
    asked: int | None = named_codec(codec.rpartition("+")[2]).arguments.get("number")
    for codes in _product_codes(coded):
        num_parts, num_codes, columns = codes.centroids.shape
        width = num_parts * columns
        wanted = min(asked or width // _COLUMNS, width)
        if 2 * num_parts <= wanted:
            books = "is one codebook" if num_parts == 1 else f"are {num_parts:,} codebooks"
            return (
                f"codec '{codec}': {width:,} columns can't be cut into {wanted:,} parts of one width, so there "
                f"{books}, and {num_codes} centroids stand for {columns:,} columns at a time: little of a vector is "
                f"kept. {_cure(width, step=asked or _COLUMNS, is_whole=width == dim)}, or take another codec, such as "
                "int4"
            )
    return None


def _cure(width: int, *, step: int, is_whole: bool) -> str:
    """A width that can be cut: a wider one, which zeros fill, or where a codec has chosen the width a narrower one."""
    if is_whole:
        return f"Pad the vectors with zeros to {-(-width // step) * step:,} columns"
    return f"Keep {width // step * step:,} columns"


def _product_codes(coded: Coded) -> Iterator[ProductRows]:
    if isinstance(coded, ProductRows):
        yield coded
    elif isinstance(coded, Composite):
        for name in coded.parts:
            yield from _product_codes(coded.part(name))
