"""`SequenceCollection`: logical tables whose every id keeps its row, for the memory tables of language models.

Two inputs, two outputs, one lookup:

* a dict of id tensors [B, T, H] by group, for hashed n-grams (Engram, Cheng et al., arXiv 2601.07372) and token tables
  (STEM, arXiv 2601.10639): every token has exactly one id per table, so a tensor says it all, and the rows come as [B,
  T, sum D] without a copy. Column h of a group is looked up in the h-th table that names the group.
* a KeyedJaggedTensor, for histories of recommenders: each row has as many ids as it has, and a feature's ids are looked
  up in every table that names it. Rows come as JaggedTensors, as from `torchrec.EmbeddingCollection`.

`address` may be called earlier, in the data loader; `forward` takes either its result or plain ids, and gives the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torchrec import EmbeddingConfig, JaggedTensor, KeyedJaggedTensor
from torchrec.modules.embedding_modules import EmbeddingCollectionInterface

from embank.tables.collections.addressed import AddressedSequence, PathIds
from embank.tables.collections.bags import Bags, table_configs
from embank.tables.collections.base import Tables
from embank.tables.collections.ids import largest_of_each, missing_ids, out_of_range, refuse_no_integers
from embank.tables.collections.paths import Asked, Ids, LookupPath, Pass, Use
from embank.tables.errors import ConfigError, DataError
from embank.tables.method.base import Method
from embank.tables.rows import RowOptimizer, RowStore, RowTier
from embank.tables.rows.store_spec import Backend
from embank.tables.specs import TableSpec

if TYPE_CHECKING:
    from embank.tables.sharding.sharded_rows import Sharding


class SequenceCollection(Tables, EmbeddingCollectionInterface):  # type: ignore[misc]
    """Tables looked up without pooling: ids [B, T, H] in, rows [B, T, sum D] out, all groups in one call.

    The tables of a group are those that name it among their `feature_names`, in the order of the specs. Every id is a
    bag of its own with sum pooling, which is FBGEMM's vectorised path; its unpooled kernels update row by row through a
    hash map.

    All rows of a collection share one optimizer and learning rate (`set_lr`). Tables with another rate go into a
    collection of their own.

    Args:
        specs: the logical tables, each stored by any registered method; within a group dims may differ.
        seed: initial values depend on it and on the tables' names alone, so they equal those of a `TableCollection`.
        backend: "fbgemm" (fused updates) or "torch" (the slow twin; Adam).
        optimizer: how rows are updated.
        tier: where rows are held.
        sharding: spreads rows over processes; None holds them all here.
        dedupe: `address` looks every distinct physical row up once, and rows are spread to their ids afterwards. The
            same rows come out; sums of gradients may round differently. It pays where a row is dear to fetch; the
            kernels sum the gradients of repeated rows themselves, so on rows that lie in memory it costs more than it
            saves.
        need_indices: whether ids that come as bags are the `weights` of the JaggedTensors that come out.

    Raises:
        ConfigError: no table, two tables of one name, mean pooling, or what methods and backends refuse.
        BudgetError: a budget below its method's floor.

    Example:
        Three tokens of one text, each with an id for either of two tables:

            token    layer1.a   layer1.b
            0        1          0
            1        2          0
            2        1          1

        >>> specs = [
        ...     TableSpec(name="layer1.a", num_embeddings=3, embedding_dim=2, feature_names=["layer1"]),
        ...     TableSpec(name="layer1.b", num_embeddings=2, embedding_dim=1, feature_names=["layer1"]),
        ... ]
        >>> tables = SequenceCollection(specs)
        >>> tables.set_rows("layer1.a", torch.tensor([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0]]))
        >>> tables.set_rows("layer1.b", torch.tensor([[-1.0], [-2.0]]))
        >>> rows = tables({"layer1": torch.tensor([[[1, 0], [2, 0], [1, 1]]])})  # ids [B, T, H] to rows [B, T, sum D]
        >>> rows["layer1"].tolist()
        [[[1.0, 10.0, -1.0], [2.0, 20.0, -1.0], [1.0, 10.0, -2.0]]]
    """

    plain_prefix: ClassVar[str] = "embeddings"

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        seed: int = 0,
        backend: Backend = "fbgemm",
        optimizer: RowOptimizer | None = None,
        tier: RowTier | None = None,
        sharding: "Sharding | None" = None,
        dedupe: bool = False,
        need_indices: bool = False,
    ) -> None:
        super().__init__(specs, seed=seed, backend=backend, optimizer=optimizer, tier=tier, sharding=sharding)
        self.dedupe = dedupe
        self.has_indices = need_indices
        for spec in self.specs:
            if spec.pooling != "sum":
                raise ConfigError(
                    f"table '{spec.name}' has pooling '{spec.pooling}'; a SequenceCollection does not pool. Leave it "
                    "out, or use a TableCollection"
                )
        self._make()

    def _make_paths(self) -> None:
        members: dict[str, list[Method]] = {}
        for method in self.built_methods():
            for group in method.spec.feature_names:
                members.setdefault(group, []).append(method)
        pairs = [(method, group) for group, methods in members.items() for method in methods]
        self.path = self._path("distinct" if self.dedupe else "per id", pairs)
        self.groups = {group: tuple(use for use in self.path.uses if use.feature == group) for group in members}
        self.dims = {group: sum(use.method.spec.embedding_dim for use in uses) for group, uses in self.groups.items()}

    def address(self, ids: Mapping[str, Tensor] | KeyedJaggedTensor) -> AddressedSequence:
        """Physical rows of a batch: pure, and meant to run ahead of `forward`, on the loader's thread.

        Args:
            ids: by group, integers [B, T, H] of any layout, H the group's number of tables; or jagged ids by feature.
                Groups that no table names are ignored.

        Raises:
            IdRangeError: an id outside its table.
            DataError: neither of the two, or a group is missing, has another shape, or is no tensor of integers.
        """
        if isinstance(ids, KeyedJaggedTensor):
            return self.joined(self.asked(Bags(ids)))
        if not isinstance(ids, Mapping):
            raise DataError(
                f"the input is a {type(ids).__name__}; give tensors of ids [B, T, H] by group, "
                f"{{'{next(iter(self.groups))}': ids}}, or a KeyedJaggedTensor"
            )
        shapes: dict[str, tuple[int, ...]] = {}
        columns: list[Tensor] = []  # ids [N] of each use
        for group, uses in self.groups.items():
            if group not in ids:
                raise missing_ids(group, table=uses[0].method.spec.name, present=ids)
            columns += _columns(ids[group], group=group, uses=uses)
            shapes[group] = tuple(ids[group].shape[:2])
        given = {use.key: Ids(ids_N) for use, ids_N in zip(self.path.uses, columns, strict=True)}
        return AddressedSequence(paths={_PATH: self.path.address(given)}, shapes=shapes)

    def asked(self, batch: Bags) -> Asked:
        """What a batch of bags asks of the tables: the first half of `address`, with its errors."""
        uses = self.use_rows(batch)
        rest = AddressedSequence(
            paths={},
            shapes={use.feature: (uses[use.key].ids.ids_N.numel(),) for use in self.path.uses},
            bag_lengths={use.feature: batch.own_lengths(use.feature) for use in self.path.uses},
            batch_size=batch.batch_size,
        )
        return Asked(uses, rest)

    def joined(self, asked: Asked) -> AddressedSequence:
        """Its rows as the store looks them up, and the ids where they are part of the output."""
        addressed = super().joined(asked)
        assert isinstance(addressed, AddressedSequence)
        ids = {key: own.ids.ids_N for key, own in asked.uses.items()} if self.has_indices else {}
        return replace(addressed, ids=ids)

    def lookup_paths(self) -> Mapping[str, LookupPath]:
        """The one lookup path."""
        return {_PATH: self.path}

    def prefetch(self, addressed: AddressedSequence) -> None:
        """A hint that `forward` will be called with this batch soon, in the order of the hints. Never changes
        results."""
        self.path.prefetch(addressed.paths[_PATH])

    def forward(
        self, features: Mapping[str, Tensor] | KeyedJaggedTensor | AddressedSequence
    ) -> dict[str, Tensor] | dict[str, JaggedTensor]:
        """Logical rows, one per id: `look_up` of tensors by group, `look_up_jagged` of bags.

        Args:
            features: ids by group or feature, or what `address` made of them.
        """
        step: dict[str, Tensor] | None = self.step_of(features)
        if step is not None:
            return step
        addressed = features if isinstance(features, AddressedSequence) else self.address(features)
        return self.look_up_jagged(addressed) if addressed.is_jagged else self.look_up(addressed)

    def look_up(self, ids: Mapping[str, Tensor] | AddressedSequence) -> dict[str, Tensor]:
        """Logical rows of ids by group.

        Args:
            ids: integers [B, T, H] by group, or what `address` made of them.

        Returns:
            By group [B, T, sum D], tables side by side in their order.
        """
        addressed = ids if isinstance(ids, AddressedSequence) else self.address(ids)
        with self._pass() as within:
            rows = self._joined(addressed.paths[_PATH], within)
            ended = zip(
                addressed.shapes.items(), self._end_pass([rows[g] for g in addressed.shapes], within), strict=True
            )
        return {group: rows_NW.view(*shape, self.dims[group]) for (group, shape), rows_NW in ended}

    def look_up_jagged(self, ids: KeyedJaggedTensor | AddressedSequence) -> dict[str, JaggedTensor]:
        """Logical rows of bags of ids.

        Args:
            ids: ids by feature, or what `address` made of them.

        Returns:
            By feature ("feature@table" where several tables look it up): rows [N, D] and the input's lengths.
        """
        addressed = ids if isinstance(ids, AddressedSequence) else self.address(ids)
        with self._pass() as within:
            rows = self.path.forward(addressed.paths[_PATH], within)
            uses = [use for own in self.groups.values() for use in own]
            ended = self._end_pass([rows[use.key] for use in uses], within)
        lengths = {group: self.path.moved(lengths) for group, lengths in addressed.bag_lengths.items()}
        return {
            use.key: JaggedTensor(values=rows_ND, lengths=lengths[use.feature], weights=addressed.ids.get(use.key))
            for use, rows_ND in zip(uses, ended, strict=True)
        }

    def _joined(self, batch: PathIds, within: Pass) -> dict[str, Tensor]:
        """Logical rows [N, sum D] of each group. Where they are the physical rows side by side, nothing is copied."""
        if not self.path.is_direct:
            rows = self.path.forward(batch, within)
            return {group: _side_by_side([rows[use.key] for use in uses]) for group, uses in self.groups.items()}
        blocks = _split(self.path.block(batch, within), list(self.dims.values()))
        num_ids = dict(zip([use.key for use in self.path.uses], batch.num_ids, strict=True))
        sizes = {group: num_ids[uses[0].key] for group, uses in self.groups.items()}
        pairs = zip(self.groups, blocks, strict=True)
        return {group: block if len(block) == sizes[group] else block[: sizes[group]] for group, block in pairs}

    @property
    def arguments(self) -> dict[str, Any]:
        """What a collection like this one is made with, besides specs and sharding."""
        return {**super().arguments, "dedupe": self.dedupe, "need_indices": self.has_indices}

    def need_indices(self) -> bool:
        """Whether the output of bags has the ids as weights."""
        return self.has_indices

    def embedding_dim(self) -> int:
        """The tables' width.

        Raises:
            ConfigError: they have several; see `embedding_configs`.
        """
        dims = {spec.embedding_dim for spec in self.specs}
        if len(dims) > 1:
            raise ConfigError(f"the tables have the dims {sorted(dims)}; ask embedding_configs for each")
        return dims.pop()

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """The logical tables as TorchRec describes them."""
        return table_configs(self.specs)

    def embedding_names_by_table(self) -> list[list[str]]:
        """Of each table the keys of the output."""
        return [[self._key(spec, feature) for feature in spec.feature_names] for spec in self.specs]

    def row_stores(self) -> list[RowStore]:
        """The row store, if there is a table with rows."""
        return [] if self.path.store is None else [self.path.store]


_PATH = "rows"
"""The one lookup path of a sequence."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # see `largest_of_each`
def _columns(ids_BTH: Tensor, *, group: str, uses: Sequence[Use]) -> list[Tensor]:
    """Ids int64 [B * T] of each of a group's tables, checked in one pass over all of them."""
    num_tables = len(uses)
    if not isinstance(ids_BTH, Tensor):
        raise DataError(
            f"ids of group '{group}' are a {type(ids_BTH).__name__}; give a tensor of integers [B, T, {num_tables}]"
        )
    refuse_no_integers(ids_BTH, what=f"ids of group '{group}'")
    if ids_BTH.dim() != 3 or ids_BTH.shape[2] != num_tables:
        raise DataError(
            f"ids of group '{group}' have shape {tuple(ids_BTH.shape)}; give [B, T, {num_tables}], one id per token "
            "and table"
        )
    ids_HN = ids_BTH.reshape(-1, num_tables).t().long().contiguous()
    if ids_HN.numel():
        for use, ids_N, found in zip(uses, ids_HN, largest_of_each(ids_HN), strict=True):
            spec = use.method.spec
            if found >= spec.num_embeddings:
                low, high = (int(bound) for bound in ids_N.aminmax())
                raise out_of_range(
                    f"group '{group}'", low=low, high=high, table=spec.name, num_embeddings=spec.num_embeddings
                )
    return list(ids_HN.unbind(0))


def _split(rows_NW: Tensor, widths: Sequence[int]) -> Sequence[Tensor]:
    """Columns of each width; the tensor itself where there is one, which spares the backward pass a copy."""
    return [rows_NW] if len(widths) == 1 else torch.split(rows_NW, list(widths), dim=1)


def _side_by_side(rows: Sequence[Tensor]) -> Tensor:
    """Rows of several tables as one; the tensor itself where there is one."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows), dim=1)
