"""`StreamingCollection`: a `TableCollection` whose ids have no end."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torchrec import KeyedJaggedTensor, KeyedTensor

from embank.tables.collections.addressed import Addressed
from embank.tables.collections.bags import Bags
from embank.tables.collections.ids import missing_ids
from embank.tables.collections.named import NamedModules
from embank.tables.collections.pooled import TableCollection
from embank.tables.collections.traced import OneStep
from embank.tables.errors import ConfigError
from embank.tables.specs import TableSpec
from embank.tables.streaming.base import IdVocabulary, Mapped, StreamCounts, VocabularyConfig
from embank.tables.streaming.resets import refuse_shared_rows, reset_rows
from embank.tables.wording import nearest_or_all


@dataclass(kw_only=True)
class Streamed:
    """A batch whose ids are mapped and addressed.

    Args:
        addressed: as the tables take it.
        mapped: for each table with a vocabulary, what that made of the ids of its features.
        is_reset: whether the rows that change hands have started anew: the first forward pass does it.
    """

    addressed: Addressed
    mapped: Mapping[str, Mapped] = field(default_factory=dict)
    is_reset: bool = False

    @property
    def counts(self) -> dict[str, StreamCounts]:
        """By table with a vocabulary, what happened in this batch."""
        return {table: mapped.counts for table, mapped in self.mapped.items()}


class StreamingCollection(OneStep):
    """Vocabularies that learn, before a collection of tables. KeyedJaggedTensor in, KeyedTensor out, as the collection.

    `map` may run ahead of `forward`, in the data loader, as long as batches keep their order: resets wait for the
    forward pass of their own batch. A checkpoint that is taken while mapped batches wait has learned them already.

    Args:
        tables: the collection; it goes on owning rows, optimizer and methods.
        vocabularies: by table, the options of its vocabulary. It has the table's features and as many rows as the
            table. Other tables that look up these features (first-order weights beside embeddings) are served by it
            too. Features without a vocabulary pass unchanged.

    Raises:
        ConfigError: a table that is not there, whose rows can't be reset (see `reset_rows`), or that shares some of its
            features with a table of another size or of further features.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> spec = TableSpec(name="plane", num_embeddings=4, embedding_dim=2, feature_names=["plane"])
        >>> tables = TableCollection([spec])
        >>> streaming = StreamingCollection(tables, {"plane": StreamingConfig(admit_after=2)})
        >>> for planes in (["N14228", "N24211"], ["N14228", "N619AA"]):
        ...     ids = torch.from_numpy(token_ids(planes))
        ...     kjt = KeyedJaggedTensor(keys=["plane"], values=ids, lengths=torch.ones(2, dtype=torch.int32))
        ...     streamed = streaming.map(kjt)
        ...     print(streamed.mapped["plane"].rows.tolist(), streamed.counts["plane"].admissions)
        [0, 0] 0
        [1, 0] 1
        >>> streaming(streamed)["plane"].shape
        torch.Size([2, 2])
    """

    def __init__(self, tables: TableCollection, vocabularies: Mapping[str, VocabularyConfig]) -> None:
        super().__init__()
        self.tables = tables
        by_name = {spec.name: spec for spec in tables.specs}
        self.followers: dict[str, list[str]] = {}
        self.features: dict[str, tuple[str, ...]] = {}
        built: dict[str, IdVocabulary] = {}
        for name, config in vocabularies.items():
            if name not in by_name:
                raise ConfigError(
                    f"a vocabulary is for table '{name}', which is not there; "
                    f"{nearest_or_all(name, by_name, label='there are')}"
                )
            spec = by_name[name]
            self.followers[name] = self._served(spec)
            self.features[name] = tuple(spec.feature_names)
            built[name] = config.build(name=name, capacity=spec.num_embeddings)
        self.vocabularies = NamedModules(built)
        for method in tables.built_methods():
            if any(method.spec.name in names for names in self.followers.values()):
                refuse_shared_rows(tables, method)

    def _served(self, spec: TableSpec) -> list[str]:
        """The tables that look up the features of one."""
        served = []
        for other in self.tables.specs:
            if not set(other.feature_names) & set(spec.feature_names):
                continue
            if other.num_embeddings != spec.num_embeddings or not set(other.feature_names) <= set(spec.feature_names):
                raise ConfigError(
                    f"table '{other.name}' ({other.num_embeddings:,} ids, features {list(other.feature_names)}) looks "
                    f"up features of table '{spec.name}' ({spec.num_embeddings:,} ids, features "
                    f"{list(spec.feature_names)}), whose vocabulary then serves both; give them the same "
                    "num_embeddings, and the vocabulary to the one with more features"
                )
            taken = [name for name, names in self.followers.items() if other.name in names]
            if taken:
                raise ConfigError(
                    f"table '{other.name}' is served by the vocabulary of table '{taken[0]}' already; drop that of "
                    f"table '{spec.name}'"
                )
            served.append(other.name)
        return served

    def vocabulary(self, table: str) -> IdVocabulary:
        """The vocabulary of a table that was given one."""
        found = self.vocabularies.named(table)
        assert isinstance(found, IdVocabulary)
        return found

    def map(self, features: KeyedJaggedTensor) -> Streamed:
        """Ids to rows; in training mode the vocabularies learn the batch. Batches must come in the order of training.

        Args:
            features: token ids for features with a vocabulary, ids of their tables for the others.

        Raises:
            DataError: a negative id, a feature that is missing, or what the tables refuse.
        """
        bags = Bags(features)
        values = bags.values.clone()
        mapped = {}
        for table, names in self.features.items():
            spans = [self._span(bags, name, table=table) for name in names]
            mapped[table] = self.vocabulary(table)(torch.cat([bags.values[span] for span in spans]))
            start = 0
            for span in spans:
                size = span.stop - span.start
                values[span] = mapped[table].rows[start : start + size]
                start += size
        rows = KeyedJaggedTensor(
            keys=features.keys(),
            values=values,
            weights=features.weights_or_none(),
            lengths=features.lengths(),
            stride=None if bags.is_variable else features.stride(),
            stride_per_key_per_rank=features.stride_per_key_per_rank() if bags.is_variable else None,
            inverse_indices=features.inverse_indices_or_none(),
        )
        return Streamed(addressed=self.tables.address(rows), mapped=mapped)

    @staticmethod
    def _span(bags: Bags, feature: str, *, table: str) -> slice:
        if feature not in bags.places:
            raise missing_ids(feature, table=table, present=bags.places)
        place = bags.places[feature]
        return slice(bags.starts[place], bags.starts[place + 1])

    def forward(self, features: KeyedJaggedTensor | Streamed) -> KeyedTensor:
        """Pooled rows; rows that this batch gave to other ids start anew first.

        Args:
            features: a batch, or what `map` made of it.
        """
        step = self.step_of(features)
        if step is not None:
            return step
        streamed = features if isinstance(features, Streamed) else self.map(features)
        if not streamed.is_reset:
            for table, mapped in streamed.mapped.items():
                for name in self.followers[table] if mapped.resets.numel() else ():
                    reset_rows(self.tables, name, mapped.resets, draw=mapped.draw)
            streamed.is_reset = True
        pooled: KeyedTensor = self.tables(streamed.addressed)
        return pooled
