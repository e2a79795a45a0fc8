"""From a collection that was trained to its inference form."""

from collections.abc import Mapping

import torch

from embank.tables.collections.pooled import TableCollection
from embank.tables.collections.training import refuse_unfinished
from embank.tables.errors import ConfigError
from embank.tables.method.schedule import is_last_stage, stages_of
from embank.tables.serving.packed import PackedCollection
from embank.tables.storage.checkpoint import refuse_no_tables


@torch.no_grad()
def pack_collection(tables: TableCollection, *, codec: str | Mapping[str, str] = "fp32") -> PackedCollection:
    """The inference form of a collection, settled. It may share memory with the collection's rows, which stay as they
    are.

    Args:
        tables: in the last stage of their methods.
        codec: how matrices are held that the methods do not code themselves: a name for all tables, or by table.

    Raises:
        ConfigError: there is no such codec or table, a codec can't hold its rows, a table is not in the last stage of
            its method, its schedule was not followed (`Tables.step`), or rows are sharded.

    Example:
        >>> spec = TableSpec(
        ...     name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"], method="dpq", budget=0.2
        ... )
        >>> packed = pack_collection(TableCollection([spec]))
        >>> packed.nbytes()
        6024
        >>> tables = TableCollection(
        ...     [TableSpec(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])]
        ... )
        >>> pack_collection(tables, codec="int4").nbytes(), tables.plain_nbytes
        (4500, 32000)
    """
    refuse_no_tables(tables, doing="pack_collection")
    tables.refuse_packing_parts()
    refuse_unfinished(tables)
    for method in tables.built_methods():
        spec, stages = method.spec, stages_of(method)
        if not is_last_stage(method):
            raise ConfigError(
                f"table '{spec.name}' (method '{spec.method}') is in stage '{stages[spec.stage].name}', "
                f"{spec.stage + 1} of {len(stages)}; only the last one is served. Train it to the end first"
            )
    return PackedCollection(tables.specs, tables.packs(codec=codec))
