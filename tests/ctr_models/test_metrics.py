"""Metrics against scikit-learn and against slow, obvious loops."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from embank.ctr_models.metrics import Evaluation, LossSums, NonFiniteScoreError, group_auc, roc_auc
from embank.ctr_models.metrics.group_auc import ordered_bits
from embank.tables.errors import DataError

# Few distinct values, so that ties are the rule; both zeros; very small and very large scores.
SCORES = st.sampled_from([-1e30, -3.0, -0.5, -1e-40, -0.0, 0.0, 1e-40, 0.25, 0.5, 2.0, 1e30])
ROWS = st.lists(st.tuples(SCORES, st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40)
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def arrays(rows: list[tuple[float, bool, int]]) -> Arrays:
    scores, positive, groups = zip(*rows, strict=True)
    return np.array(scores, np.float32), np.array(positive), np.array(groups, np.int64)


def tensors(*values: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(value) for value in values)


def random_rows(num: int, *, seed: int = 0, decimals: int = 2) -> Arrays:
    rng = np.random.default_rng(seed)
    scores = rng.normal(-1, 2, num).round(decimals).astype(np.float32)
    positive = rng.random(num) < 1 / (1 + np.exp(-scores))
    return scores, positive, rng.integers(0, max(2, num // 20), num)


@settings(deadline=None, max_examples=200)
@given(ROWS)
def test_exact_auc_equals_sklearn_with_ties(rows: list[tuple[float, bool, int]]) -> None:
    scores, positive, _ = arrays(rows)
    evaluation = Evaluation(split="valid")
    evaluation.update(*tensors(scores, positive))
    value = evaluation.compute()["auc"]
    if positive.all() or not positive.any():
        assert value is None
        return
    assert value == roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


@settings(deadline=None, max_examples=200)
@given(ROWS)
def test_group_auc_equals_the_obvious_loop(rows: list[tuple[float, bool, int]]) -> None:
    scores, positive, groups = arrays(rows)
    total, num_rows, num_groups = 0.0, 0, 0
    for code in set(groups.tolist()):
        inside = groups == code
        if positive[inside].any() and not positive[inside].all():
            total += roc_auc_score(positive[inside], scores[inside]) * inside.sum()
            num_rows += int(inside.sum())
            num_groups += 1
    value, counted, rows_counted, all_groups = group_auc(scores, positive, groups)
    assert (counted, rows_counted, all_groups) == (num_groups, num_rows, len(set(groups.tolist())))
    if num_rows:
        assert value == pytest.approx(total / num_rows, abs=1e-12)
    else:
        assert value is None


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=20))
def test_ordered_bits_keep_the_order(values: list[float]) -> None:
    scores = np.array(values, np.float32)
    bits = ordered_bits(scores).astype(np.int64)
    assert (
        np.sign(bits[:, None] - bits) == np.sign(np.subtract.outer(scores.astype(float), scores.astype(float)))
    ).all()


def test_log_loss_and_calibration_equal_sklearn() -> None:
    scores, positive, _ = random_rows(3_000)
    sums = LossSums()
    for part in np.array_split(np.arange(3_000), 7):
        sums.update(*tensors(scores[part], positive[part]))
    probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
    assert sums.log_loss() == pytest.approx(log_loss(positive, probability), rel=1e-12)
    assert sums.calibration() == pytest.approx(probability.mean() / positive.mean(), rel=1e-12)


def test_log_loss_of_extreme_logits_is_exact() -> None:
    sums = LossSums()
    sums.update(torch.tensor([200.0, -200.0, 200.0, 50.0]), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert sums.loss == pytest.approx(400.0, rel=1e-15)
    sums = LossSums()
    sums.update(torch.tensor([50.0]), torch.tensor([1]))
    assert sums.log_loss() == pytest.approx(np.log1p(np.exp(-50.0)), rel=1e-12)


@pytest.mark.parametrize("grouped", [True, False])
def test_batches_ranks_and_checkpoints_change_nothing(grouped: bool) -> None:
    scores, positive, groups = random_rows(500)
    whole = Evaluation(split="test", grouped=grouped)
    whole.update(*tensors(scores, positive, groups))
    ranks = [Evaluation(split="test", grouped=grouped) for _ in range(2)]
    for i, part in enumerate(np.array_split(np.arange(500), 9)):
        ranks[i % 2].update(*tensors(scores[part], positive[part], groups[part]))
        state = ranks[i % 2].state_dict()
        ranks[i % 2] = Evaluation(split="test", grouped=grouped)
        ranks[i % 2].load_state_dict(state)
    ranks[0].merge(ranks[1])
    expected, merged = whole.compute(), ranks[0].compute()
    assert expected.keys() == merged.keys()
    for key, value in expected.items():
        assert merged[key] == pytest.approx(value, rel=1e-12), key
    assert expected["auc"] == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_evaluation_is_ready_for_json() -> None:
    evaluation = Evaluation(split="valid", grouped=True)
    evaluation.update(torch.tensor([0.5, -0.5]), torch.tensor([0.0, 0.0]), torch.tensor([7, 7]))
    values = json.loads(json.dumps(evaluation.compute(), allow_nan=False))
    assert values["auc"] is None
    assert values["gauc"] is None
    assert values["calibration"] is None
    assert values["num_rows"] == 2
    assert "AUC is undefined: split 'valid' holds no positive example (0 of 2)." in values["auc_undefined"]
    assert "none of the 1 groups of split 'valid' holds both classes (2 rows)" in values["gauc_undefined"]


def test_undefined_without_negatives_and_without_rows() -> None:
    evaluation = Evaluation(grouped=True)
    values = evaluation.compute()
    assert values["auc_undefined"] == "AUC is undefined: the data holds no rows."
    assert values["logloss"] is None
    evaluation.update(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([0]))
    assert "holds no negative example (0 of 1)" in str(evaluation.compute()["auc_undefined"])


def test_non_finite_logits_are_counted() -> None:
    evaluation = Evaluation(split="valid")
    evaluation.update(torch.zeros(10), torch.ones(10))
    bad = torch.tensor([0.0, float("nan"), float("inf"), 1.0, float("nan")])
    with pytest.raises(
        NonFiniteScoreError, match=r"3 of 5 logits .* 'valid' are not finite \(2 NaN, 1 infinite\), the first at row 11"
    ):
        evaluation.update(bad, torch.zeros(5))
    assert evaluation.compute()["num_rows"] == 10


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (
            torch.zeros(3),
            torch.tensor([0.0, 0.5, 1.0]),
            "1 labels of split 'valid' are neither 0 nor 1, the first at row 1: 0.5",
        ),
        (torch.zeros(3), torch.tensor([0, 1, 2]), "the first at row 2: 2"),
        (torch.zeros(3), torch.zeros(2), r"shape \(3,\) and labels \(2,\)"),
        (torch.zeros(3, 1), torch.zeros(3, 1), r"shape \(3, 1\)"),
    ],
)
def test_bad_batches_are_refused(logits: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Evaluation(split="valid").update(logits, labels)


def test_groups_must_be_there() -> None:
    with pytest.raises(DataError, match="group codes have shape None"):
        Evaluation(grouped=True).update(torch.zeros(2), torch.zeros(2), None)
    with pytest.raises(DataError, match="one of the two has group codes and the other has not"):
        Evaluation(grouped=True).merge(Evaluation())


def test_group_auc_over_batches() -> None:
    scores, positive, groups = random_rows(300)
    evaluation = Evaluation(split="test", grouped=True)
    for part in np.array_split(np.arange(300), 4):
        evaluation.update(*tensors(scores[part], positive[part], groups[part]))
    values = evaluation.compute()
    found = tuple(values[key] for key in ("gauc", "gauc_groups", "gauc_rows", "gauc_total_groups"))
    assert found == group_auc(scores, positive, groups)
    assert (values["num_rows"], values["gauc_rows_without_group"]) == (300, 0)


def test_rows_without_a_group_are_left_out_and_counted() -> None:
    scores, positive, groups = random_rows(300)
    lost = np.arange(300) % 3 == 0
    coded = np.where(lost, -7, groups)
    evaluation = Evaluation(grouped=True, no_group=-7)
    for part in np.array_split(np.arange(300), 4):
        evaluation.update(*tensors(scores[part], positive[part], coded[part]))
    expected = group_auc(scores[~lost], positive[~lost], groups[~lost])
    values = evaluation.compute()
    assert (values["gauc"], values["gauc_groups"], values["gauc_rows"], values["gauc_total_groups"]) == expected
    assert values["gauc_rows_without_group"] == 100
    assert values["num_rows"] == 300, "all other metrics are of all rows"
    alone = Evaluation(split="test", grouped=True, no_group=-7)
    alone.update(*tensors(scores[:2], np.array([True, False]), np.array([-7, -7])))
    assert "none of the 0 groups of split 'test' holds both classes (2 rows, 2 of them without" in str(
        alone.compute()["gauc_undefined"]
    )


def test_the_caller_may_reuse_its_batch() -> None:
    logits = torch.tensor([0.0, 1.0])
    evaluation = Evaluation()
    evaluation.update(logits, torch.tensor([0.0, 1.0]))
    logits.fill_(0.0)
    assert evaluation.compute()["auc"] == 1.0


def test_scores_in_bf16_are_taken() -> None:
    evaluation = Evaluation()
    evaluation.update(torch.tensor([0.0, 1.0], dtype=torch.bfloat16), torch.tensor([0, 1]))
    assert evaluation.compute()["auc"] == 1.0
