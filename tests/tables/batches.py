"""Random batches for tests of tables."""

import torch
from torchrec import KeyedJaggedTensor


def random_kjt(
    sizes: dict[str, int], *, batch_size: int, seed: int, max_bag: int = 4, single: bool = False
) -> KeyedJaggedTensor:
    """Bags of 0..max_bag ids (or exactly one) per feature, duplicates likely."""
    generator = torch.Generator().manual_seed(seed)
    lengths, values = [], []
    for size in sizes.values():
        length = torch.ones(batch_size, dtype=torch.int32)
        if not single:
            length = torch.randint(0, max_bag + 1, (batch_size,), generator=generator, dtype=torch.int32)
        lengths.append(length)
        # Half of the ids from a few hot ones, so that rows repeat within a batch.
        ids = torch.randint(0, size, (int(length.sum()),), generator=generator)
        hot = torch.randint(0, min(size, 3), (ids.numel(),), generator=generator)
        values.append(torch.where(torch.rand(ids.numel(), generator=generator) < 0.5, hot, ids))
    return KeyedJaggedTensor(keys=list(sizes), values=torch.cat(values), lengths=torch.cat(lengths))
