"""`StreamingCollection`: a collection of tables whose ids have no end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embank.tables.collections.addressed import Addressed
from embank.tables.collections.bags import Bags
from embank.tables.collections.base import Tables
from embank.tables.collections.ids import missing_ids
from embank.tables.collections.pooled import TableCollection
from embank.tables.collections.sequence import SequenceCollection
from embank.tables.collections.traced import OneStep
from embank.tables.errors import ConfigError, DataError
from embank.tables.specs import TableSpec
from embank.tables.streaming.base import UNKNOWN_ROW, IdVocabulary, VocabularyConfig
from embank.tables.streaming.mapped import Mapped, StreamCounts
from embank.tables.streaming.resets import refuse_shared_rows, reset_rows
from embank.tables.streaming.vocabularies import Vocabularies
from embank.tables.wording import nearest_or_all


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """A batch whose ids are mapped and addressed: for the collection that mapped it, before any later batch is looked
    up.

    Args:
        addressed: as the tables take it.
        mapped: for each table with a vocabulary, what that made of the ids of its features.
    """

    addressed: Addressed
    mapped: Mapping[str, Mapped] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, StreamCounts]:
        """By table with a vocabulary, what happened in this batch."""
        return {table: mapped.counts for table, mapped in self.mapped.items()}


class StreamingCollection(OneStep):
    """Vocabularies that learn, before a collection of tables. KeyedJaggedTensor in, what the collection gives out.

    `map` may run ahead of `forward`, on the data loader's thread, as long as batches keep their order: resets wait for
    the forward pass of their own batch, or of the first one after it where that is never looked up. A checkpoint that
    is taken while mapped batches wait has learned them already, and holds their resets.

    Args:
        tables: the collection; it goes on owning rows, optimizer and methods.
        vocabularies: by table, the options of its vocabulary. It has the table's features and as many rows as the
            table. Other tables that look up these features (first-order weights beside embeddings) are served by it
            too. Features without a vocabulary pass unchanged.

    Raises:
        ConfigError: no collection, no options by table, a table that is not there, whose rows can't be reset (see
            `reset_rows`), or that shares some of its features with a table of another size or of further features.

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

    def __init__(
        self, tables: TableCollection | SequenceCollection, vocabularies: Mapping[str, VocabularyConfig]
    ) -> None:
        super().__init__()
        _refuse_wrong_arguments(tables, vocabularies)
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
        self.vocabularies = Vocabularies(built)
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
        """The vocabulary of a table that was given one.

        Raises:
            ConfigError: the table has none.
        """
        return self.vocabularies.of(table)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """What `load_state_dict` calls before it loads the tables and then the vocabularies."""
        self.vocabularies.refuse_bad_states(state_dict, prefix=f"{prefix}vocabularies.")
        super()._load_from_state_dict(state_dict, prefix, *others)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module; before anything is loaded, vocabularies of other tables are refused if `strict`.

        Raises:
            CheckpointError: they are of other tables, or one can't be loaded.
        """
        if strict:
            self.vocabularies.refuse_other_tables(state_dict, prefix="vocabularies.")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def map(self, features: KeyedJaggedTensor) -> Streamed:
        """Ids to rows; in training mode the vocabularies learn the batch. Batches must come in the order of training.

        Args:
            features: token ids for features with a vocabulary, ids of their tables for the others.

        Raises:
            DataError: a negative id, a feature that is missing, or what the tables refuse; nothing was learned.
        """
        bags = Bags(features)
        ids = {table: self._ids(bags, table) for table in self.features}
        asked = None
        if any(self.vocabulary(table).training for table in ids):
            # What the tables refuse they refuse now: a vocabulary that has learned can't go back.
            unknown = {table: torch.full_like(ids_N, UNKNOWN_ROW) for table, ids_N in ids.items()}
            asked = self.tables.asked(self._holding(bags, unknown))
        mapped = {table: self.vocabulary(table).mapped(ids_N) for table, ids_N in ids.items()}
        known = self._holding(bags, {table: one.rows for table, one in mapped.items()})
        if asked is None:
            asked = self.tables.asked(known)
        else:  # only tables with a vocabulary have other ids now, and what they make of them takes no time
            served = {name for names in self.followers.values() for name in names}
            asked = asked._replace(uses=asked.uses | self.tables.use_rows(known, tables=served))
        return Streamed(addressed=self.tables.joined(asked), mapped=mapped)

    def _ids(self, bags: Bags, table: str) -> Tensor:
        """Ids int64 [N] that a vocabulary is given, feature after feature."""
        return self.vocabulary(table).checked(torch.cat([bags.values[span] for span in self._spans(bags, table)]))

    def _spans(self, bags: Bags, table: str) -> list[slice]:
        """Where the ids of a vocabulary's features are in a batch."""
        spans = []
        for feature in self.features[table]:
            if feature not in bags.places:
                raise missing_ids(feature, table=table, present=bags.places)
            place = bags.places[feature]
            spans.append(slice(bags.starts[place], bags.starts[place + 1]))
        return spans

    def _holding(self, bags: Bags, rows: Mapping[str, Tensor]) -> Bags:
        """A batch with rows in the place of the ids of vocabularies."""
        values = bags.values.clone()
        for table, rows_N in rows.items():
            spans = self._spans(bags, table)
            parts = torch.split(rows_N, [span.stop - span.start for span in spans])
            for span, part in zip(spans, parts, strict=True):
                values[span] = part
        return bags.holding(values)

    def forward(self, features: KeyedJaggedTensor | Streamed) -> KeyedTensor | dict[str, JaggedTensor]:
        """What the tables give for the batch; rows that it and batches before it gave to other ids start anew first.

        Args:
            features: a batch, or what `map` made of it.

        Raises:
            DataError: the batch was mapped by another collection, before a state was loaded, or before one that was
                looked up already.
        """
        step: KeyedTensor | None = self.step_of(features)
        if step is not None:
            return step
        streamed = features if isinstance(features, Streamed) else self.map(features)
        self._refuse_stale(streamed)
        for table, mapped in streamed.mapped.items():
            for reset in self.vocabulary(table).waiting.due(mapped):
                for name in self.followers[table]:
                    reset_rows(self.tables, name, reset.rows, draw=reset.draw)
        looked_up: KeyedTensor | dict[str, JaggedTensor] = self.tables(streamed.addressed)
        return looked_up

    def _refuse_stale(self, streamed: Streamed) -> None:
        if streamed.mapped.keys() != self.features.keys():
            raise DataError(
                f"this batch was mapped by vocabularies of {list(streamed.mapped)}, and here they are of "
                f"{list(self.features)}; map it with the StreamingCollection that looks it up"
            )
        for table, mapped in streamed.mapped.items():
            vocabulary = self.vocabulary(table)
            vocabulary.waiting.refuse_stale(mapped, table=table, step=vocabulary.step)


def _refuse_wrong_arguments(tables: object, vocabularies: object) -> None:
    if not isinstance(tables, Tables):
        raise ConfigError(f"the tables are a {type(tables).__name__}; give a TableCollection or a SequenceCollection")
    if not isinstance(vocabularies, Mapping):
        raise ConfigError(
            f"the vocabularies are a {type(vocabularies).__name__}; give options by table, "
            f"{{'{tables.specs[0].name}': StreamingConfig()}}"
        )
    for name, config in vocabularies.items():
        if isinstance(config, type) or not isinstance(config, VocabularyConfig):
            given = f"the class {config.__name__}" if isinstance(config, type) else f"a {type(config).__name__}"
            raise ConfigError(
                f"the vocabulary of table '{name}' is {given}; give options, StreamingConfig(policy='lru') or "
                "ManagedCollisionConfig()"
            )
