"""Fits against slow and obvious ones: a dense least-squares problem of all stored numbers, the singular value
decomposition, and gradients that vanish."""

from typing import Any

import pytest
import torch
from torch import Tensor

from embank.compression import Table, build_table
from embank.compression.fitting.codes import weighted_k_means
from embank.compression.fitting.normal import conjugate_gradients
from embank.compression.fitting.tensor_train import completed_cores, svd_cores
from embank.tables import ConfigError, GivenRows, Method, TableCollection, TableSpec, Wanted, fit_tables, method_class

NUM, DIM = 30, 4
IDS = torch.arange(NUM)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VECTORS, WEIGHTS = draw(NUM, DIM), torch.linspace(5, 0.1, NUM)


def built(method: str, *, budget: float | None = None, **options: Any) -> Table:
    config = method_class(method).Config(**options) if options else None
    return build_table(method=method, num_embeddings=NUM, embedding_dim=DIM, budget=budget, options=config)


def only_method(table: Table) -> Method:
    return next(table.collection.built_methods())


def dense_error(table: Table, vectors_ND: Tensor, weights_N: Tensor) -> float:
    """The least weighted error that any rows of a method that is linear in them can have, by one dense problem."""
    method = only_method(table)
    tables = list(dict.fromkeys(method.physical))
    sizes = [part.num_embeddings * part.embedding_dim for part in tables]

    def looked_up(numbers: Tensor) -> Tensor:
        rows = {
            part: values.view(part.num_embeddings, -1)
            for part, values in zip(tables, torch.split(numbers, sizes), strict=True)
        }
        addressed = zip(method.physical, method.address(IDS), strict=True)
        combined = method.combine(tuple(rows[part][row_N] for part, row_N in addressed), method.side(IDS))
        assert isinstance(combined, Tensor)
        return combined.flatten()

    matrix = torch.autograd.functional.jacobian(looked_up, torch.zeros(sum(sizes))).double()
    scale = weights_N.double().sqrt().repeat_interleave(DIM)
    wanted = scale * vectors_ND.double().flatten()
    solved = torch.linalg.lstsq(scale[:, None] * matrix, wanted[:, None], driver="gelsd").solution
    residual = scale[:, None] * matrix @ solved - wanted[:, None]
    return float(residual.norm() / wanted.norm())


LINEAR: dict[str, tuple[str, float | None, dict[str, Any]]] = {
    "hash": ("hash", 0.4, {}),
    "cut": ("frequency_cut", 0.4, {}),
    "adapt": ("adapt", 0.5, {}),
    "robe": ("robe", 0.4, {}),
    "robe, chunks that don't divide the dim, signs": ("robe", 0.5, {"chunk": 3, "signs": True}),
    "unified": ("unified", 0.4, {"exact_below": 0}),
    "sums": ("compositional", 0.6, {"combine": "sum"}),
    "sums of three": ("compositional", 0.7, {"combine": "sum", "num_partitions": 3}),
    "blocks": ("dedup", 0.5, {}),
    "masks": ("pep", 0.4, {}),
    "scaled masks": ("autosrh", 0.4, {}),
    "kept rows": ("optembed", 0.4, {}),
}


@pytest.mark.parametrize("case", LINEAR)
def test_linear_methods_are_fitted_exactly(case: str) -> None:
    method, budget, options = LINEAR[case]
    table = built(method, budget=budget, **options)
    report = table.fit(VECTORS, weights=WEIGHTS)
    assert report.weighted_error == pytest.approx(dense_error(table, VECTORS, WEIGHTS), abs=2e-6)


def test_projected_lookups_end_where_rows_alone_gain_nothing() -> None:
    table = built("unified", rows=12, width=3, lookups=2, placement="private")
    report = table.fit(VECTORS, weights=WEIGHTS)
    assert report.weighted_error == pytest.approx(dense_error(table, VECTORS, WEIGHTS), rel=0.02)


@pytest.mark.parametrize("how", ["mul", "sum"])
def test_two_partitions_of_products_are_the_best_matrices_of_rank_1(how: str) -> None:
    table = built("compositional", divisor=5, combine=how)
    report = table.fit(VECTORS)
    by_column = VECTORS.double().view(5, 6, DIM).permute(2, 0, 1)  # quotient, remainder
    if how == "mul":
        least = by_column.square().sum() - torch.linalg.svdvals(by_column)[:, 0].square().sum()
    else:
        least = (
            (by_column - by_column.mean(1, True) - by_column.mean(2, True) + by_column.mean((1, 2), True))
            .square()
            .sum()
        )
    assert report.error == pytest.approx(float((least / by_column.square().sum()) ** 0.5), rel=1e-4)


def test_ids_that_share_a_scaled_row_are_a_matrix_of_rank_1() -> None:
    report = built("memcom", num_rows=6).fit(VECTORS)
    groups = VECTORS.double().view(5, 6, DIM).transpose(0, 1)  # id = 6 * i + group
    least = groups.square().sum() - torch.linalg.svdvals(groups)[:, 0].square().sum()
    assert report.error == pytest.approx(float((least / groups.square().sum()) ** 0.5), rel=1e-3)


