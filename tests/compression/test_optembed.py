"""OptEmbed against golden values, autograd, enumeration and masks written out."""

import math
import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.compression.methods.optembed import OptEmbedConfig, Step, mean_norm
from embank.compression.parts.evolution import Candidate, EvolutionConfig, cross, evolve, mutate
from embank.compression.parts.levels import Space, shape_nbytes
from embank.compression.parts.sparse import bit_at
from embank.tables import (
    BudgetError,
    ConfigError,
    RowOptimizer,
    TableCollection,
    TableSpec,
    build_method,
    default_init,
    pack_table,
)
from embank.tables.collections.stages import HeldRows, advance, finished


def spec(name: str = "t", num: int = 300, dim: int = 8, **fields: object) -> TableSpec:
    return TableSpec(
        name=name, num_embeddings=num, embedding_dim=dim, feature_names=[name], method="optembed", **fields
    )


def lookup(tables: TableCollection, ids: torch.Tensor) -> torch.Tensor:
    kjt = KeyedJaggedTensor(
        keys=list(dict.fromkeys(f for s in tables.specs for f in s.feature_names)),
        values=ids.repeat(len(tables.specs)),
        lengths=torch.ones(len(ids) * len(tables.specs), dtype=torch.int32),
    )
    return tables(kjt).values()


def test_step_and_its_surrogate_have_the_published_values() -> None:
    x = torch.tensor([0.0, 0.2, 0.4, 0.7, 1.0, 1.2, -0.2, -0.7, -1.2], requires_grad=True)
    out = Step.apply(x)
    assert out.tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 0]
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([2.0, 1.2, 0.4, 0.4, 0.4, 0.0, 1.2, 0.4, 0.0]))


def test_gradients_of_rows_and_threshold_are_those_written_out() -> None:
    tables = TableCollection([spec()], backend="torch", optimizer=RowOptimizer(name="sgd", lr=1.0)).eval()
    (method,) = tables.built_methods()
    with torch.no_grad():
        method.threshold.fill_(0.9)
    rows = tables.weights()["t"][:40].clone()
    ids, upstream = torch.arange(40), torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    (lookup(tables, ids) * upstream).sum().backward()
    x = rows.abs().sum(1) / method.unit - 0.9
    slope = torch.where(x.abs() <= 0.4, 2 - 4 * x.abs(), torch.where(x.abs() <= 1, 0.4, 0.0))
    to_mask = (rows * upstream).sum(1) * slope
    torch.testing.assert_close(method.threshold.grad, -to_mask.sum())
    expected = upstream * (x > 0)[:, None] + to_mask[:, None] * rows.sign() / method.unit
    torch.testing.assert_close(rows - tables.weights()["t"][:40], expected)


def test_penalty_is_alpha_exp_minus_t() -> None:
    tables = TableCollection([spec(options=OptEmbedConfig(alpha=0.3))])
    (method,) = tables.built_methods()
    for value in (0.0, -1.0, 2.0):
        with torch.no_grad():
            method.threshold.fill_(value)
        method.threshold.grad = None
        tables.extra_loss().backward()
        torch.testing.assert_close(method.threshold.grad, -0.3 * torch.tensor(-value).exp())
    assert advance(tables).extra_loss() is None


def test_unit_is_the_mean_norm_of_initial_rows() -> None:
    for std in (None, 0.02):
        table = spec(num=20_000, init_std=std)
        (rows,) = TableCollection([table]).weights().values()
        assert float(rows.abs().sum(1).mean()) == pytest.approx(mean_norm(default_init(table), 8), rel=0.01)


@pytest.mark.parametrize("sampling", ["uniform", "log"])
def test_widths_in_training_are_random_prefixes_and_rows_below_the_threshold_are_zero(sampling: str) -> None:
    """Each as likely, or each doubling of the width plus one."""
    tables = TableCollection([replace(spec(), options=OptEmbedConfig(width_sampling=sampling))])
    rows = tables.weights()["t"]
    torch.manual_seed(0)
    out = lookup(tables, torch.arange(300).repeat(40)).detach()
    is_kept = out != 0
    assert not (is_kept[:, 1:] & ~is_kept[:, :-1]).any(), "a kept column follows a dropped one"
    assert torch.equal(out[is_kept], rows.repeat(40, 1)[is_kept])
    counts = is_kept.sum(1).bincount(minlength=9)[1:].double()
    shares = {"uniform": [1 / 8] * 8, "log": [math.log((k + 1) / k, 9) for k in range(1, 9)]}
    expected = 12_000 * torch.tensor(shares[sampling], dtype=torch.float64)
    assert float(((counts - expected) ** 2 / expected).sum()) < 24.3, "chi-square with 7 degrees of freedom, p = .001"
    tables.eval()
    (method,) = tables.built_methods()
    for threshold, kept in ((-1.0, 300), (0.0, 300), (1e3, 0)):
        with torch.no_grad():
            method.threshold.fill_(threshold)
        assert int(lookup(tables, torch.arange(300)).any(1).sum()) == kept


