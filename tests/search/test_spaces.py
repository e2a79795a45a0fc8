"""Spaces: bytes against packed collections, the three forms of a candidate, repair, neighbours."""

import random
from dataclasses import dataclass, field, replace
from itertools import product

import optuna
import pytest
import torch

from embank.compression import METHODS
from embank.compression.methods.hash import Hash, HashConfig
from embank.search import DimensionSpace, MethodSpace, Parameter, Space, UnifiedSpace
from embank.search.spaces import Group, layout_of, widths_of
from embank.search.spaces.options import choices_of
from embank.tables import (
    BudgetError,
    ConfigError,
    TableCollection,
    TableSpec,
    build_method,
    method_class,
    register_method,
)
from embank.tables.collections.stages import finished


def plain(name: str, num: int, dim: int = 16, *, counts: bool = False) -> TableSpec:
    own = torch.arange(num, 0, -1) if counts else None
    return TableSpec(name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name], counts=own)


def packed_nbytes(specs: list[TableSpec]) -> int:
    return finished(TableCollection(specs, backend="torch")).nbytes("serving")


SPECS = [plain("a", 400), plain("b", 90), plain("c.d", 11, dim=10), plain("e", 3)]
DECLARING = (
    *("alpt", "compositional", "dedup", "dhe", "dpq", "hash_embedding", "memcom", "mgqe", "pep", "robe", "unified"),
)
"""Methods whose options have choices."""

SPACES: dict[str, Space] = {
    "widths": DimensionSpace(SPECS),
    "rows": DimensionSpace(SPECS, widths=(), row_levels=6),
    "both": DimensionSpace(SPECS, widths="log2", row_levels=4),
    "methods": MethodSpace(SPECS, methods=["full", "hash", "compositional", "robe", "frequency_cut"]),
    "unified": UnifiedSpace(SPECS, rows=[50, 200, 500], embedding_dim=16, exact_below=5),
    "chunks": UnifiedSpace(SPECS, rows=[50, 200, 500], widths=[4, 5], exact_below=5),
}


@pytest.mark.parametrize("name", list(SPACES))
def test_bytes_are_those_of_the_packed_tables(name: str) -> None:
    space, rng = SPACES[name], random.Random(0)
    drawn = [space.draw(rng) for _ in range(6)]
    for genes in [space.floor(), space.ceiling(), *drawn]:
        candidate = space.decode(genes)
        assert space.nbytes(candidate) == packed_nbytes(space.specs(candidate)), candidate
        assert space.nbytes_of(space.floor()) <= space.nbytes(candidate) <= space.nbytes_of(space.ceiling())


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("budget", [None, 0.3])
def test_the_layout_of_every_method_has_the_bytes_of_its_packed_form(method: str, budget: float | None) -> None:
    """Also of parts that are not rows: salts, codebooks, projections, scales. Where training decides, it is a bound."""
    spec = TableSpec(
        name="t", num_embeddings=3000, embedding_dim=16, feature_names=["t"], method=method, budget=budget,
        counts=torch.arange(3000, 0, -1),
    )  # fmt: skip
    try:
        layout = layout_of(spec)
    except BudgetError:
        pytest.skip("below the method's floor")
    packed = packed_nbytes([spec])
    if layout.is_exact:
        assert layout.nbytes() == packed
        if layout.matrices:
            halved = layout.nbytes(lambda rows, columns: 2 * rows * columns)
            assert halved == packed - 2 * sum(rows * columns for rows, columns in layout.matrices)
    else:
        schedule = method_class(method).traits.schedule
        assert len(schedule.stages) > 1 or schedule.settles
        assert packed <= layout.nbytes() <= spec.plain_nbytes * (budget or 1)


@pytest.mark.slow
def test_a_layout_takes_no_memory_for_rows() -> None:
    for method in ("full", "hash", "tt_rec", "low_precision", "dpq", "mgqe"):
        spec = TableSpec(
            name="t", num_embeddings=2_000_000_000, embedding_dim=16, feature_names=["t"], method=method, budget=1.0
        )
        assert layout_of(spec).nbytes() <= spec.plain_nbytes


