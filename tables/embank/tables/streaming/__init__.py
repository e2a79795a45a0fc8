"""Streaming vocabularies: ids without an end on a table that has one.

`StreamingCollection` puts them before a `TableCollection`; a vocabulary by itself maps ids to rows of any table, and
`reset_rows` gives rows that change hands a fresh start.
"""

from embank.tables.streaming.base import IdVocabulary, VocabularyConfig
from embank.tables.streaming.collection import Streamed, StreamingCollection
from embank.tables.streaming.managed import ManagedCollisionConfig, ManagedVocabulary
from embank.tables.streaming.mapped import Mapped, StreamCounts
from embank.tables.streaming.resets import reset_rows
from embank.tables.streaming.vocabulary import StreamingConfig, StreamingVocabulary

__all__ = [
    "IdVocabulary",
    "ManagedCollisionConfig",
    "ManagedVocabulary",
    "Mapped",
    "StreamCounts",
    "Streamed",
    "StreamingCollection",
    "StreamingConfig",
    "StreamingVocabulary",
    "VocabularyConfig",
    "reset_rows",
]