def test_levels_are_halves_of_the_rows_with_the_largest_norms() -> None:
    tables = TableCollection([spec()])
    (method,) = tables.built_methods()
    norms = tables.weights()["t"].abs().sum(1) / method.unit
    with torch.no_grad():
        method.threshold.fill_(0.8)
    levels = method.row_levels(HeldRows(tables))
    start = int((norms > 0.8).sum())
    assert 0 < start < 300
    assert [count for _, count in levels] == [start >> k for k in range(start.bit_length())]
    for threshold, count in levels:
        assert set((norms > threshold).nonzero()[:, 0].tolist()) == set(norms.topk(count).indices.tolist())


def test_evolution_finds_the_optimum_of_a_toy_that_can_be_enumerated() -> None:
    """Two fields of dim 2; the score rewards one table's second column more than its bytes would suggest."""
    specs = [spec("a", 64, 2, budget=0.5), spec("b", 64, 2, budget=0.5)]
    space = Space(specs, [[64, 32, 16], [64, 32, 16]])
    worth = {"a": (0.1, 0.9), "b": (0.4, 0.1)}

    def score(candidate: Candidate) -> float:
        total = 0.0
        for table, (level, width) in zip(specs, candidate, strict=True):
            total += sum(worth[table.name][:width]) * 0.8**level
        return total

    everything = [c for c in product(product(range(3), (1, 2)), repeat=2) if space.excess(c) <= 0]
    asked: list[Candidate] = []
    best, history = evolve(
        [space.default()],
        score=lambda c: asked.append(c) or score(c),
        draw=space.draw,
        repair=space.repair,
        config=EvolutionConfig(generations=8),
        seed=0,
    )
    assert score(best) == history[-1] == max(score(c) for c in everything)
    assert history == sorted(history)
    assert len(asked) == len(set(asked)), "nothing is scored twice"
    assert all(space.excess(c) <= 0 for c in asked)


def test_a_final_score_chooses_among_the_elites_alone() -> None:
    """The screening score likes wide first fields; the final one, asked for the elites only, likes narrow ones."""
    screened: list[tuple[int, ...]] = []
    finalists: list[tuple[int, ...]] = []
    best, history = evolve(
        [(1, 1)],
        score=lambda c: screened.append(c) or c[0],
        final_score=lambda c: finalists.append(c) or -c[0],
        draw=lambda i, rng: rng.randint(1, 64),
        repair=lambda c, rng: c,
        config=EvolutionConfig(num_elites=5),
        seed=0,
    )
    top = sorted((c[0] for c in screened), reverse=True)[:5]
    assert sorted((c[0] for c in finalists), reverse=True) == top
    assert best[0] == top[-1]
    assert history[-1] == top[0]


def test_evolution_makes_the_same_choices_as_ever() -> None:
    """Golden values from before `offspring` was shared with the Optuna sampler: a seed keeps its result."""
    specs = [spec(f"t{k}", 50 * (k + 1) ** 2, budget=0.2) for k in range(9)]
    space = Space(specs, [[s.num_embeddings >> k for k in range(s.num_embeddings.bit_length())] for s in specs])

    def score(candidate: Candidate) -> float:
        return sum((k % 4 + 1) * width**0.4 * 0.9**level for k, (level, width) in enumerate(candidate))

    config = EvolutionConfig(generations=12)
    best, history = evolve([space.default()], score=score, draw=space.draw, repair=space.repair, config=config, seed=5)
    assert best == ((0, 8), (0, 7), (0, 8), (1, 8), (3, 8), (1, 3), (3, 7), (2, 7), (3, 4))
    assert history[::3] == pytest.approx([34.33089483, 36.43295707, 37.84462733, 39.37291297], abs=1e-8)


def test_evolution_beats_random_search_on_many_fields() -> None:
    goal = [random.Random(1).randint(1, 16) for _ in range(26)]

    def score(candidate: Candidate) -> float:
        return -float(sum(abs(gene[0] - want) for gene, want in zip(candidate, goal, strict=True)))

    def draw(table: int, rng: random.Random) -> tuple[int]:
        return (rng.randint(1, 16),)

    config = EvolutionConfig()
    start = tuple((16,) for _ in goal)

    def search(seed: int, config: EvolutionConfig = config) -> tuple[Candidate, list[float]]:
        return evolve([start], score=score, draw=draw, repair=lambda c, rng: c, config=config, seed=seed)

    best, history = search(0)
    rng = random.Random(0)
    rounds = config.generations * (config.num_mutants + config.num_crossovers)
    by_chance = max(score(tuple(draw(t, rng) for t in range(26))) for _ in range(rounds))
    assert len(history) == config.generations
    assert score(best) > 0.6 * by_chance  # scores are negative
    assert search(0) == (best, history)
    assert search(1)[1] != history, "the collection's seed counts"
    assert search(1, EvolutionConfig(seed=0)) == (best, history), "unless the search has one of its own"


