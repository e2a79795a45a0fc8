"""`PackedCollection`: tables in their inference form, behind the interface of `torchrec.EmbeddingBagCollection`.

TorchRec itself is imported by who gives a KeyedJaggedTensor in, and so is not waited for by who does not.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import getitem, is_
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from embank.tables.collections.identity import as_tensor, of_tensor
from embank.tables.collections.ids import bag_offsets, missing_ids, output_key
from embank.tables.collections.named import NamedModules
from embank.tables.collections.paths import pool
from embank.tables.collections.traced import OneStep
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.method.casts import only_moving
from embank.tables.method.modes import is_followed
from embank.tables.rows.held_bytes import distinct_nbytes
from embank.tables.serving.table import PackedTable, looked_up
from embank.tables.specs import TableSpec

if TYPE_CHECKING:
    from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor

    from embank.tables.collections.bags import Bags
    from embank.tables.serving.lookups import Lookups

FORM = "embank's packed tables"

_MAX_LOOKUPS = 16
"""Sets of features with bags whose lookups are kept."""


class _Held:
    """What some lookups were made of: the packed tables of a collection and their tensors. They may be replaced without
    the collection's knowledge: `load_state_dict(assign=True)` of one table, `module.buffer = ...`,
    `torch.func.functional_call`.

    Args:
        collection: whose lookups they are.
    """

    def __init__(self, collection: "PackedCollection") -> None:
        packs = list(collection.packs._modules.items())
        held = [(module._buffers, name) for module in collection.packs.modules() for name in module._buffers]
        held = [(buffers, name) for buffers, name in held if buffers[name] is not None]
        self.homes: list[dict[str, Any]] = [*(collection.packs._modules for _ in packs), *(home for home, _ in held)]
        self.names = [*(name for name, _ in packs), *(name for _, name in held)]
        self.values = list(map(getitem, self.homes, self.names))
        self.tensors: list[Tensor] = self.values[len(packs) :]
        self.places = list(map(Tensor.data_ptr, self.tensors))
        spines = [pack.spine for _, pack in collection.packed_tables()]
        # Of rows lookups see what is written into them; of what a spine has, such as a salt, they may have a copy.
        self.copied = [t for spine in spines for t in spine.buffers() if not t.is_inference()]
        self.versions = [tensor._version for tensor in self.copied]

    def is_current(self) -> bool:
        """Whether the collection holds the same tensors still, in the same memory."""
        return (
            all(map(is_, map(getitem, self.homes, self.names), self.values))
            and list(map(Tensor.data_ptr, self.tensors)) == self.places
            and [tensor._version for tensor in self.copied] == self.versions
        )


class _Kept(NamedTuple):
    """Lookups, and what they were made of."""

    lookups: "Lookups"
    held: _Held


class PackedCollection(OneStep):
    """What is served: packed tables, KeyedJaggedTensor in, KeyedTensor out. It can't be trained.

    The same forward as the settled `TableCollection` in evaluation mode, within each method's `tolerance`.

    Args:
        specs: the logical tables, as the model sees them; options and budgets play no part any more.
        packs: the packed form of each.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> spec = TableSpec(name="item", num_embeddings=10, embedding_dim=2, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> packed = pack_collection(tables)
        >>> kjt = KeyedJaggedTensor(keys=["item"], values=torch.tensor([7, 8]), lengths=torch.tensor([2]))
        >>> torch.equal(packed(kjt).values(), tables(kjt).values())
        True
    """

    def __init__(self, specs: Sequence[TableSpec], packs: Sequence[PackedTable]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.packs = NamedModules({spec.name: pack for spec, pack in zip(specs, packs, strict=True)})
        self.keys = [output_key(spec, feature, specs=specs) for spec in specs for feature in spec.feature_names]
        self.dims = [spec.embedding_dim for spec in specs for _ in spec.feature_names]
        self._lookups: dict[frozenset[str], _Kept] = {}

    def get_extra_state(self) -> Tensor:
        """What the tensors in a `state_dict` belong to: their tables, and the plain attributes of their packed
        forms."""
        return as_tensor({"tables": self._facts()}, form=FORM)

    def set_extra_state(self, state: Tensor) -> None:
        """Compares it.

        Raises:
            CheckpointError: packed tables of other methods, sizes or attributes; names them.
        """
        saved, mine = of_tensor(state, form=FORM)["tables"], json.loads(json.dumps(self._facts()))
        wrong = [name for name in mine if name in saved and saved[name] != mine[name]]
        if wrong:
            raise CheckpointError(
                f"the state_dict is of other packed tables: '{wrong[0]}' was {saved[wrong[0]]} and is {mine[wrong[0]]} "
                "here. Load the bundle that it was made from"
            )

    def _facts(self) -> dict[str, Any]:
        return {
            spec.name: {
                "method": spec.method,
                "num_embeddings": spec.num_embeddings,
                "embedding_dim": spec.embedding_dim,
                **pack.manifest(),
            }
            for spec, pack in self.packed_tables()
        }

    def packed_tables(self) -> Iterator[tuple[TableSpec, PackedTable]]:
        """Each table with its packed form, in order."""
        for spec, pack in zip(self.specs, self.packs, strict=True):
            assert isinstance(pack, PackedTable)
            yield spec, pack

    def forward(self, features: "KeyedJaggedTensor") -> "KeyedTensor":
        """Pooled logical rows: keys are the features, values [B, sum D].

        Args:
            features: ids by feature, with weights where tables pool by them; keys that no table uses are ignored.

        Raises:
            IdRangeError: an id outside its table.
            DataError: a feature is missing, or weights that a table needs.
            CheckpointError: the bundle that the tables are from was damaged unnoticed, and an id leads nowhere.
        """
        step = self.step_of(features)
        if step is not None:
            return step
        from torchrec import KeyedTensor

        from embank.tables.collections.bags import Bags, expanded

        batch = Bags(features)
        is_here = self.device.type == "cpu" and batch.values.device.type == "cpu"
        is_joint = is_here and not self.is_weighted() and not is_followed()
        values_BE = self._joint(batch) if is_joint else self._one_by_one(batch)
        inverse = batch.inverse([feature for spec in self.specs for feature in spec.feature_names])
        if inverse is not None:
            values_BE = expanded(values_BE, inverse, dims=self.dims)
        return KeyedTensor(keys=list(self.keys), length_per_key=list(self.dims), values=values_BE)

    def _one_by_one(self, batch: "Bags") -> Tensor:
        outputs: list[Tensor] = []
        for spec, pack in self.packed_tables():
            for feature in spec.feature_names:
                ids_N, lengths_B = batch.of(feature, spec=spec)
                weights_N = batch.weights_of(feature, spec=spec)
                rows_ND = looked_up(pack, ids_N, spec=spec)
                rows_ND = rows_ND if weights_N is None else rows_ND * weights_N[:, None]
                outputs.append(pool(rows_ND, bag_offsets(lengths_B), pooling=spec.pooling))
        return torch.cat(outputs, dim=1)

    def _joint(self, batch: "Bags") -> Tensor:
        """The same by `Lookups`: tables that are alike, and features with one id in each row, at once."""
        from embank.tables.serving.lookups import Lookups

        bags: frozenset[str] = frozenset()
        if batch.batch_size and not batch.is_single:
            single_F = (batch.lengths == 1).all(1).tolist()
            bags = frozenset(feature for feature, single in zip(batch.places, single_F, strict=True) if not single)
        kept = self._lookups.get(bags)  # once: another thread may clear them meanwhile
        if kept is None or not kept.held.is_current():
            if len(self._lookups) >= _MAX_LOOKUPS:
                self._lookups.clear()
            kept = self._lookups[bags] = _Kept(held=_Held(self), lookups=Lookups(self, bags=bags))
        if bags:
            spans = zip(batch.places, pairwise(batch.starts), strict=True)
            ids: Tensor | dict[str, Tensor] = {feature: batch.values[first:last] for feature, (first, last) in spans}
        else:
            ids = self._one_each(batch, kept.lookups.features)
        lengths = {feature: batch.lengths[batch.places[feature]] for feature in bags}
        (values_BE,) = kept.lookups(ids, lengths, num_rows=batch.batch_size)
        return values_BE

    def _one_each(self, batch: "Bags", features: Sequence[str]) -> Tensor:
        """Ids [F, B] of features with one id in each row.

        Raises:
            DataError: a feature is missing.
        """
        ids_FB = batch.values.view(len(batch.places), batch.batch_size)
        if list(batch.places) == features:
            return ids_FB
        for spec in self.specs:
            for feature in spec.feature_names:
                if feature not in batch.places:
                    raise missing_ids(feature, table=spec.name, present=batch.places)
        return ids_FB[[batch.places[feature] for feature in features]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `nn.Module.to`, `half` and their like call: tables move, but keep their types."""
        self._lookups.clear()  # they hold the tensors that are about to be replaced
        super()._apply(only_moving(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        self._lookups.clear()  # `load_state_dict` of a model that has these tables comes here, too
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_lookups": {}}  # type: ignore[no-untyped-call]

    def nbytes(self) -> int:
        """Serving bytes: everything that is held, what several tables share counted once."""
        return distinct_nbytes([*self.parameters(), *self.buffers()])

    def embedding_bag_configs(self) -> "list[EmbeddingBagConfig]":
        """The logical tables as TorchRec describes them: its own models read this."""
        from embank.tables.collections.bags import bag_configs

        return bag_configs(self.specs)

    def is_weighted(self) -> bool:
        """Whether tables pool by the ids' weights."""
        return any(spec.weighted for spec in self.specs)

    def refuse_weighted(self, who: str) -> None:
        """Raises ConfigError where a table pools by the ids' weights.

        Args:
            who: what takes ids alone.
        """
        name = next((spec.name for spec in self.specs if spec.weighted), None)
        if name is not None:
            raise ConfigError(
                f"table '{name}' pools by the weights of its ids, and {who} takes ids alone, so that it would give "
                "other sums. Leave the table out, or write its rows (embank convert --to parquet) and pool them there"
            )

    @property
    def device(self) -> torch.device:
        """Where the tables and the output are."""
        return next((buffer.device for buffer in self.buffers()), torch.device("cpu"))
