"""Product codes that come out coarser than they were asked for, since the width of the rows has no fitting divisor.

`pq` cuts a row into parts of one width. A prime width has none but the whole: 16 centroids hold all rows.
"""

from __future__ import annotations

from embank.compression.codecs.product import NUM_CODES, ProductRows, RotatedProductRows, num_codebooks
from embank.compression.codecs.projected import DirectionRows
from embank.tables import named_codec

_COLUMNS = 2
"""Of a part, where no number of parts is asked for."""


def coarse_parts(codec: str, *, num_rows: int, dim: int, widen: str = "Pad the vectors with zeros to") -> str | None:
    """What there is to say of rows that are cut into half as many parts as was asked for, or fewer; else None. As many
    rows as there are centroids are kept as they are.

    Args:
        codec: its name.
        num_rows: that it is to hold.
        dim: their width.
        widen: how they get another width, the beginning of a sentence.

    Example:
        >>> coarse_parts("pq", num_rows=1000, dim=13)
        "codec 'pq': 13 columns can't be cut into 6 parts of one width, so there is one codebook, and 16 centroids ..."
        >>> coarse_parts("pq", num_rows=1000, dim=14) is None
        True
    """
    held = _held_in_parts(codec, num_rows=num_rows, dim=dim)
    if held is None or num_rows <= NUM_CODES:
        return None
    width, asked = held
    num_parts, wanted = num_codebooks(width, asked), min(asked or width // _COLUMNS, width)
    if 2 * num_parts > wanted:
        return None
    books = "is one codebook" if num_parts == 1 else f"are {num_parts:,} codebooks"
    step = asked or _COLUMNS
    # Rows may be made wider; where a codec has chosen the width, it may choose a narrower one.
    cure = f"{widen} {-(-width // step) * step:,}" if width == dim else f"Keep {width // step * step:,}"
    return (
        f"codec '{codec}': {width:,} columns can't be cut into {wanted:,} parts of one width, so there {books}, and "
        f"{NUM_CODES} centroids stand for {width // num_parts:,} columns at a time: little of a vector is kept. {cure} "
        "columns, or take another codec, such as int4"
    )


def holds_parts(codec: str) -> bool:
    """Whether product codes hold anything under a codec."""
    return _held_in_parts(codec, num_rows=1, dim=1) is not None


def _held_in_parts(codec: str, *, num_rows: int, dim: int) -> tuple[int, int | None] | None:
    """Width of the rows that product codes hold under a codec, and the number of parts that its name asks for; None
    where nothing is held so."""
    named = named_codec(codec)
    number, inner = named.arguments.get("number"), named.arguments.get("inner")
    if issubclass(named.cls, (ProductRows, RotatedProductRows)):
        return dim, number
    if inner is None:
        return None
    width = named.cls.width_of(num_rows, dim, number) if issubclass(named.cls, DirectionRows) else dim
    return _held_in_parts(inner, num_rows=num_rows, dim=width)