def test_a_bias_of_each_id_takes_no_more_error() -> None:
    plain, with_bias = (built("memcom", num_rows=6, bias=bias).fit(VECTORS, weights=WEIGHTS) for bias in (False, True))
    assert with_bias.weighted_error < plain.weighted_error
    lifted = VECTORS[IDS % 6] * torch.linspace(1, 2, NUM)[:, None] + draw(NUM, 1, seed=3)
    assert built("memcom", num_rows=6, bias=True).fit(lifted).error < 1e-2


@pytest.mark.parametrize("method", ["mde", "uniform_dim"])
def test_narrow_rows_are_the_weighted_svd(method: str) -> None:
    report = built(method, width=2).fit(VECTORS, weights=WEIGHTS)
    values = torch.linalg.svdvals(WEIGHTS.sqrt()[:, None] * VECTORS)
    assert report.weighted_error == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-5)


def test_a_searched_width_is_principal_components() -> None:
    lifted = VECTORS + 3
    report = built("autodim", widths=(2,)).fit(lifted, weights=WEIGHTS)
    mean = (WEIGHTS[:, None] * lifted).sum(0) / WEIGHTS.sum()
    values = torch.linalg.svdvals(WEIGHTS.sqrt()[:, None] * (lifted - mean))
    whole = (WEIGHTS.sqrt()[:, None] * lifted).norm()
    assert report.weighted_error == pytest.approx(float(values[2:].norm() / whole), rel=1e-4)


def test_widths_go_where_they_save_most() -> None:
    """Of two tables under one budget the one of full rank gets the columns."""
    specs = [
        TableSpec(name=n, num_embeddings=200, embedding_dim=8, feature_names=[n], method="autodim", budget=0.6)
        for n in "tu"
    ]
    vectors = {"t": draw(200, 8), "u": draw(200, 1) @ draw(1, 8, seed=1)}
    given = {name: GivenRows(ids=torch.arange(200), vectors=own) for name, own in vectors.items()}
    tables = TableCollection(specs, backend="torch")
    with pytest.raises(ConfigError, match="table 't': method 'autodim' still searches its width"):
        tables.import_rows("t", torch.arange(200), vectors["t"])
    tables, report = fit_tables(tables, given)
    assert [int(spec.found["width"]) for spec in tables.specs] == [8, 1]
    assert max(own.error for own in report.values()) < 1e-5


def test_tt_svd_is_within_twice_the_least_error_and_sweeps_gain_on_it() -> None:
    table = build_table(
        method="tt_rec", num_embeddings=27, embedding_dim=8, options=method_class("tt_rec").Config(rank=3)
    )
    vectors, method = draw(27, 8), only_method(table)
    unfolded = vectors.view(3, 3, 3, 2, 2, 2).permute(0, 3, 1, 4, 2, 5)
    bound = sum(float(torch.linalg.svdvals(unfolded.reshape(rows, -1).double())[3:].square().sum()) for rows in (6, 36))
    found = svd_cores(vectors, method.tensor_train)
    rows = torch.einsum("iap,jpbr,krc->ijkabc", *found).reshape(27, 8)
    square = float((rows - vectors).square().sum())
    assert square <= bound * (1 + 1e-6)
    assert (table.fit(vectors).error * float(vectors.norm())) ** 2 < square
    weights = torch.linspace(10, 0.01, 27)
    squares = [(weights * part.square().sum(1)).sum() for part in (rows - vectors, vectors)]
    before = float(squares[0] / squares[1]) ** 0.5
    assert table.fit(vectors, weights=weights).weighted_error < 0.95 * before


def test_a_slice_of_a_train_is_the_least_squares_solution() -> None:
    """After the sweeps no single last slice can be nearer."""
    table = build_table(
        method="tt_rec", num_embeddings=27, embedding_dim=8, options=method_class("tt_rec").Config(rank=2)
    )
    vectors, weights = draw(27, 8), torch.linspace(3, 0.5, 27)
    report = table.fit(vectors, weights=weights)
    method, rows = only_method(table), table.collection.weights()
    cores = [
        rows[part.name].view(shape).double()
        for part, shape in zip(method.physical, method.tensor_train.core_shapes, strict=True)
    ]
    left = torch.einsum("iap,jpbr->ijabr", *cores[:2]).reshape(9, 4, -1)
    total = 0.0
    for last in range(3):
        ids = torch.arange(last, 27, 3)
        scale = weights[ids].double().sqrt()[:, None, None]
        known, wanted = (scale * left).flatten(0, 1), (scale * vectors[ids].double().view(9, 4, 2)).flatten(0, 1)
        total += float((known @ torch.linalg.lstsq(known, wanted).solution - wanted).square().sum())
    norm = float((weights.double() * vectors.double().square().sum(1)).sum())
    assert (total / norm) ** 0.5 == pytest.approx(report.weighted_error, rel=0.01)


