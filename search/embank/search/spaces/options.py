"""The values of a method's options that a search tries, which the method's `Config` declares.

A field of a `Config` says so in its metadata:

    num_rows: int | None = field(default=None, metadata={"choices": halves_of_ids, "sets_size": True})
    dim: int = field(default=1024, metadata={"choices": (256, 512, 1024)})

`choices` are values in rising order, or a function of the table's spec that gives them (for sizes that depend on the
number of ids or the embedding dim). `sets_size` says that the option decides the table's bytes: such a method is not
given a budget as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from embank.search.spaces.parameter import Value
from embank.tables import ConfigError, TableSpec

CHOICES, SETS_SIZE = "choices", "sets_size"


@dataclass(frozen=True, kw_only=True)
class OptionChoices:
    """What a search tries for one option.

    Args:
        option: the field of the method's `Config`.
        values: in rising order where they are numbers.
        sets_size: it decides the table's bytes.
    """

    option: str
    values: tuple[Value, ...]
    sets_size: bool

    @property
    def is_ordered(self) -> bool:
        """Whether neighbouring values are alike: numbers are."""
        return not any(isinstance(value, str | bool) for value in self.values)


def choices_of(config: type, spec: TableSpec) -> list[OptionChoices]:
    """What a method's `Config` declares for a table.

    Raises:
        ConfigError: a declaration without values, or with numbers that do not rise.
    """
    found = []
    for field in fields(config):
        if CHOICES in field.metadata:
            declared: Any = field.metadata[CHOICES]
            values: Sequence[Value] = declared(spec) if callable(declared) else declared
            choices = OptionChoices(
                option=field.name, values=tuple(values), sets_size=bool(field.metadata.get(SETS_SIZE, False))
            )
            is_rising = list(choices.values) == sorted(set(choices.values), key=_number)
            if not choices.values or (choices.is_ordered and not is_rising):
                raise ConfigError(
                    f"{config.__qualname__}.{field.name} declares the choices {choices.values} for table "
                    f"'{spec.name}'; give values in rising order"
                )
            found.append(choices)
    return found


def common_choices(found: Sequence[Sequence[OptionChoices]]) -> list[OptionChoices]:
    """What several tables may all have: by option the values that each declares, where there are two at least.

    Args:
        found: of one method, by table.
    """
    first, *others = found
    common = []
    for choices in first:
        own = [{value for c in other if c.option == choices.option for value in c.values} for other in others]
        values = tuple(value for value in choices.values if all(value in values for values in own))
        if len(values) > 1:
            common.append(replace(choices, values=values))
    return common


def _number(value: Value) -> float:
    return 0.0 if isinstance(value, str) else float(value)
