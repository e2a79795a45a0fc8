"""How cost grows: what a point measures, and the exponents between points."""

import pytest
from tests.scripts import script


def test_exponents_are_those_of_powers() -> None:
    growth = script("growth")
    assert growth.exponents([10, 100, 1000], [3.0, 30.0, 3000.0]) == pytest.approx([1.0, 2.0])


def test_a_point_times_steps_on_bags() -> None:
    growth = script("growth")
    found = growth.step_costs(growth.Shape(rows=100, features=2, bag=3, batch=8), rounds=2)
    assert {name: len(times) for name, times in found.items()} == {"step": 2, "address": 2, "build": 1}
    assert all(seconds > 0 for times in found.values() for seconds in times)


def test_each_axis_changes_one_thing() -> None:
    growth = script("growth")
    plain = growth.Shape()
    assert growth.shape_of("rows", 10) == growth.Shape(rows=10)
    assert growth.shape_of("batch", plain.batch) == plain
    features = [growth.shape_of("features", number) for number in growth.AXES["features"]]
    assert {shape.rows // shape.features for shape in features} == {10_000}
