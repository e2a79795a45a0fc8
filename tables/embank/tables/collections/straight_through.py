"""Training with the codec in the loop: a step sees rows as they will be held, and moves the fp32 rows behind them.

Source: the straight-through estimator of Bengio et al., "Estimating or propagating gradients through stochastic
neurons" (arXiv:1308.3432), section 2.3, as weights are quantised in Jacob et al. (arXiv:1712.05877), section 3: rounded
values forward, and the gradient by them taken for that by the fp32 ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType

import torch
from torch import Tensor

from embank.tables.collections.held_rows import fp32_rows
from embank.tables.collections.pooled import TableCollection
from embank.tables.collections.stages import finished
from embank.tables.errors import ConfigError, EmbankError
from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.registry import NamedCodec, codecs_by_table, encode, named_codec
from embank.tables.serving.table import codec_of
from embank.tables.specs import TableSpec

_FEW_IDS = 64


class UncodedRowsError(ConfigError):
    """Rows of a table, which it names, can't be held by the codec that they are trained through."""


class StraightThrough:
    """While it is open, the rows of a collection are those that its codecs will serve; what is added to them meanwhile
    is added to the fp32 rows when it is closed.

    A backward pass that updates rows within it therefore takes the gradient at the coded rows, and moves the fp32 ones
    by it: rows that hardly move at a time come to another code in the end. It holds two more copies of the rows, and
    codes only the blocks again in which one has moved (`Coded.rows_per_block`; all rows, where there are none).

    Args:
        tables: rows in this process, in fp32 and in the memory of the host.
        codecs: by table; `fp32` leaves one alone.

    Attributes:
        coded: the physical tables that are seen coded. What methods code themselves, or make of their rows before they
            are served, is left alone, and so are tables of fewer than 64 numbers.

    Raises:
        ConfigError: rows are elsewhere, two tables read the same rows under different codecs, or nothing is coded.
        UncodedRowsError: when it is opened: rows are not finite, or too large for their codec.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=100, embedding_dim=8, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> plain = tables.weights()["item"].clone()
        >>> with StraightThrough(tables, {"item": "int2"}):
        ...     print(torch.equal(tables.weights()["item"], encode(plain, codec="int2").take(torch.arange(100))))
        True
        >>> torch.equal(tables.weights()["item"], plain)
        True
    """

    def __init__(self, tables: TableCollection, codecs: Mapping[str, str]) -> None:
        self.tables = tables
        _refuse_rows_elsewhere(tables)
        self.coded = _coded_tables(tables, codecs_by_table(codecs, [spec.name for spec in tables.specs]))
        # No row is equal to NaN: all of them are new at first.
        self._plain = {name: torch.full_like(rows, torch.nan) for name, rows in self._rows().items()}
        self._held = {name: torch.empty_like(rows) for name, rows in self._plain.items()}

    def _rows(self) -> dict[str, Tensor]:
        return {name: rows for name, rows in self.tables.weights().items() if name in self.coded}

    @torch.no_grad()
    def __enter__(self) -> None:
        with self.tables.writing():
            for name, rows_RD in self._rows().items():  # a refusal leaves the rows of all tables as they are
                self._code_again(name, rows_RD)
            for name, rows_RD in self._rows().items():
                rows_RD.copy_(self._held[name])

    @torch.no_grad()
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self.tables.writing():
            for name, rows_RD in self._rows().items():
                rows_RD.copy_(self._plain[name] + (rows_RD - self._held[name]))

    def _code_again(self, table: str, rows_RD: Tensor) -> None:
        """Codes the blocks of rows again in which one has changed."""
        plain, codec = self._plain[table], self.coded[table]
        changed_N = (rows_RD != plain).any(dim=1).nonzero()[:, 0]
        if not changed_N.numel():
            return
        block = codec.cls.rows_per_block(rows_RD.shape[1]) or len(rows_RD)
        blocks_K = torch.unique(changed_N // block)
        again_N = (blocks_K[:, None] * block + torch.arange(block)).reshape(-1)
        again_N = again_N[again_N < len(rows_RD)]  # the last block may be short
        again_ND = rows_RD[again_N]
        try:
            coded_ND = encode(again_ND, codec=codec.name).take(torch.arange(len(again_N)))
        except ConfigError as error:
            raise UncodedRowsError(f"table '{table}': {error}") from error
        self._held[table][again_N], plain[again_N] = coded_ND, again_ND  # both, and only once nothing is refused


def _refuse_rows_elsewhere(tables: TableCollection) -> None:
    """Raises ConfigError unless all rows are in the host's memory, in fp32, in this process."""
    why = None
    if tables.sharding is not None:
        why = "rows are spread over processes; train in one"
    elif tables.tier.name == "disk" or tables.tier.on_gpu:
        why = "rows are in files or on a GPU; hold them in memory on the CPU (tier 'device' or 'host', device 'cpu')"
    elif any(rows.dtype != torch.float32 for rows in tables.weights().values()):
        why = "rows have fewer than 32 bits; hold them in fp32"
    if why is not None:
        raise ConfigError(f"a codec can't be trained through: {why}")


@torch.no_grad()
def _coded_tables(tables: TableCollection, codecs: Mapping[str, str]) -> dict[str, NamedCodec]:
    """The codec of each physical table that is served as it is trained, but for its codec."""
    rows, found = fp32_rows(tables), dict[str, NamedCodec]()
    for method in tables.built_methods():
        codec = codecs[method.spec.name]
        served = {id(matrix) for matrix in method.served(rows).matrices.values()}
        for table in method.physical:
            own = codec_of(codec, rows[table.name])
            if id(rows[table.name]) not in served or own == "fp32":
                continue
            if found.setdefault(table.name, named_codec(own)).name != own:
                raise ConfigError(
                    f"table '{method.spec.name}' reads the rows '{table.name}' under codec '{own}', another one under "
                    f"'{found[table.name].name}'; to be trained through it, rows have one codec"
                )
    if not found:
        raise _nothing_coded(tables)
    return found


def _nothing_coded(tables: TableCollection) -> ConfigError:
    methods = sorted({method.spec.method for method in tables.built_methods()})
    return ConfigError(
        f"no codec can be trained through: the rows of method {', '.join(map(repr, methods))} are not what is "
        "coded in the end (the method codes or prunes them itself), or there are fewer than 64 numbers"
    )


def refuse_untrainable(tables: TableCollection, codecs: Mapping[str, str]) -> None:
    """Says before the first of several stages what `StraightThrough` would only say in the last one.

    Args:
        tables: in any stage.
        codecs: by table.

    Raises:
        ConfigError: rows are elsewhere, or the methods of all tables will serve what they have coded themselves.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=100, embedding_dim=8, feature_names=["item"], method="pep")
        >>> refuse_untrainable(TableCollection([spec]), {"item": "int2"})
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: no codec can be trained through: the rows of method 'pep' are not what is
        coded in the end (the method codes or prunes them itself), or there are fewer than 64 numbers
    """
    _refuse_rows_elsewhere(tables)
    by_table = codecs_by_table(codecs, [spec.name for spec in tables.specs])
    if all(by_table[spec.name] == "fp32" or _codes_itself(spec) for spec in tables.specs):
        raise _nothing_coded(tables)


@torch.no_grad()
def _codes_itself(spec: TableSpec) -> bool:
    """Whether all that a table's method serves in its last stage is coded by the method. A table of few ids is taken
    there untrained: how many rows stay, training decides, but not what holds them. Where the method takes no such
    table, nothing is known."""
    num = min(spec.num_embeddings, _FEW_IDS)
    few = replace(spec, num_embeddings=num, budget=None, counts=None, init_fn=None, stage=0, found={})
    try:
        tables = finished(TableCollection([few], backend="torch"))
    except EmbankError:
        return False
    (method,) = tables.built_methods()
    return all(isinstance(matrix, Coded) for matrix in method.served(fp32_rows(tables)).matrices.values())
