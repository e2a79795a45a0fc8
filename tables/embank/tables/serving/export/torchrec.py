"""Tables as TorchRec's quantised `EmbeddingBagCollection` in TorchScript, where an id has one row.

From an id to its row lead a method's own steps, traced; behind the pooled rows may stand a linear map, which is pooled
as its rows are. What a method makes of its rows besides, TorchRec has no place for.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.quant.embedding_modules import EmbeddingBagCollection
from torchrec.types import DataType

from embank.tables.errors import ConfigError
from embank.tables.ids.token_space import NUM_TOKEN_IDS
from embank.tables.method.base import JointSpine, Spine
from embank.tables.serving.codecs.chunks import NUMBERS_PER_CHUNK
from embank.tables.serving.codecs.registry import codec_name
from embank.tables.serving.export.decoded import (
    CHUNK_NBYTES,
    chunk_rows,
    largest_of,
    refuse_below_fp16,
    refuse_beyond_fp16,
)
from embank.tables.serving.packed import PackedCollection
from embank.tables.serving.table import PackedTable
from embank.tables.specs import TableSpec

TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "int8": DataType.INT8, "int4": DataType.INT4}
_BITS = {"int8": 8, "int4": 4}
_SCALE_NBYTES = 4
_LEAST_FP16 = 2.0**-24
_ROW_CODECS = {"fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8", "int6", "int4", "int3", "int2", "bits_8_4_2"}
_ROW_CODECS |= {"power_of_two", "stepped", "int8_rowwise", "int4_rowwise", "int2_rowwise"}
"""Codecs that hold each row by itself: decoded, and coded again, it takes about as many bytes. Of those with FBGEMM's
own rows the bytes are kept where they are of the type that is written."""
_CURE = "take target onnx or pt2, which computes what the method does; or name other tables"


@dataclass(frozen=True, kw_only=True)
class PlainRows:
    """A table as TorchRec can hold it.

    Args:
        spec: of the table.
        rows_RD: of its physical table, decoded.
        weight_dD: the map of pooled rows; None where they are what the model sees.
        pack: whose address leads to rows.
    """

    spec: TableSpec
    rows_RD: Tensor
    weight_dD: Tensor | None
    pack: PackedTable


@torch.no_grad()
def plain_rows(spec: TableSpec, pack: PackedTable) -> PlainRows:
    """What TorchRec can hold of a table.

    Raises:
        ConfigError: a method or a codec for which it has no place; says why.
    """
    spine, who = pack.spine, f"table '{spec.name}' (method '{spec.method}') can't be one of torchrec's: "
    if not pack.lookups:
        raise ConfigError(f"{who}its rows are computed, and it holds none; {_CURE}")
    if len(pack.lookups) != 1 or len(pack.coded) != 1:
        raise ConfigError(f"{who}it reads {len(pack.lookups)} rows for an id and combines them; {_CURE}")
    if isinstance(spine, JointSpine) or type(spine).side is not Spine.side:
        raise ConfigError(f"{who}what it makes of a row depends on the id; {_CURE}")
    codec = codec_name(type(pack.coded[0]))
    if codec not in _ROW_CODECS:
        raise ConfigError(
            f"{who}its rows are held by codec '{codec.removesuffix('_coded')}', which holds none by itself, and plain "
            f"rows may take many times the bytes; {_CURE}"
        )
    num_rows = _num_rows(spec, pack)
    if num_rows == 0:
        raise ConfigError(f"{who}no row is left of it; {_CURE}")
    step = max(1, CHUNK_NBYTES // (4 * spec.embedding_dim))
    chunks = (torch.arange(first, min(first + step, num_rows)) for first in range(0, num_rows, step))
    rows_RD = torch.cat([pack.coded[0].take(chunk).float() for chunk in chunks])
    weight_dD = None
    if type(spine).combine is not Spine.combine:
        weight_dD = _linear(spine, rows_RD.shape[1])
        if weight_dD is None:
            raise ConfigError(f"{who}what it makes of its rows is no linear map; {_CURE}")
    return PlainRows(spec=spec, rows_RD=rows_RD, weight_dD=weight_dD, pack=pack)


def _num_rows(spec: TableSpec, pack: PackedTable) -> int:
    """Rows of the physical table that an id leads to, or that are before one."""
    if spec.num_embeddings >= NUM_TOKEN_IDS:
        known = getattr(pack.spine, "num_rows", None)
        if not isinstance(known, int):
            raise ConfigError(
                f"table '{spec.name}' (method '{spec.method}') can't be one of torchrec's: it does not say how many "
                f"rows the hashes of tokens lead to; {_CURE}"
            )
        return known
    step, top = chunk_rows(spec), 0
    for first in range(0, spec.num_embeddings, step):
        (rows_N,) = pack.spine.address(torch.arange(first, min(first + step, spec.num_embeddings)))
        top = max(top, int(rows_N.max()) + 1)
    return top


def _linear(spine: Spine, width: int) -> Tensor | None:
    """The matrix [d, D] of a `combine` that is one, else None."""

    def combined(rows_ND: Tensor) -> Tensor:
        made = spine.combine((rows_ND,), None)
        assert isinstance(made, Tensor)
        return made

    weight_dD = combined(torch.eye(width)).clone()
    if bool(combined(torch.zeros(2, width)).abs().max() > 0):
        return None
    tried = torch.randn(16, width, generator=torch.Generator().manual_seed(0)) * 10
    return weight_dD if torch.allclose(combined(tried), tried @ weight_dD, rtol=1e-4, atol=1e-4) else None


class TorchRecTables(nn.Module):
    """Tables of a packed collection in TorchRec's module, from the tensors of a KeyedJaggedTensor to those of a
    KeyedTensor; to be scripted.

    Ids that a table has not count as unknown, id 0.

    Args:
        collection: the tables.
        dtype: of the rows: fp32, fp16, int8 or int4; narrow tables, which a scale and an offset would make larger, are
            fp16 in place of int8 and int4.

    Attributes:
        dtypes: of each table.
        features: what is looked up, in order.
        keys, dims: of the output.

    Raises:
        ConfigError: a table that TorchRec can't hold.
    """

    def __init__(self, collection: PackedCollection, *, dtype: str) -> None:
        super().__init__()
        collection.refuse_weighted("target torchrec")
        plain = [plain_rows(spec, pack) for spec, pack in collection.packed_tables()]
        self.dtypes = {table.spec.name: _dtype_of(table, dtype) for table in plain}
        uses = [(table, feature) for table in plain for feature in table.spec.feature_names]
        self.sources: list[str] = [feature for _, feature in uses]
        self.names: list[str] = [f"{feature}@{table.spec.name}" for table, feature in uses]
        self.features: list[str] = list(dict.fromkeys(self.sources))
        self.keys, self.dims = list(collection.keys), list(collection.dims)
        self.addresses = nn.ModuleList([_traced(table) for table, _ in uses])
        self.maps = nn.ModuleList([_map(table) for table, _ in uses])
        self.tables = _scripted(plain, self.dtypes)
        self.eval()

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Pooled rows side by side, [B, sum D], in the order of `keys`.

        A script that was loaded takes and gives tensors alone: TorchScript does not know TorchRec's classes again.

        Args:
            values: ids of a KeyedJaggedTensor whose keys are `features`.
            lengths: of its bags.
        """
        given = KeyedJaggedTensor(keys=self.features, values=values, lengths=lengths).to_dict()
        row_ids: list[Tensor] = []
        row_lengths: list[Tensor] = []
        for i, address in enumerate(self.addresses):
            ids = given[self.sources[i]]
            row_ids.append(address(ids.values().long()))
            row_lengths.append(ids.lengths().long())
        rows = KeyedJaggedTensor(keys=self.names, values=torch.cat(row_ids), lengths=torch.cat(row_lengths))
        pooled = self.tables(rows)
        parts: list[Tensor] = []
        for i, mapped in enumerate(self.maps):
            parts.append(mapped(pooled[self.names[i]]))
        return torch.cat(parts, dim=1)


