"""Collections that every process holds, spread over all of them. Runs in worker processes."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from embank.tables import ConfigError, Placement, Plan, RowOptimizer, Sharding, TableCollection
from embank.tables.torchrec import EmbeddingBagCollection
from tests.distributed.programs import bag_configs


def plan_of(kind: str) -> Sharding:
    ranks = {"table_wise": (1,), "column_wise": (1, 0), "row_wise": (), "data_parallel": ()}[kind]
    tables = {config.name: Placement(kind=kind, ranks=ranks) for config in bag_configs()}
    return Sharding(plan=Plan(world_size=2, tables=tables))


def differences(rank: int, state: Mapping[str, Tensor], optimizer: str, kind: str | None) -> list[str]:
    """Of trained tables that are spread: whose rows, optimizer's state or count are not those of the whole tables."""
    tables = TableCollection.from_configs(bag_configs(), optimizer=RowOptimizer(name=optimizer, lr=0.1))
    tables.load_state_dict(state)
    rows = {name: view.clone() for name, view in tables.weights().items()}
    states = {name: {k: v.clone() for k, v in kinds.items()} for name, kinds in tables.optimizer_state().items()}
    tables.spread(sharding=None if kind is None else plan_of(kind))
    wrong = []
    for store in tables.row_stores():
        assert store.num_updates == 3
        for shard in store.shards:
            name, columns = shard.table.name, slice(shard.first_column, shard.first_column + shard.num_columns)
            numbers = shard.row_numbers()
            local = (numbers < shard.table.num_embeddings).nonzero().squeeze(1)
            if not torch.equal(tables.weights()[name][local], rows[name][numbers[local], columns]):
                wrong.append(name)
            for key, view in tables.optimizer_state()[name].items():
                whole = states[name][key][numbers[local]]
                part = whole[:, columns] if whole.dim() == 2 and whole.shape[1] > 1 else whole
                if not torch.equal(view[local], part) or not view.any():
                    wrong.append(f"{name}.{key}")
    return wrong


def refusals(rank: int) -> list[str]:
    """What is refused."""
    tables = EmbeddingBagCollection(tables=bag_configs(), optimizer=RowOptimizer())
    told = []
    tables.spread(sharding=plan_of("row_wise"))
    for call in (tables.spread, tables.state_dict, EmbeddingBagCollection(tables=bag_configs()).spread):
        try:
            call()
        except ConfigError as error:
            told.append(str(error))
    return told


def saved(rank: int, folder: str, kind: str) -> dict[str, Any]:
    """Writes a checkpoint of spread tables with TorchRec's names; loads another one into them, and the first again."""
    torch.manual_seed(3)
    tables = EmbeddingBagCollection(tables=bag_configs(), optimizer=RowOptimizer())
    whole = {name: view.clone() for name, view in tables.state_dict().items()}
    tables.spread(sharding=plan_of(kind))
    dcp.save({"model": tables.state_dict()}, checkpoint_id=folder)
    tables.load_state_dict({name: torch.zeros_like(view) for name, view in whole.items()})
    is_zero = not any(view.any() for view in tables.weights().values())
    state = tables.state_dict()
    dcp.load({"model": state}, checkpoint_id=folder)
    tables.load_state_dict(state)
    dist.barrier()
    first = tables.weights()["a"].clone() if "a" in tables.weights() else None
    return {"whole": whole, "is_zero": is_zero, "first": first}
