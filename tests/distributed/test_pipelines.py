"""TorchRec's training pipelines over sharded collections: the results of the plain loop, with the next batch's ids on
their way."""

import pytest
import torch

from tests.distributed import pipelines
from tests.distributed.ranks import Ranks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
@pytest.mark.parametrize(
    ("method", "unpooled"),
    [("full", False), ("tt_rec", False), ("dpq", False), ("hash_embedding", False), ("full", True), ("tt_rec", True)],
)
def test_pipelines_equal_the_loop(two: Ranks, kind: str, method: str, unpooled: bool) -> None:
    expected = two.run(pipelines.by_the_loop, kind, method, unpooled)
    assert not torch.equal(expected[0], expected[1])
    for name in ("base", "sparse_dist"):
        for rank, (logits, travelling) in enumerate(two.run(pipelines.by_a_pipeline, name, kind, method, unpooled)):
            assert torch.equal(logits, expected[rank]), f"{name}, rank {rank}"
            ahead = 1 if name == "sparse_dist" else 0
            assert travelling == [ahead] * (pipelines.NUM_STEPS - 1) + [0]