def test_children_take_each_gene_from_a_parent_and_mutants_few_from_elsewhere() -> None:
    rng = random.Random(0)
    first, second = tuple((k,) for k in range(1000)), tuple((-k - 1,) for k in range(1000))
    child = cross(first, second, rng=rng)
    assert all(gene in (a, b) for gene, a, b in zip(child, first, second, strict=True))
    assert 400 < sum(gene == a for gene, a in zip(child, first, strict=True)) < 600
    mutant = mutate(first, draw=lambda i, gene: (5000,), chance=0.1, rng=rng)
    assert 60 < mutant.count((5000,)) < 140


@pytest.mark.parametrize("budget", [0.9, 0.3, 0.05, 0.02])
def test_repair_keeps_the_pool_and_leaves_allowed_candidates_alone(budget: float) -> None:
    specs = [spec("a", 300, 8, budget=budget), spec("b", 200, 3, budget=budget), spec("c", 9, 5)]
    counts = [[s.num_embeddings >> k for k in range(s.num_embeddings.bit_length())] for s in specs]
    space, rng = Space(specs, counts), random.Random(0)
    assert space.excess(space.default()) <= 0
    for _ in range(300):
        candidate = tuple(space.draw(t, rng) for t in range(3))
        repaired = space.repair(candidate, rng)
        assert space.excess(repaired) <= 0
        assert space.repair(repaired, rng) == repaired
        assert (repaired == candidate) == (space.excess(candidate) <= 0)
        assert repaired[2] == candidate[2], "a table without a budget is not in the pool"


@pytest.mark.parametrize("num", range(1, 12))
def test_repair_ends_for_tiny_tables_whose_bitmap_outweighs_rows(num: int) -> None:
    table = spec("a", num, 4, budget=1.0)
    floor = min(shape_nbytes(table, num_kept=k, width=1) for k in (1, num))
    counts = [num >> k for k in range(num.bit_length())]
    space = Space([spec("a", num, 4, budget=min(1.0, floor / table.plain_nbytes))], [counts])
    rng = random.Random(0)
    for _ in range(50):
        assert space.excess(space.repair((space.draw(0, rng),), rng)) <= 1e-9


def test_search_tries_masks_on_the_model_and_keeps_the_best() -> None:
    """The score is computed from what the tables return, so trials must reach `combine`; the winner's rows come back
    exactly."""
    config = OptEmbedConfig(evolution=EvolutionConfig(generations=6, max_samples=500))
    tables = TableCollection([spec(name, 64, 4, budget=0.4, options=config) for name in ("a", "b")]).eval()
    ids = torch.arange(64)
    full = {n: w.clone() for n, w in tables.weights().items()}

    def score(*, max_samples: int | None = None, share: float = 1.0) -> float:
        asked.append((max_samples, share))
        with torch.no_grad():
            out = lookup(tables, ids)
        seen.append(float(3 * out[:, :4].square().sum() + out[:, 4:].square().sum()))
        return seen[-1]

    seen: list[float] = []
    asked: list[tuple[int | None, float]] = []
    done = advance(tables, score=score).eval()
    assert asked == [(500, 0.125)] * (len(asked) - 15) + [(500, 1.0)] * 15
    out = lookup(done, ids).detach()
    assert float(3 * out[:, :4].square().sum() + out[:, 4:].square().sum()) == pytest.approx(max(seen))
    assert done.nbytes("serving") <= 0.4 * done.plain_nbytes
    for method, values in zip(done.built_methods(), out.split(4, dim=1), strict=True):
        kept = values.any(1)
        assert int(kept.sum()) == method.num_kept
        assert torch.equal(values[kept, : method.width], full[method.spec.name][kept, : method.width])
        assert not values[:, method.width :].any()
    assert all(m.trial is None for m in tables.built_methods())


