"""What the packed classes of bundles of format version 1 become: a spine over coded matrices."""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from embank.compression.codecs.codes import CodedRows
from embank.compression.codecs.grids import PowerOfTwoRows, SteppedRows
from embank.compression.codecs.sparse import SparseRows
from embank.compression.methods.adapt import Adapt, layout_parts
from embank.compression.methods.compositional import Compositional
from embank.compression.methods.dedup import Blocks
from embank.compression.methods.dhe import Decoder
from embank.compression.methods.frequency_cut import FrequencyCut
from embank.compression.methods.hash import Hash
from embank.compression.methods.hash_embedding import HashEmbedding
from embank.compression.methods.memcom import Memcom
from embank.compression.methods.optembed import Kept
from embank.compression.methods.robe import Robe
from embank.compression.methods.tt_rec import TTRec
from embank.compression.methods.unified import Unified
from embank.compression.parts.projected import Projected
from embank.tables import Coded, PackedTable, Spine, TableSpec, encode
from embank.tables.method.facts import restored

Part = TypeVar("Part", bound=Spine | Coded)
Tensors = Mapping[str, Tensor]


def packed_v1(spec: TableSpec, name: str, facts: Mapping[str, Any], tensors: Tensors) -> PackedTable | None:
    """A table of a bundle of version 1; None if its class was none of ours.

    Args:
        spec: of the table.
        name: of its packed class.
        facts, tensors: what it held.
    """
    if name in _CODED:
        codec, more = _CODED[name]
        sizes = {"num_rows": spec.num_embeddings, "num_steps": _num_steps(tensors)}
        held = {**facts, **{key: sizes[key] for key in more}}
        return PackedTable(Spine(), [_made(codec, held, tensors)], [0])
    made = _SPINES[name](spec, facts, tensors) if name in _SPINES else None
    if made is None:
        return None
    spine, matrices, lookups = made
    return PackedTable(spine.eval(), [encode(rows_RD) for rows_RD in matrices], lookups)


Made = tuple[Spine, list[Tensor], list[int]]


def _made(cls: type[Part], facts: Mapping[str, Any], tensors: Tensors) -> Part:
    part: Part = restored(cls, facts, tensors)
    return part


def _some(tensors: Tensors, *names: str) -> dict[str, Tensor]:
    return {name: tensors[name] for name in names if name in tensors}


def _num_steps(tensors: Tensors) -> int:
    starts = tensors.get("starts")
    return 0 if starts is None else int(starts.diff().amax()).bit_length()


def _plain(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    return Spine(), [tensors["rows"]], [0]


def _hash(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    rows_RD = tensors["rows"]
    return _made(Hash, {"num_rows": rows_RD.shape[0]}, _some(tensors, "salt")), [rows_RD], [0]


def _frequency_cut(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    rows_RD = tensors["rows"]
    return _made(FrequencyCut, {"num_rows": rows_RD.shape[0]}, {}), [rows_RD], [0]


def _adapt(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    num_rows = tensors["rows"].shape[0]
    num_private, first = (num_rows, 0) if "layout" not in tensors else layout_parts(int(tensors["layout"]))
    held = {"num_rows": num_rows, "num_private": num_private, "first": first}
    return _made(Adapt, held, _some(tensors, "layout")), [tensors["rows"]], [0]


def _compositional(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    parts = [tensors[f"table{i}"] for i in range(facts["num_tables"])]
    held = {"sizes": [part.shape[0] for part in parts], "how": facts["combine"], "is_hashed": facts["is_hashed"]}
    return _made(Compositional, held, _some(tensors, "salts")), parts, list(range(len(parts)))


def _memcom(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    parts = list(_some(tensors, "rows", "multipliers", "biases").values())
    held = {"num_rows": parts[0].shape[0], "num_per_id": 1 + facts["has_bias"], "is_hashed": facts["is_hashed"]}
    return _made(Memcom, held, _some(tensors, "salts")), parts, list(range(len(parts)))


def _hash_embedding(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    rows_BD, salts = tensors["rows"], tensors["salts"]
    spine = _made(HashEmbedding, {"num_rows": rows_BD.shape[0]}, {"salts": salts})
    return spine, [rows_BD, tensors["importances"]], [*[0] * salts.numel(), 1]


def _unified(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    lookups = list(facts["lookups"])
    parts = [tensors[f"rows{number}"] for number in range(max(lookups) + 1)]
    has_projection = tensors["projection"].numel() > 0
    held = {"num_rows": parts[0].shape[0], "is_hashed": True, "has_projection": has_projection}
    own = _some(tensors, "salts", "projection") if has_projection else _some(tensors, "salts")
    return _made(Unified, held, own), parts, lookups


def _tt_rec(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    cores = [tensors[f"core{i}"] for i in range(3)]
    held = {
        "row_factors": [core.shape[0] for core in cores],
        "slice_shapes": [list(core.shape[1:]) for core in cores],
        "dim": facts["embedding_dim"],
    }
    return _made(TTRec, held, {}), [core.flatten(1) for core in cores], [0, 1, 2]


def _robe(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    num_rows, chunk = tensors["rows"].shape
    dim = facts["embedding_dim"]
    num_chunks = -(-dim // chunk)
    held = {"chunk": chunk, "num_chunks": num_chunks, "num_rows": num_rows, "has_signs": facts["has_signs"], "dim": dim}
    return _made(Robe, held, _some(tensors, "salt")), [tensors["rows"]], [0] * (2 * num_chunks)


def _dhe(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    return _made(Decoder, facts, tensors), [], []


def _kept(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    return _made(Kept, facts, _some(tensors, "words", "samples")), [tensors["rows"]], [0]


def _blocks(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    return _made(Blocks, facts, _some(tensors, "map")), [tensors["rows"]], [0]


def _projected(spec: TableSpec, facts: Mapping[str, Any], tensors: Tensors) -> Made:
    has_bias = "bias" in tensors
    own = {"weight": tensors["weight" if has_bias else "projection"], **_some(tensors, "bias")}
    return _made(Projected, {"has_bias": has_bias}, own), [tensors["rows"]], [0]


_SPINES = {
    "PackedFull": _plain,
    "PackedHash": _hash,
    "PackedFrequencyCut": _frequency_cut,
    "PackedAdaptive": _adapt,
    "PackedCompositional": _compositional,
    "PackedMemcom": _memcom,
    "PackedHashEmbedding": _hash_embedding,
    "PackedUnified": _unified,
    "PackedTTRec": _tt_rec,
    "PackedRobe": _robe,
    "PackedDhe": _dhe,
    "PackedKept": _kept,
    "PackedBlocks": _blocks,
    "PackedProjection": _projected,
    "PackedProjected": _projected,
}
_CODED: dict[str, tuple[type[Coded], tuple[str, ...]]] = {
    "PackedLowPrecision": (PowerOfTwoRows, ()),
    "PackedAlpt": (SteppedRows, ()),
    "PackedCodes": (CodedRows, ("num_rows",)),
    "PackedSparse": (SparseRows, ("num_steps",)),
}
"""Codecs, and the facts that version 1 did not write down."""
