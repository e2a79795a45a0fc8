"""Every registered method over two processes, cut in every way, equals its unsharded torch twin in value and over ten
steps."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from embank.tables import method_class
from tests.contracts.sharded import STEPS, Case, compare, starts_equal
from tests.contracts.specs import BATCH_DEPENDENT, NAMES, SHARING
from tests.distributed.ranks import Ranks

pytestmark = pytest.mark.slow

KINDS = ("table_wise", "row_wise", "column_wise", "data_parallel")
TIERS = ((("fbgemm", "device"), ("torch", "disk")), (("fbgemm", "disk"), ("torch", "device")))
"""Every method in each way has both backends and both tiers; ways and methods in turn have the one pair or the other,
so that each method and each way has all four."""
TOLERANCE = 2e-5
"""Sums over a batch are made in another order than in one process."""
ROUNDED = {"low_precision": 1e-3, "alpt": 1e-3}
"""Rounding jumps: where updates differ in their last bit, an element may land on the next point of its grid."""


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", NAMES)
class TestSharding:
    def test_equals_one_process(self, method: str, kind: str, two_ranks: Ranks, tmp_path: Path) -> None:
        """Outputs, rows and dense parameters over ten steps; column-wise row-wise Adagrad is refused, so adagrad is
        used there."""
        if kind == "column_wise" and method_class(method).traits.whole_rows:
            return  # refused, see tests/tables/test_plan.py
        for backend, tier in TIERS[(NAMES.index(method) + KINDS.index(kind)) % 2]:
            case = Case(
                method=method,
                kind=kind,
                backend=backend,
                tier=tier,
                optimizer="adagrad" if kind == "column_wise" else "rowwise_adagrad",
                training=method not in BATCH_DEPENDENT,
            )
            for worst in two_ranks.run(compare, case, tmp_path):
                assert worst < ROUNDED.get(method, TOLERANCE), f"{backend}, {tier}: largest difference {worst:.1e}"

    def test_starts_with_the_same_outputs(self, method: str, kind: str, two_ranks: Ranks) -> None:
        if kind == "column_wise" and method_class(method).traits.whole_rows:
            return
        assert all(two_ranks.run(starts_equal, method, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_that_are_wider_than_fbgemms_kernels(kind: str, two_ranks: Ranks, tmp_path: Path) -> None:
    """Beside a narrow one; of the columns each rank has still too many for a kernel."""
    optimizer = "adagrad" if kind == "column_wise" else "rowwise_adagrad"
    case = Case(
        method="full", kind=kind, backend="fbgemm", tier="disk", optimizer=optimizer, training=True, dim=2 * 2052
    )
    for worst in two_ranks.run(compare, case, tmp_path):
        assert worst < TOLERANCE, f"largest difference {worst:.1e}"


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise"])
def test_rows_of_two_bytes(kind: str, dtype: str, two_ranks: Ranks, tmp_path: Path) -> None:
    """Within ten roundings of fp32's, of values below 1."""
    case = Case(method="full", kind=kind, backend="torch", tier="disk", optimizer="adagrad", training=True, dtype=dtype)
    for worst in two_ranks.run(compare, case, tmp_path):
        assert 0 < worst < STEPS * {"fp16": 2**-10, "bf16": 2**-7}[dtype], f"largest difference {worst:.1e}"


@pytest.mark.parametrize("kind", ["row_wise", "table_wise", "data_parallel"])
@pytest.mark.parametrize("method", sorted(SHARING))
def test_rows_that_tables_share_equal_one_process(method: str, kind: str, two_ranks: Ranks, tmp_path: Path) -> None:
    """A physical table that two logical tables read is placed once, and gets the gradients of both from all ranks."""
    for backend in ("fbgemm", "torch"):
        case = Case(
            method=method,
            kind=kind,
            backend=backend,
            tier="device",
            optimizer="rowwise_adagrad",
            training=True,
            shared=True,
        )
        for worst in two_ranks.run(compare, case, tmp_path):
            assert worst < TOLERANCE, f"{backend}: largest difference {worst:.1e}"
