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
    runs = [("base", "addressed"), ("sparse_dist", "addressed")]
    runs += [] if unpooled or method not in ("full", "dpq") else [("sparse_dist", "ids"), ("sparse_dist", "alone")]
    for name, given in runs:
        found = two.run(pipelines.by_a_pipeline, name, kind, method, unpooled, given)
        for rank, (logits, travelling) in enumerate(found):
            assert torch.equal(logits, expected[rank]), f"{name}, {given}, rank {rank}"
            ahead = 1 if name == "sparse_dist" and given != "alone" else 0
            assert travelling == [ahead] * (pipelines.NUM_STEPS - 1) + [0]
