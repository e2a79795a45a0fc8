"""The published rules give the published values, and this package's own, counting all bytes, are no worse within the
same bytes."""

import pytest

from embank.compression.methods.compositional import Compositional, Partitions
from embank.compression.methods.dhe import DheConfig, decoder_nbytes, layer_widths
from embank.compression.methods.memcom import Memcom
from embank.compression.methods.robe import Robe
from embank.compression.methods.tt_rec import TTRec
from embank.tables import BudgetError, Method, TableSpec, build_method, method_class, physical_tables
from tests.compression import published_accounting as published
from tests.compression.cardinalities import AVAZU, CRITEO, DIM

DATA = {"criteo": CRITEO, "avazu": AVAZU}


def specs_of(data: str, method: str) -> list[TableSpec]:
    return [
        TableSpec(name=f"C{i}", num_embeddings=num, embedding_dim=DIM, feature_names=[f"C{i}"], method=method)
        for i, num in enumerate(DATA[data])
    ]


def plain_nbytes(data: str) -> int:
    return 4 * DIM * sum(DATA[data])


def allocated(data: str, method: str, rate: float) -> list[TableSpec]:
    return method_class(method).traits.allocation.share(specs_of(data, method), int(rate * plain_nbytes(data)))


def nbytes_of(method: Method) -> int:
    return sum(4 * table.num_embeddings * table.embedding_dim for table in physical_tables(method))


def floor_of(data: str, method: str) -> float:
    """The floor that the refusal of one byte states."""
    with pytest.raises(BudgetError) as refused:
        method_class(method).traits.allocation.share(specs_of(data, method), 1)
    return float(str(refused.value).split("floor is budget ")[1].split(";")[0])


def test_sizes() -> None:
    assert sum(CRITEO) == 33_762_577
    assert sum(AVAZU) == 9_449_445


@pytest.mark.parametrize(
    ("rate", "divisor", "reached"), [(0.5, 2, 0.500002), (0.1, 10, 0.100008), (0.01, 101, 0.009961)]
)
def test_compositional(rate: float, divisor: int, reached: float) -> None:
    choice = published.compositional(CRITEO, rate=rate)
    assert choice.value == divisor
    assert choice.rate == pytest.approx(reached, abs=5e-7)
    methods = [build_method(spec) for spec in allocated("criteo", "compositional", choice.rate)]
    assert sum(map(nbytes_of, methods)) <= choice.rate * plain_nbytes("criteo")
    for method in methods:
        if isinstance(method, Compositional):
            assert method.sizes[1] <= divisor
            assert len(method.sizes) == 2
    divisors = [m.sizes[1] if isinstance(m, Compositional) else 1 for m in methods]
    theirs = [divisor if -(-num // divisor) + divisor < num else 1 for num in CRITEO]
    assert sum(divisors) < sum(theirs) + (rate == 0.5)  # 2 is the least that there is


@pytest.mark.parametrize(("data", "common", "each"), [("criteo", 0.00138, 0.000853), ("avazu", 0.00190, 0.001005)])
def test_compositional_floors(data: str, common: float, each: float) -> None:
    assert published.compositional_floor(DATA[data]).rate == pytest.approx(common, abs=5e-6)
    own = sum(min(num, Partitions(num, 2).floor) for num in DATA[data]) / sum(DATA[data])
    assert own == pytest.approx(each, abs=5e-7)
    assert floor_of(data, "compositional") < 0.1 * own


RANKS = {
    "criteo": {0.5: (376, 4), 0.1: (157, 6), 0.01: (46, 12), 0.001: (13, 18), 0.0001: (3, 24)},
    "avazu": {0.5: (336, 2), 0.1: (147, 2), 0.01: (40, 6), 0.001: (11, 11), 0.0001: (2, 22)},
}


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01, 0.001, 0.0001])
@pytest.mark.parametrize("data", ["criteo", "avazu"])
def test_tt_rec(data: str, rate: float) -> None:
    choice = published.tt_rec(DATA[data], embedding_dim=DIM, rate=rate)
    assert (choice.value, choice.num_compressed) == RANKS[data][rate]
    methods = [build_method(spec) for spec in allocated(data, "tt_rec", choice.rate)]
    assert sum(map(nbytes_of, methods)) <= choice.rate * plain_nbytes(data)
    trains = [method.tensor_train for method in methods if isinstance(method, TTRec)]
    for train in trains:
        caps = train.rows[0] * train.dims[0], train.rows[2] * train.dims[2]
        assert all(rank >= min(choice.value, cap) for rank, cap in zip(train.ranks, caps, strict=True))