@pytest.mark.parametrize("name", list(SPACES))
def test_the_forms_of_a_candidate_turn_into_each_other(name: str) -> None:
    space, rng = SPACES[name], random.Random(1)
    for _ in range(50):
        genes = space.draw(rng)
        candidate, params = space.decode(genes), space.params(genes)
        assert space.encode(candidate) == genes
        assert space.genes(params) == genes
        assert params.keys() == space.parameters.keys() == space.distributions.keys()
        for key, held in params.items():
            distribution = space.distributions[key]
            assert distribution._contains(distribution.to_internal_repr(held))
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
        study.enqueue_trial(params)
        assert space.suggest(study.ask()) == candidate


@pytest.mark.parametrize("name", list(SPACES))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.slow
def test_repair_keeps_the_bytes_and_leaves_allowed_candidates_alone(name: str, share: float) -> None:
    space, rng = SPACES[name], random.Random(0)
    low, high = space.nbytes_of(space.floor()), space.nbytes_of(space.ceiling())
    nbytes = int(low + share * (high - low))
    for _ in range(60):
        genes = space.draw(rng)
        repaired = space.repair(genes, nbytes=nbytes, rng=rng)
        assert space.nbytes_of(repaired) <= nbytes
        assert space.repair(repaired, nbytes=nbytes, rng=rng) == repaired
        assert (repaired == genes) == (space.nbytes_of(genes) <= nbytes)
        assert all(gene in group.genes for gene, group in zip(repaired, space.groups, strict=True))
        if repaired != genes and isinstance(space, DimensionSpace):
            for place, group in enumerate(space.groups):
                wider = [g for g in group.near(repaired[place]) if space.change(repaired, place, g) > 0]
                assert all(space.nbytes_of(repaired) + space.change(repaired, place, g) > nbytes for g in wider)


def test_repair_changes_few_tables_where_few_are_large() -> None:
    space = DimensionSpace([plain("big", 100_000), *(plain(f"t{k}", 10) for k in range(20))])
    whole = space.ceiling()
    for seed in range(20):
        repaired = space.repair(whole, nbytes=space.nbytes_of(whole) - 4, rng=random.Random(seed))
        assert sum(a != b for a, b in zip(repaired, whole, strict=True)) == 1


def test_neighbours_are_one_choice_away() -> None:
    space = SPACES["both"]
    genes = space.draw(random.Random(3))
    near = list(space.neighbours(genes))
    assert len(near) == len(set(near))
    assert genes not in near
    for other in near:
        changed = [(a, b) for x, y in zip(genes, other, strict=True) for a, b in zip(x, y, strict=True) if a != b]
        assert len(changed) == 1
        assert abs(changed[0][0] - changed[0][1]) == 1
    methods = SPACES["methods"]
    near_methods = [methods.decode(g) for g in methods.neighbours(methods.ceiling())]
    assert {c["method.a"] for c in near_methods} == {"full", "hash", "compositional", "robe", "frequency_cut"}


def test_size_counts_candidates_that_differ() -> None:
    space = MethodSpace([plain("a", 1000)], methods=["full", "hash"], shares=[0.25, 0.5])
    every = {space.nbytes_of((gene,)) for gene in space.groups[0].genes}
    assert space.size == len(every) == 3


def test_a_share_below_a_methods_floor_stands_for_the_floor() -> None:
    space = MethodSpace([plain("a", 40)], methods=["full", "dpq"], shares=[0.001, 0.01, 0.9])
    floors = {space.decode((gene,)).get("share.a") for gene in space.groups[0].genes}
    assert floors == {None, 0.01, 0.9}, "0.001 and 0.01 are one table"
    at_floor = space.specs({"method.a": "dpq", "share.a": 0.01, "dpq.num_codebooks.a": 2})[0]
    assert at_floor.budget is not None
    assert at_floor.budget > 0.01
    assert layout_of(at_floor).nbytes() == packed_nbytes([at_floor])
    with pytest.raises(BudgetError):
        layout_of(TableSpec(**{**at_floor.__dict__, "budget": at_floor.budget * 0.99}))


def test_methods_that_a_table_cannot_have_are_left_out() -> None:
    counted = plain("b", 100, counts=True)
    unranked = TableSpec(**{**counted.__dict__, "name": "a", "counts": counted.counts.flip(0).clone()})
    space = MethodSpace([unranked, counted], methods=["full", "adapt"], shares=[0.5])
    assert space.parameters["method.b"].values == ("full", "adapt")
    with pytest.raises(ConfigError, match="there is no method 'fulll'|'fulll'"):
        MethodSpace([counted], methods=["fulll"])