def test_retraining_starts_from_the_values_that_the_kept_rows_began_with() -> None:
    """Normal values too, wherever the kept rows lie."""
    tables = TableCollection([spec(num=70_001, dim=5, budget=0.1, init_std=0.1)])
    began = tables.weights()["t"].clone()
    rows = torch.arange(70_001)
    tables.weights()["t"].mul_(
        (1 + (rows * 7919 % 70_001) / 70_001)[:, None] * ((rows > 66_000) & (rows < 69_000))[:, None]
    )
    done = advance(tables)
    (method,) = done.built_methods()
    kept = pack_table(method, done.weights()).lookup(rows).any(1).nonzero()[:, 0]
    assert len(kept) == method.num_kept > 1000
    assert torch.equal(done.weights()["t"], began[kept, : method.width])


def test_pruned_ids_give_zeros_and_bytes_are_the_formula() -> None:
    tables = TableCollection([spec(budget=0.05)])
    done = advance(tables)
    (method,) = done.built_methods()
    assert method.num_kept < 300
    assert 1 < method.width < 8
    packed = pack_table(method, done.weights())
    out = packed.lookup(torch.arange(300))
    assert int(out.any(1).sum()) == method.num_kept
    assert torch.equal(out, lookup(done, torch.arange(300)).detach())
    assert packed.nbytes() == shape_nbytes(done.specs[0], num_kept=method.num_kept, width=method.width)
    assert packed.nbytes() <= 0.05 * 4 * 300 * 8
    assert done.nbytes("nominal") == 4 * method.num_kept * method.width
    kept = out.any(1).nonzero()[:, 0]
    assert method.address(kept)[0].tolist() == list(range(method.num_kept))


def test_a_search_that_is_interrupted_leaves_no_mask() -> None:
    tables = TableCollection([spec(budget=0.4)]).eval()
    before = lookup(tables, torch.arange(300))

    def score(*, max_samples: int | None = None, share: float = 1.0) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        advance(tables, score=score)
    assert torch.equal(lookup(tables, torch.arange(300)), before)


@pytest.mark.parametrize("num", [300, 70_000])
def test_retraining_starts_from_the_initial_values_of_what_is_kept(num: int) -> None:
    tables = TableCollection([spec(num=num, budget=0.4)], seed=5)
    initial = tables.weights()["t"].clone()
    tables.weights()["t"].mul_(torch.rand(num, 1, generator=torch.Generator().manual_seed(1)) * 3)
    with torch.no_grad():
        next(tables.built_methods()).threshold.fill_(1.5)
    done = advance(tables)
    (method,) = done.built_methods()
    assert 1 < method.num_kept < num
    ids = bit_at(method.words, torch.arange(num)).nonzero()[:, 0]
    assert torch.equal(done.weights()["t"], initial[ids, : method.width])


def test_floor_and_bad_options() -> None:
    with pytest.raises(BudgetError, match="needs the bitmap of kept ids and one entry, 48 bytes, so its floor is"):
        build_method(spec(budget=1e-3))
    with pytest.raises(ConfigError, match="at least 1 generation"):
        EvolutionConfig(generations=0)
    with pytest.raises(ConfigError, match="max_samples is 0"):
        EvolutionConfig(max_samples=0)
    with pytest.raises(ConfigError, match=r"screening is 0; it is a share"):
        EvolutionConfig(screening=0)
    with pytest.raises(ConfigError, match="mutation is 2"):
        EvolutionConfig(mutation=2.0)


@pytest.mark.parametrize(("num", "dim"), [(1, 1), (1, 2048), (7, 3)])
@pytest.mark.parametrize("threshold", [0.0, 1e6])
def test_edge_sizes(num: int, dim: int, threshold: float) -> None:
    """Also when training has pruned every row."""
    tables = TableCollection([spec(num=num, dim=dim)])
    (method,) = tables.built_methods()
    with torch.no_grad():
        method.threshold.fill_(threshold)
    done = finished(tables).eval()
    (method,) = done.built_methods()
    ids = torch.arange(num)
    out = lookup(done, ids).detach()
    assert torch.equal(pack_table(method, done.weights()).lookup(ids), out)
    assert bool(out.any()) == (threshold == 0)


def test_addresses_beyond_31_bits() -> None:
    method = build_method(spec(num=2**31 + 1, dim=16, budget=0.1))
    assert method.address(torch.tensor([2**31]))[0].item() == 2**31


@pytest.mark.parametrize("num", [1, 2, 3])
def test_a_threshold_above_all_rows_leaves_a_shape_within_the_budget(num: int) -> None:
    """Of few ids the bitmap outweighs the rows, so that keeping all of them may be the only shape."""
    for dim, budget, searched in product((1, 4, 5), (1.0, 0.5), (False, True)):
        try:
            tables = TableCollection([spec(num=num, dim=dim, budget=budget)])
        except BudgetError:
            continue
        next(iter(tables.methods)).threshold.data.fill_(100.0)
        done = advance(tables, score=(lambda **_: 0.5) if searched else None)
        assert done.nbytes("serving") <= budget * 4 * num * dim