@pytest.mark.parametrize(("data", "floor"), [("criteo", 0.000019), ("avazu", 0.000025)])
def test_tt_rec_floors(data: str, floor: float) -> None:
    with pytest.raises(BudgetError, match="the published rule for 'tt_rec' has its floor at") as refused:
        published.tt_rec(DATA[data], embedding_dim=DIM, rate=1e-6)
    theirs = float(str(refused.value).split("floor at ")[1].split(";")[0])
    assert theirs == pytest.approx(floor, abs=5e-7)
    assert floor_of(data, "tt_rec") <= theirs


def test_tt_rec_factors() -> None:
    assert published.tt_rec_dims(16) == (2, 2, 4)
    assert published.tt_rec_dims(8) == (2, 2, 2)
    assert published.tt_rec_rows(10_131_227) == (216, 217, 217)
    with pytest.raises(ValueError, match="embedding_dim is 12; use a power of two from 8 on"):
        published.tt_rec_dims(12)


WIDTHS = {
    "criteo": {0.5: (3626, 4), 0.1: (1372, 5), 0.01: (271, 8), 0.001: (29, 14), 0.0001: (2, 18)},
    "avazu": {0.5: (2933, 2), 0.1: (1224, 2), 0.01: (241, 2), 0.001: (15, 7)},
}


@pytest.mark.parametrize(("data", "rate"), [(data, rate) for data, widths in WIDTHS.items() for rate in widths])
def test_dhe(data: str, rate: float) -> None:
    choice = published.dhe(DATA[data], embedding_dim=DIM, rate=rate)
    assert (choice.value, choice.num_compressed) == WIDTHS[data][rate]
    own = [spec for spec in allocated(data, "dhe", choice.rate) if spec.method == "dhe"]
    assert len(own) <= choice.num_compressed
    for spec in own:  # the published width fits, at fewer hashes, and so does a wider one
        assert spec.budget is not None
        wider = layer_widths(spec, DheConfig(), width=choice.value + (rate <= 0.01))
        assert decoder_nbytes(wider) <= spec.budget * spec.plain_nbytes


@pytest.mark.parametrize(("data", "floor"), [("criteo", 0.000040), ("avazu", 0.000102)])
def test_dhe_floors(data: str, floor: float) -> None:
    with pytest.raises(BudgetError, match="the published rule for 'dhe' has its floor at") as refused:
        published.dhe(DATA[data], embedding_dim=DIM, rate=1e-5)
    theirs = float(str(refused.value).split("floor at ")[1].split(";")[0])
    assert theirs == pytest.approx(floor, abs=5e-7)
    assert floor_of(data, "dhe") < theirs


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        ("criteo", {0.5: 270_100_616, 0.1: 54_020_123, 0.01: 5_402_012, 0.001: 540_201}),
        ("avazu", {0.5: 75_595_560, 0.1: 15_119_112, 0.01: 1_511_911, 0.001: 151_191}),
    ],
)
def test_robe(data: str, sizes: dict[float, int]) -> None:
    for rate, size in sizes.items():
        assert published.robe(DATA[data], embedding_dim=DIM, rate=rate) == size
        methods = [build_method(spec) for spec in allocated(data, "robe", rate)]
        own = sum(map(nbytes_of, methods)) + 8 * sum(isinstance(method, Robe) for method in methods)
        assert 4 * size - len(methods) * 4 * DIM < own <= 4 * size


def test_memcom_has_the_floor_of_a_number_per_id() -> None:
    assert 1 / DIM < floor_of("criteo", "memcom") < 1.02 / DIM
    assert isinstance(build_method(allocated("criteo", "memcom", 0.1)[2]), Memcom)