def test_codecs_count_the_fp32_matrices_of_a_packed_table() -> None:
    codecs = {"fp32": lambda rows, columns: 4 * rows * columns, "half": lambda rows, columns: 2 * rows * columns + 8}
    space = MethodSpace([plain("a", 1000)], methods=["full", "hash"], shares=[0.5], codecs=codecs)
    values = {"method.a": "hash", "share.a": 0.5}
    rows = layout_of(space.specs({**values, "codec.a": "fp32"})[0]).matrices[0][0]
    assert space.nbytes({**values, "codec.a": "half"}) == 2 * rows * 16 + 8 + 8, "and the salt"
    assert space.codec("a", {"codec.a": "half"}) == "half"


@dataclass(frozen=True, kw_only=True)
class ChoosyConfig(HashConfig):
    """A method's options that declare what a search tries."""

    num_rows: int | None = field(
        default=None,
        metadata={"choices": lambda spec: sorted({spec.num_embeddings // k for k in (8, 4, 2)}), "sets_size": True},
    )
    flavour: str = field(default="plain", metadata={"choices": ("plain", "spiced")})
    note: int = 3


class Choosy(Hash):
    Config = ChoosyConfig


@dataclass(frozen=True, kw_only=True)
class FallingConfig:
    """A declaration whose values do not rise."""

    size: int = field(default=1, metadata={"choices": (2, 1)})


def test_a_config_declares_the_choices_of_its_options() -> None:
    register_method("test_choosy", Choosy)
    space = MethodSpace([plain("a", 400), plain("b", 80)], methods=["full", "test_choosy"], shares=[0.5])
    assert space.parameters["test_choosy.num_rows.a"].values == (50, 100, 200)
    assert space.parameters["test_choosy.num_rows.b"].values == (10, 20, 40)
    assert not space.parameters["test_choosy.flavour.a"].is_ordered
    assert "share.a" not in space.parameters, "its rows decide its size"
    candidate = {
        "method.a": "test_choosy",
        "test_choosy.num_rows.a": 100,
        "test_choosy.flavour.a": "spiced",
        "method.b": "full",
    }
    made = space.specs(candidate)
    assert made[0].options == ChoosyConfig(num_rows=100, flavour="spiced")
    assert space.nbytes(candidate) == packed_nbytes(made) == 100 * 64 + 8 + 80 * 64
    assert space.size == 7 * 7
    with pytest.raises(ConfigError, match=r"FallingConfig\.size declares the choices \(2, 1\) for table 'a'; give"):
        choices_of(FallingConfig, plain("a", 4))


@pytest.mark.parametrize("dim", [16, 10, 1])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_declared_choice_builds(method: str, dim: int) -> None:
    """With the defaults of the others, and all of a method's choices at once as far as they are drawn."""
    spec = TableSpec(
        name="t", num_embeddings=3000, embedding_dim=dim, feature_names=["t"], method=method,
        counts=torch.arange(3000, 0, -1),
    )  # fmt: skip
    cls = method_class(method)
    found = choices_of(cls.Config, spec)
    assert bool(found) == (method in DECLARING)
    for choices in found:
        for value in choices.values:
            build_method(replace(spec, options=cls.Config(**{choices.option: value})))
    rng = random.Random(0)
    for _ in range(5 if found else 0):
        options = {choices.option: rng.choice(choices.values) for choices in found}
        build_method(replace(spec, options=cls.Config(**options)))


def test_forms_are_counted_once_each_though_many_methods_have_options() -> None:
    """A parameter that does not count makes no further forms."""
    space = MethodSpace([plain("a", 3000)], methods=["full", *DECLARING], shares=[0.1, 0.5])
    assert space.size < 2000
    assert len(set(space.groups[0].genes)) == space.size
    rng = random.Random(0)
    for _ in range(10):
        candidate = space.decode(space.draw(rng))
        assert space.encode(candidate) in {(gene,) for gene in space.groups[0].genes}


@pytest.mark.parametrize("method", ["dpq", "mgqe"])
def test_bytes_of_codes_are_exact_however_many_rows_they_are_of(method: str) -> None:
    spec = TableSpec(name="t", num_embeddings=30_001, embedding_dim=4, feature_names=["t"], method=method, budget=0.2)
    layout = layout_of(spec)
    assert layout.is_exact
    assert layout.nbytes() == packed_nbytes([spec])


def test_uniform_widths_fill_the_budget_evenly() -> None:
    space = SPACES["widths"]
    for budget in (1.0, 0.6, 0.3):
        candidate = space.uniform(space.allowed_nbytes(budget))
        assert space.nbytes(candidate) <= space.allowed_nbytes(budget)
    assert space.uniform(space.plain_nbytes) == space.decode(space.ceiling())
    with pytest.raises(ConfigError, match="the narrowest tables with all rows have"):
        space.uniform(10)


def test_widths() -> None:
    assert widths_of(16, 4) == (4, 8, 12, 16)
    assert widths_of(10, 4) == (4, 8, 10)
    assert widths_of(3, 4) == (3,)
    assert widths_of(16, ()) == (16,)
    assert widths_of(6, "log2") == (1, 2, 4, 6)
    for wrong in (0, [0, 4], -1):
        with pytest.raises(ConfigError, match="at least 1"):
            widths_of(16, wrong)


def test_shapes_are_what_a_supernet_masks() -> None:
    space = SPACES["both"]
    for genes in (space.floor(), space.ceiling(), space.draw(random.Random(0))):
        candidate = space.decode(genes)
        shapes = space.shapes(candidate)
        assert space.nbytes(candidate) == sum(4 * shape.rows * shape.width for shape in shapes.values())
        assert [spec.embedding_dim for spec in space.specs(candidate)] == [shape.width for shape in shapes.values()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DimensionSpace([plain("a", 9, dim=4)]), "a space needs at least one parameter"),
        (lambda: DimensionSpace(SPECS, row_levels=0), "row_levels is 0"),
        (lambda: DimensionSpace(SPECS, row_levels=[0.5, 0.0]), "row_levels holds 0.0"),
        (lambda: Parameter(name="x", values=()), "parameter 'x' has no values"),
        (lambda: Parameter(name="x", values=(1, 1)), "has a value twice"),
        (lambda: SPACES["widths"].encode({"width.a": 4}), "the candidate has no 'width.b'"),
        (lambda: SPACES["widths"].encode({"widht.a": 4}), "has no parameter 'widht.a'; did you mean 'width.a'"),
        (lambda: SPACES["widths"].encode({"width.a": 5}), r"'width.a' has no value 5; it is one of \[4, 8, 12, 16\]"),
        (lambda: SPACES["widths"].allowed_nbytes(1.5), "the budget is 1.5"),
        (lambda: MethodSpace(SPECS, methods=[]), "at least one method"),
        (lambda: UnifiedSpace(SPECS, rows=[9], widths=[32], embedding_dim=16), "a width of 32 is more than"),
        (lambda: UnifiedSpace([plain("a", 9)], rows=[9]), "no table has 100 ids"),
    ],
)
def test_what_is_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_lookups_of_a_unified_table_are_those_of_its_methods() -> None:
    space = SPACES["unified"]
    candidate = {"rows": 50, "width": 4, "lookups.a": 4, "lookups.b": 2, "lookups.c.d": 1}
    methods = TableCollection(space.specs(candidate), backend="torch").built_methods()
    assert space.num_lookups(candidate) == sum(
        len(method.address(torch.zeros(1, dtype=torch.int64))) for method in methods
    )


def test_the_checksum_tells_spaces_apart() -> None:
    assert DimensionSpace(SPECS).checksum() == SPACES["widths"].checksum()
    sums = [space.checksum() for space in SPACES.values()]
    sums.append(DimensionSpace([plain("a", 401), *SPECS[1:]]).checksum())
    assert len(set(sums)) == len(sums)


def test_every_gene_of_a_group_is_canonical() -> None:
    for space in SPACES.values():
        for group in space.groups:
            assert all(group.canonical(gene) == gene for gene in group.genes)
            ranges = [range(len(p.values)) for p in group.parameters]
            assert {group.canonical(gene) for gene in product(*ranges)} == set(group.genes)
    with pytest.raises(ConfigError, match="more than 100,000 forms"):
        Group(name="a", parameters=tuple(Parameter(name=f"p{k}", values=tuple(range(100))) for k in range(3)))
