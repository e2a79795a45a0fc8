"""`option_class`: frozen, by name only, and misspelt keys of a configuration are refused."""

from dataclasses import FrozenInstanceError, asdict

import pytest
from pydantic import TypeAdapter, ValidationError

from embank.tables import option_class


@option_class
class Given:
    """Options of a test."""

    num_rows: int = 100
    share: float = 0.5


def test_an_option_class_is_a_dataclass_with_its_defaults() -> None:
    assert asdict(Given(num_rows=7)) == {"num_rows": 7, "share": 0.5}
    assert Given() == Given(num_rows=100, share=0.5)


def test_options_are_given_by_name_and_do_not_change() -> None:
    with pytest.raises(TypeError):
        Given(7)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Given().num_rows = 8  # type: ignore[misc]


def test_a_misspelt_key_is_refused_by_its_name() -> None:
    assert TypeAdapter(Given).validate_python({"num_rows": 3}) == Given(num_rows=3)
    with pytest.raises(ValidationError, match="num_row\n"):
        TypeAdapter(Given).validate_python({"num_row": 3})