def test_rows_that_nobody_wants_are_completed() -> None:
    given = build_table(
        method="tt_rec", num_embeddings=60, embedding_dim=8, options=method_class("tt_rec").Config(rank=2), seed=3
    )
    vectors, few = given.lookup(torch.arange(60)), torch.arange(60)[torch.arange(60) % 7 != 3]
    wanted = Wanted(ids_K=few, vectors_KD=vectors[few], weights_K=torch.ones(len(few)))
    method = only_method(given)
    whole = torch.zeros(4 * 4 * 4, 8)
    whole[few] = vectors[few]
    errors = []
    for cores in (svd_cores(whole, method.tensor_train), completed_cores(wanted, method)):
        digits = method.address(few)
        rows = torch.einsum("kap,kpbr,krc->kabc", *(c[d] for c, d in zip(cores, digits, strict=True))).flatten(1)
        errors.append(float((rows - vectors[few]).norm()))
    assert errors[1] < 0.7 * errors[0]


def test_k_means_finds_clusters_and_heavy_rows() -> None:
    centres = 10 * draw(2, 4, 2, seed=1)
    codes = torch.stack([torch.arange(200) % 4, torch.arange(200) // 50], dim=1)
    rows = torch.stack([centres[book][codes[:, book]] for book in range(2)], dim=1) + 0.01 * draw(200, 2, 2)
    found = weighted_k_means(
        rows.flatten(1),
        torch.ones(200),
        torch.ones(200, dtype=torch.bool),
        shape=(2, 4, 2),
        num_tail_codes=4,
        generator=torch.Generator().manual_seed(0),
    )
    assert float(torch.cdist(found, centres).amin(2).max()) < 0.1
    line = torch.tensor([[0.0], [1.0], [10.0]])
    one = weighted_k_means(
        line,
        torch.tensor([3.0, 1.0, 1e-9]),
        torch.ones(3, dtype=torch.bool),
        shape=(1, 1, 1),
        num_tail_codes=1,
        generator=torch.Generator().manual_seed(0),
    )
    assert float(one) == pytest.approx(0.25)


def test_tail_ids_choose_among_the_first_codes_only() -> None:
    table = build_table(
        method="mgqe",
        num_embeddings=100,
        embedding_dim=2,
        options=method_class("mgqe").Config(num_codebooks=1, num_codes=8, num_tail_codes=2, head_share=0.1),
    )
    vectors = draw(100, 2)
    table.fit(vectors)
    found = table.lookup(torch.arange(100))
    assert len(found[10:].unique(dim=0)) <= 2
    assert float((found[:10] - vectors[:10]).norm()) < 0.3 * float(vectors[:10].norm()), "8 codes for 10 ids"


def test_steps_clip_where_that_is_nearer() -> None:
    table = build_table(method="alpt", num_embeddings=50, embedding_dim=64)
    vectors = draw(50, 64)
    largest = vectors.abs().amax(1, keepdim=True) / 127
    plain = (vectors / largest).round() * largest
    assert table.fit(vectors).error <= float((plain - vectors).norm() / vectors.norm()) + 1e-7


def test_conjugate_gradients_leave_what_is_free() -> None:
    """Of two numbers whose sum alone is wanted, the nearest pair to the start."""
    ones = torch.ones(2, 2, dtype=torch.float64)
    start = torch.tensor([[5.0], [1.0]], dtype=torch.float64)
    right = torch.full((2, 1), 10.0, dtype=torch.float64)
    diagonal = torch.ones(2, 1, dtype=torch.float64)
    found = conjugate_gradients(lambda x: ones @ x, right, start, diagonal_R1=diagonal)
    assert torch.allclose(found, torch.tensor([[7.0], [3.0]], dtype=torch.float64))


def test_a_fit_is_no_worse_than_what_was_there() -> None:
    """Fits in turns begin with the rows that a table has."""
    for method in ("compositional", "memcom", "hash_embedding", "unified"):
        table = built(method, budget=0.75)
        own = table.lookup(IDS)
        assert table.fit(own).error < 1e-5, method


def test_a_method_without_a_fitting_says_so() -> None:
    from embank.tables import Traits, option_class, own_table, register_method
    from embank.tables.method.registry import METHODS

    @option_class
    class NothingConfig:
        """No options."""

    class Nothing(Method):
        Config = NothingConfig
        traits = Traits()

        def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
            super().__init__(spec, seed=seed)
            self.physical = (own_table(spec),)

    register_method("test_nothing", Nothing)
    try:
        spec = TableSpec(name="t", num_embeddings=5, embedding_dim=2, feature_names=["t"], method="test_nothing")
        with pytest.raises(ConfigError, match="table 't': method 'test_nothing' does not say how it is fitted"):
            TableCollection([spec]).import_rows("t", [0], draw(1, 2))
    finally:
        METHODS.local.pop("test_nothing")
