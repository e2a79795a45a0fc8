"""Methods of several stages side by side: their trainings are made one where that is right, and refused where it is
not."""

import pytest
import torch
from torchrec import KeyedJaggedTensor

from embank.tables import ConfigError, TableCollection, TableSpec
from embank.tables.collections.stages import advance, current_stage, num_stages, planned_stages, search_parameters


def collection(*methods: str) -> TableCollection:
    return TableCollection(
        [
            TableSpec(
                name=f"{method}{number}",
                num_embeddings=60,
                embedding_dim=4,
                feature_names=[f"f{number}"],
                method=method,
                budget=None if method == "full" else 0.5,
            )
            for number, method in enumerate(methods)
        ]
    )


def test_one_staged_method_beside_plain_ones() -> None:
    for methods in (("full", "pep"), ("pep", "full", "pep")):
        tables = collection(*methods)
        assert [stage.name for stage in planned_stages(tables)] == ["thresholds", "retrain"]
    assert [stage.name for stage in planned_stages(collection("full", "hash"))] == ["train"]


@pytest.mark.parametrize("methods", [("pep", "autodim"), ("autodim", "full", "pep")])
def test_pep_beside_autodim_trains_both(methods: tuple[str, ...]) -> None:
    """The search alternates, as autodim needs it; pep's thresholds train along, and both go on to retrain."""
    tables = collection(*methods)
    first, second = planned_stages(tables)
    assert (first.alternates, first.is_search, first.hands_over) == (True, True, "end")
    assert sorted(first.name.split(" and ")) == ["search", "thresholds"]
    assert (second.name, second.alternates, second.fresh_network) == ("retrain", False, True)
    assert len(search_parameters(tables)) == 1
    size = len(methods)
    kjt = KeyedJaggedTensor(
        keys=[f"f{i}" for i in range(size)],
        values=torch.arange(60).repeat(size),
        lengths=torch.ones(60 * size, dtype=torch.int32),
    )
    tables.begin(num_steps=3)
    before = {name: p.detach().clone() for name, p in tables.methods.named_parameters()}
    optimizer = torch.optim.SGD(tables.dense_parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (tables(kjt).values() - 1).square().sum().backward()
        tables.step()
        optimizer.step()
    moved = {
        name.rsplit(".", 1)[-1] for name, p in tables.methods.named_parameters() if not torch.equal(before[name], p)
    }
    assert {"thresholds", "weight", "logits"} <= moved
    done = advance(tables)
    assert current_stage(done) == second
    assert {method.spec.stage for method in done.built_methods() if method.spec.method != "full"} == {1}
    assert num_stages(done) == 2


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            ("pep", "autosrh"),
            r"table 'pep0' \(method 'pep'\) trains in the stages thresholds \(.*, table 'autosrh1' .* in warm-up \(",
        ),
        (
            ("dedup", "pep"),
            r"'dedup0' .*fine-tune \(0.5 of the epochs, hands over its best\), table 'pep1' .*retrain \(1 of the "
            r"epochs, new network",
        ),
        (("full", "pep", "optembed"), r"supernet \(1 of the epochs, search, hands over its best\)"),
    ],
)
def test_trainings_that_can_not_be_one_are_refused(methods: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        planned_stages(collection(*methods))
    assert "can't be trained as one; store both by one of these methods" in str(refused.value)
