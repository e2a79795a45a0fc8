"""Unsharded tables on several processes: evaluation is fine, training is refused, since rows would drift apart in
silence."""

import pytest
import torch

from tests.distributed import replicas
from tests.distributed.ranks import Ranks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_training_is_refused_and_evaluation_is_not(two: Ranks, backend: str) -> None:
    for said in two.run(replicas.refusals, backend):
        assert said.pop("evaluation") == ""
        for use, message in said.items():
            assert message.startswith("ConfigError: these tables are trained by one of 2 processes"), (use, message)
            assert "sharding=Sharding(plan=...)" in message


@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_sharded_tables_train_inside_ddp(two: Ranks, backend: str) -> None:
    first, second = two.run(replicas.sharded_in_ddp, backend)
    assert sorted(first) == ["rows", "score.bias", "score.weight", "tables.mark.rows"]
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_one_process_in_a_group_of_its_own_trains() -> None:
    one = Ranks(1)
    try:
        assert set(one.run(replicas.refusals, "fbgemm")[0].values()) == {""}
    finally:
        one.close()
