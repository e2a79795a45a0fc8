"""Advice before training: closed forms against what the hash really does, and against the known figures of public
vocabularies."""

import pytest
import torch

from embank.compression.methods.unified import Unified
from embank.compression.multiplexing.specs import advise, unified_specs
from embank.tables import ConfigError, TableCollection, TableSpec, build_method

SIZES = {"user": 3000, "item": 2000, "place": 500, "gender": 3}
LOOKUPS = {"user": 2, "item": 1, "place": 3, "gender": 2}


def test_rates_are_those_of_the_hash_within_three_sigma() -> None:
    """Means over 40 sets of salts, whose spread gives the sigma of the mean."""
    seen: dict[str, list[torch.Tensor]] = {}
    advice = advise(unified_specs(rows=4000, width=4, lookups=LOOKUPS, num_embeddings=SIZES))
    for trial in range(40):
        lookups = {f"{name}/{trial}": count for name, count in LOOKUPS.items()}
        sizes = {f"{name}/{trial}": SIZES[name] for name in LOOKUPS}
        specs = unified_specs(rows=4000, width=4, lookups=lookups, num_embeddings=sizes)
        methods = [build_method(spec) for spec in specs if not spec.name.startswith("gender")]
        loads = {
            m.spec.name: [row.bincount(minlength=4000) for row in m.address(torch.arange(m.spec.num_embeddings))]
            for m in methods
        }
        everything = torch.stack([row for rows in loads.values() for row in rows]).sum(0)
        for method in methods:
            address = method.address(torch.arange(method.spec.num_embeddings))
            first = loads[method.spec.name][0]
            intra = first[address[0]] > 1
            inter = (everything - first)[address[0]] > 0
            key = torch.stack(address, dim=1)
            _, places, counts = torch.unique(key, dim=0, return_inverse=True, return_counts=True)
            merged = counts[places] > 1
            rates = torch.stack([t.double().mean() for t in (intra, merged, inter)])
            seen.setdefault(method.spec.name.split("/")[0], []).append(rates)
    for feature in advice.features:
        if feature.placement == "exact":
            assert (feature.name, feature.intra, feature.merged, feature.inter) == ("gender", 0, 0, 0)
            continue
        rates = torch.stack(seen[feature.name])
        sigma = rates.std(0) / 40**0.5 + 1e-9
        expected = torch.tensor([feature.intra, feature.merged, feature.inter], dtype=torch.float64)
        error = (rates.mean(0) - expected).abs()
        rare = expected * SIZES[feature.name] * 40 < 5  # too few to have a spread
        assert ((error < 3 * sigma) | (rare & (error < 5 / (40 * SIZES[feature.name])))).all(), (feature, rates.mean(0))


def test_the_shared_table_has_as_many_colliding_pairs_as_the_best_split() -> None:
    """N**2 / 2M of both, of which the shared table's within features are the concentration's part."""
    names, rows = ("user", "item", "place"), 1000
    sizes = {name: SIZES[name] for name in names}
    total = sum(sizes.values())
    pairs: dict[str, list[int]] = {"shared": [], "within": [], "split": []}
    for trial in range(60):
        lookups = {f"{name}/{trial}": 1 for name in names}
        numbers = {f"{name}/{trial}": sizes[name] for name in names}
        everything = torch.zeros(rows, dtype=torch.int64)
        within = split = 0
        for spec in unified_specs(rows=rows, width=4, lookups=lookups, num_embeddings=numbers):
            (address,) = build_method(spec).address(torch.arange(spec.num_embeddings))
            load = address.bincount(minlength=rows)
            everything += load
            within += int((load * (load - 1) // 2).sum())
            own = rows * spec.num_embeddings // total
            (best,) = unified_specs(
                rows=own, width=4, lookups={spec.name: 1}, num_embeddings={spec.name: spec.num_embeddings}
            )
            (alone,) = build_method(best).address(torch.arange(spec.num_embeddings))
            load = alone.bincount(minlength=own)
            split += int((load * (load - 1) // 2).sum())
        pairs["shared"].append(int((everything * (everything - 1) // 2).sum()))
        pairs["within"].append(within)
        pairs["split"].append(split)
    mean = {name: torch.tensor(counts).double().mean().item() for name, counts in pairs.items()}
    sigma = {name: torch.tensor(counts).double().std().item() / 60**0.5 for name, counts in pairs.items()}
    expected = total * (total - 1) / (2 * rows)
    assert abs(mean["shared"] - expected) < 3 * sigma["shared"]
    least = sum(n * (n - 1) / (2 * (rows * n // total)) for n in sizes.values())
    assert abs(mean["split"] - least) < 3 * sigma["split"]
    assert least == pytest.approx(expected, rel=0.01)
    advice = advise(unified_specs(rows=rows, width=4, lookups=dict.fromkeys(names, 1), num_embeddings=sizes))
    part = advice.concentration["unified/shared/4"]
    assert mean["within"] == pytest.approx(part * total**2 / (2 * rows), rel=0.02)


def test_bytes_and_lookups_are_the_collections() -> None:
    specs = unified_specs(
        rows=4000, width=4, lookups=LOOKUPS, num_embeddings=SIZES, private={"place": 70}, embedding_dim=8
    )
    advice = advise(specs)
    tables = TableCollection(specs)
    assert advice.serving_nbytes == tables.nbytes("serving")
    assert advice.lookups == sum(len(method.physical) for method in tables.built_methods()) == 2 + 1 + 3 + 1
    assert [feature.placement for feature in advice.features] == ["shared", "shared", "private", "exact"]


def test_a_dominant_vocabulary_is_warned_of() -> None:
    def of(**sizes: int) -> tuple[str, ...]:
        specs = unified_specs(rows=1000, width=4, lookups=dict.fromkeys(sizes, 1), num_embeddings=sizes)
        return tuple(advise(specs).warnings)

    assert of(user=3000, item=2500, place=2000) == ()
    (warning,) = of(user=3000, item=300, place=200)
    assert warning.startswith("75% of the colliding pairs in 'unified/shared/4' are within features, mostly of 'user'")
    assert warning.endswith("Give it private rows")


def test_features_without_a_vocabulary_need_an_estimate() -> None:
    specs = unified_specs(rows=1000, width=4, lookups={"user": 2, "item": 2})
    unknown, known = advise(specs), advise(specs, num_values={"user": 400, "item": 500})
    assert [feature.intra for feature in unknown.features] == [None, None]
    assert known.features[0].intra == pytest.approx(1 - 0.999**399)
    assert known.features[0].inter == pytest.approx(1 - 0.999 ** (400 + 2 * 500))
    assert known.features[0].merged == pytest.approx(1 - (1 - 1e-6) ** 399)
    shown = str(known).splitlines()
    assert shown[0].split() == ["table", "placement", "values", "lookups", "intra", "merged", "inter"]
    assert shown[1].split() == ["user", "shared", "400", "2", "32.91%", "0.04%", "75.36%"]
    assert shown[3] == "15.7 KiB serving, 4 lookups per example"
    assert "?" in str(unknown)


def test_other_methods_are_refused() -> None:
    with pytest.raises(ConfigError, match="table 't' has method 'full'; advise takes tables of method 'unified'"):
        advise([TableSpec(name="t", num_embeddings=9, embedding_dim=4, feature_names=["t"])])
    assert isinstance(build_method(unified_specs(rows=1, width=4, lookups={"a": 1})[0]), Unified)