def _dtype_of(table: PlainRows, dtype: str) -> str:
    """fp16 where whole numbers with a scale and an offset for each row would take more."""
    width = table.rows_RD.shape[1]
    return "fp16" if dtype in _BITS and width * _BITS[dtype] / 8 + _SCALE_NBYTES >= 2 * width else dtype


def _padded(rows_RD: Tensor, dtype: str) -> Tensor:
    """The quantiser takes rows of whole 16-bit words."""
    return F.pad(rows_RD, (0, -rows_RD.shape[1] % (16 // _BITS[dtype]))) if dtype in _BITS else rows_RD


class _Address(nn.Module):
    """From ids to rows of the physical table."""

    def __init__(self, table: PlainRows) -> None:
        super().__init__()
        self.spine = table.pack.spine
        self.last = min(table.spec.num_embeddings, NUM_TOKEN_IDS) - 1

    def forward(self, ids_N: Tensor) -> Tensor:
        (rows_N,) = self.spine.address(torch.where((ids_N < 0) | (ids_N > self.last), 0, ids_N))
        return rows_N


def _traced(table: PlainRows) -> Any:
    """The operations of a table's address, for any number of ids."""
    address = _Address(table)
    drawn, most = torch.Generator().manual_seed(0), max(1, address.last)  # one more may be beyond int64
    traced = torch.jit.trace(address, torch.randint(most, (7,), generator=drawn), check_trace=False)  # type: ignore[no-untyped-call]
    for size in (0, 1, 4096):
        ids_N = torch.randint(most, (size,), generator=drawn)
        if not torch.equal(traced(ids_N), address(ids_N)):
            raise ConfigError(
                f"table '{table.spec.name}' (method '{table.spec.method}') can't be one of torchrec's: the steps from "
                f"an id to its row depend on the number of ids; {_CURE}"
            )
    return traced


class _Columns(nn.Module):
    """The first columns of what was padded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled[:, : self.width]


class _Map(nn.Module):
    weight: Tensor

    def __init__(self, weight_dD: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight_dD)

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled[:, : self.weight.shape[0]] @ self.weight


def _map(table: PlainRows) -> nn.Module:
    return _Columns(table.rows_RD.shape[1]) if table.weight_dD is None else _Map(table.weight_dD)


def _scripted(tables: Sequence[PlainRows], dtypes: dict[str, str]) -> Any:
    """TorchRec's module over all physical tables, each row by itself."""
    from torchrec.fx import symbolic_trace

    configs, weights = [], {}
    for place, table in enumerate(tables):
        spec, dtype = table.spec, dtypes[table.spec.name]
        rows_RD = _padded(table.rows_RD, dtype)
        inner = f"table{place}"  # TorchRec makes an attribute of it, which not every name of a table can be
        weights[inner] = _quantised(table, rows_RD, dtype)
        configs.append(
            EmbeddingBagConfig(
                name=inner,
                num_embeddings=rows_RD.shape[0],
                embedding_dim=rows_RD.shape[1],
                feature_names=[f"{feature}@{spec.name}" for feature in spec.feature_names],
                pooling=PoolingType.MEAN if spec.pooling == "mean" else PoolingType.SUM,
                data_type=TYPES[dtype],
            )
        )
    module = EmbeddingBagCollection(
        configs,
        is_weighted=False,
        device=torch.device("cpu"),
        table_name_to_quantized_weights=weights,
        row_alignment=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(symbolic_trace(module))


def _quantised(table: PlainRows, rows_RD: Tensor, dtype: str) -> tuple[Tensor, Tensor | None]:
    """Bytes of rows as FBGEMM has them, and of whole numbers an fp16 scale and offset for each row."""
    kind, fused = table.pack.coded[0].fused() or ("", None)
    if fused is not None and kind == dtype:
        codes = fused[: len(rows_RD), _SCALE_NBYTES:]
        padded = F.pad(codes, (0, rows_RD.shape[1] * _BITS[dtype] // 8 - codes.shape[1]))
        return padded.contiguous(), fused[: len(rows_RD), :_SCALE_NBYTES].contiguous()
    if dtype != "fp32":
        largest = largest_of(table.rows_RD)
        refuse_beyond_fp16(table.spec, largest)
        refuse_below_fp16(table.spec, largest)
    if dtype not in _BITS:
        return rows_RD.to(torch.float16 if dtype == "fp16" else torch.float32).contiguous().view(torch.uint8), None
    fused = _fused(rows_RD, bits=_BITS[dtype])
    return fused[:, :-_SCALE_NBYTES].contiguous(), fused[:, -_SCALE_NBYTES:].contiguous()


def _fused(rows_RD: Tensor, *, bits: int) -> Tensor:
    """Codes of rows and behind them fp16 steps and offsets, uint8 [R, D * bits / 8 + 4]: those of FBGEMM's quantiser,
    but where a step is below fp16's normal numbers. There it rounds steps down, to 0 even, which cuts off the end of a
    row's range; initial rows of a table of a million ids are as small as that.

    Such steps are rounded up, and their offsets down, so that the codes reach all of a row. A number is missed by half
    a step, and steps are larger than in fp32 by about 2**-24 at most, the unit of fp16's smallest numbers.
    """
    fused_RW: Tensor = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(rows_RD.contiguous(), bits)
    top, shifts = (1 << bits) - 1, torch.arange(0, 8, bits, dtype=torch.uint8)
    low_R, high_R = rows_RD.aminmax(dim=1)
    coarse_N = (high_R - low_R < top * torch.finfo(torch.float16).tiny).nonzero()[:, 0]
    for places_r in torch.split(coarse_N, max(1, NUMBERS_PER_CHUNK // rows_RD.shape[1])):
        rows_rD, low_r1, high_r1 = rows_RD[places_r], low_R[places_r, None], high_R[places_r, None]
        below_r1 = low_r1 - (low_r1.abs() * 2**-11).clamp(min=_LEAST_FP16 / 2)  # half a unit in the last place, or more
        below_r1 = below_r1.clamp(min=-torch.finfo(torch.float16).max)  # the end of fp16: what is beyond it by less
        offset_r1 = torch.where(low_r1.half().float() > low_r1, below_r1, low_r1).half()
        units_r1 = ((high_r1 - offset_r1.float()) / (top * _LEAST_FP16)).ceil().clamp(min=1)
        step_r1 = (units_r1 * _LEAST_FP16).half()
        codes_rD = ((rows_rD - offset_r1.float()) / step_r1.float()).round().clamp(0, top).to(torch.uint8)
        packed_rC = (codes_rD.view(-1, codes_rD.shape[1] // len(shifts), len(shifts)) << shifts).sum(2).to(torch.uint8)
        scales_r4 = torch.cat([step_r1, offset_r1], dim=1).view(torch.uint8)
        fused_RW[places_r] = torch.cat([packed_rC, scales_r4], dim=1)
    return fused_RW


def scripted(tables: TorchRecTables) -> torch.jit.ScriptModule:
    """The tables in TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of annotations in torch's and TorchRec's own code
        script: torch.jit.ScriptModule = torch.jit.script(tables)
    return script


def write_torchrec(file: Path, collection: PackedCollection, *, dtype: str) -> dict[str, Any]:
    """Writes the tables of a collection in TorchScript.

    Args:
        file: to be written.
        collection: the tables.
        dtype: see `TorchRecTables`.

    Returns:
        What a manifest says: `features`, `keys`, `dims`, and of each table its dtype.
    """
    tables = TorchRecTables(collection, dtype=dtype)
    scripted(tables).save(str(file))
    return {
        "features": tables.features,
        "keys": tables.keys,
        "dims": tables.dims,
        "tables": [{"name": name, "dtype": own} for name, own in tables.dtypes.items()],
    }
