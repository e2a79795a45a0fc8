"""Plain TorchRec: its DLRM under DistributedModelParallel, trained some steps and saved, without anything of ours."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM

SIZES = {"user": 50, "genre": 9, "item": 7}
"""Not in the order of the prepared data."""
DIM, BOTTOM, TOP = 8, [6, 8], [10, 5, 1]


def plain_model() -> DLRM:
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name=f"t_{name}", embedding_dim=DIM, num_embeddings=size, feature_names=[name])
        for name, size in SIZES.items()
    ]
    return DLRM(EmbeddingBagCollection(tables=tables), 2, BOTTOM, TOP)


def batch(*, rows: int, seed: int) -> tuple[Tensor, KeyedJaggedTensor]:
    """Numbers [B, 2], and ids: one a row, of genres none to three."""
    generator = torch.Generator().manual_seed(seed)
    values, lengths = [], []
    for name, size in SIZES.items():
        lengths_B = torch.ones(rows, dtype=torch.int64)
        if name == "genre":
            lengths_B = torch.randint(0, 4, (rows,), generator=generator)
        lengths.append(lengths_B)
        values.append(torch.randint(0, size, (int(lengths_B.sum()),), generator=generator))
    kjt = KeyedJaggedTensor(list(SIZES), torch.cat(values), lengths=torch.cat(lengths))
    return torch.randn(rows, 2, generator=generator), kjt


def save_sharded(rank: int, path: Path) -> tuple[list[float], dict[str, Tensor]]:
    """Trains on both ranks, one table spread by rows, one by columns, one whole; saves model and optimizer.

    Returns:
        Scores of a batch that all ranks score alike, and the state of the rows' optimizer by name.
    """
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.sharding_plan import (
        column_wise,
        construct_module_sharding_plan,
        row_wise,
        table_wise,
    )
    from torchrec.distributed.types import ShardingEnv, ShardingPlan

    model, fused = plain_model(), EmbeddingComputeKernel.FUSED.value
    sharder: Any = EmbeddingBagCollectionSharder(
        fused_params={"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.1}
    )
    tables = construct_module_sharding_plan(
        model.sparse_arch.embedding_bag_collection,
        {
            "t_user": row_wise(compute_kernel=fused),
            "t_item": table_wise(rank=1, compute_kernel=fused),
            "t_genre": column_wise(ranks=[0, 1], compute_kernel=fused),
        },
        sharder=sharder,
        world_size=2,
        local_size=2,
        device_type="cpu",
    )
    sharded = DistributedModelParallel(
        model,
        device=torch.device("cpu"),
        plan=ShardingPlan(plan={"sparse_arch.embedding_bag_collection": tables}),
        sharders=[sharder],
        env=ShardingEnv.from_process_group(dist.group.WORLD),
    )
    generator = torch.Generator().manual_seed(rank)  # TorchRec gives sharded tables fresh values
    for name, tensor in sorted(sharded.state_dict().items()):
        if ".embedding_bags." in name:
            for shard in tensor.local_shards():
                shard.tensor.copy_(torch.randn(shard.tensor.shape, generator=generator) / 4)
    dense = torch.optim.SGD([p for n, p in sharded.named_parameters() if "embedding_bags" not in n], lr=0.1)
    for step in range(3):
        numbers_BI, kjt = batch(rows=16, seed=10 * step + rank)
        dense.zero_grad()
        sharded(numbers_BI, kjt).square().mean().backward()
        dense.step()
    numbers_BI, kjt = batch(rows=20, seed=99)
    scores = torch.sigmoid(sharded(numbers_BI, kjt)).flatten().tolist()
    states = sharded.fused_optimizer.state_dict()
    dcp.save({"model": sharded.state_dict(), "optim": states}, checkpoint_id=str(path))
    held = {}
    for name, state in states["state"].items():
        for key, value in state.items():
            if key.endswith("t_user.momentum1"):
                held[name] = torch.cat([shard.tensor for shard in value.local_shards()])
    dist.barrier()
    return scores, held
