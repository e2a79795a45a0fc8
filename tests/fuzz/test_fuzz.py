"""Files that are damaged, or that somebody made up: refused with a cure, or the same result; never a crash, a hang, a
huge allocation or another score.

`python -m tests.fuzz --cases 10000` tries more of them. What somebody made up has checksums that fit, so another result
is no fault there: checksums find damage, not forgery.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import Mutation, damage, edits, files_of, reseal, tensors
from tests.fuzz.outcomes import outcome
from tests.fuzz.places import Places, applied, look_up, score

CASES = int(os.environ.get("EMBANK_FUZZ_CASES", "120"))
"""Cases of all tests together."""

pytestmark = pytest.mark.slow


def cases(share: float) -> settings:
    """A share of all cases."""
    return settings(
        max_examples=max(5, round(CASES * share)),
        deadline=None,
        database=None,
        derandomize=CASES < 1000,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("fuzz"))


@cases(0.15)
@given(mutation=damage())
def test_a_damaged_model(place: Places, mutation: Mutation) -> None:
    bundle = place.copy(place.model)
    what = mutation(bundle)
    assert outcome(lambda: score(bundle), what=what) in (None, place.scores), what


@cases(0.1)
@given(mutation=damage(), verify=st.sampled_from([False, "small"]))
def test_a_damaged_model_without_verification(place: Places, mutation: Mutation, verify: bool) -> None:
    """Sizes are compared in any case; flipped bits in rows go unnoticed, and break nothing."""
    bundle = place.copy(place.model)
    before = {path: path.stat().st_size for path in files_of(bundle)}
    what = mutation(bundle)
    found = outcome(lambda: score(bundle, verify=verify), what=what)
    if before != {path: path.stat().st_size for path in files_of(bundle)}:
        assert found in (None, place.scores), what


@cases(0.15)
@given(mutation=st.one_of(edits(), edits(), tensors()))
def test_a_model_that_somebody_made_up(place: Places, mutation: Mutation) -> None:
    bundle = place.copy(place.model)
    what = mutation(bundle)
    reseal(bundle)
    outcome(lambda: score(bundle), what=what)


@cases(0.3)
@given(number=st.integers(0, 10**4), mutation=st.one_of(edits(), edits(), tensors()))
def test_tables_that_somebody_made_up(place: Places, number: int, mutation: Mutation) -> None:
    form = place.forms[number % len(place.forms)]
    bundle = place.copy(form)
    what = f"{form.name}: {mutation(bundle)}"
    reseal(bundle)
    outcome(lambda: look_up(bundle), what=what)


@cases(0.1)
@given(mutation=damage())
def test_a_damaged_delta(place: Places, mutation: Mutation) -> None:
    delta = place.copy(place.delta)
    what = mutation(delta)
    assert outcome(lambda: applied(place, delta), what=what) in (None, place.expected), what
    assert not (place.folder / "result" / ".." / "x").exists()


@cases(0.05)
@given(mutation=damage())
def test_a_damaged_bundle_under_a_delta(place: Places, mutation: Mutation) -> None:
    bundle = place.copy(place.old)
    what = mutation(bundle)
    assert outcome(lambda: applied(place, place.delta, bundle=bundle), what=what) in (None, place.expected), what


@cases(0.1)
@given(mutation=st.one_of(edits(), edits(), tensors()))
def test_a_delta_that_somebody_made_up(place: Places, mutation: Mutation) -> None:
    """Another result than the delta names can't come of it; what it names may be anything that a bundle holds."""
    delta = place.copy(place.delta)
    what = mutation(delta)
    reseal(delta)
    inside = {path for path in place.folder.iterdir() if path.name not in ("case", "result")}
    found = outcome(lambda: applied(place, delta), what=what)
    assert {path for path in place.folder.iterdir() if path.name not in ("case", "result")} == inside, what
    assert found in (None, place.expected), what


@cases(0.05)
@given(number=st.integers(0, 10**4), other=st.integers(0, 10**4))
def test_files_of_another_one(place: Places, number: int, other: int) -> None:
    """A file of one model in the folder of another one, or of a delta in that of another delta."""
    pairs = ((place.model, place.other), (place.delta, place.second))
    source, stranger = pairs[number % 2]
    folder = place.copy(source)
    names = [str(path.relative_to(stranger)) for path in files_of(stranger)]
    name = names[other % len(names)]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes((stranger / name).read_bytes())
    if source is place.model:
        assert outcome(lambda: score(folder), what=name) in (None, place.scores), name
    else:
        assert outcome(lambda: applied(place, folder), what=name) in (None, place.expected), name


def test_the_limits_hold(tmp_path: Path) -> None:
    """A case that allocates too much or raises something else is found."""
    with pytest.raises(AssertionError, match="big: MemoryError"):
        outcome(lambda: bytearray(2**31), what="big")
    with pytest.raises(AssertionError, match="odd: ZeroDivisionError"):
        outcome(lambda: 1 // 0, what="odd")
    assert outcome(lambda: look_up(tmp_path), what="refused") is None
