"""Numeric features as they are written and as the schema remembers them: scale, and what stands where a number is
missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from embank.pipelines.config.columns import NumericConfig, PrepareConfig
from embank.pipelines.data.schema import IS_MISSING, NumericField
from embank.tables.errors import DataError
from embank.tables.wording import shown


def needs_moments(numeric: NumericConfig) -> bool:
    """Whether a feature can't be written without the mean of its training part."""
    return numeric.transform == "standard" or numeric.missing != "zero"


def numeric_columns(config: PrepareConfig) -> list[str]:
    """Numeric columns as they are written: each feature, followed by its indicator if it has one."""
    columns = []
    for name in config.numeric:
        columns += [name, config.indicators[name]] if name in config.indicators else [name]
    return columns


def numeric_fields(config: PrepareConfig, moments: Mapping[str, tuple[float, float]]) -> tuple[NumericField, ...]:
    """The schema's numeric fields, in the order of `numeric_columns`.

    Args:
        moments: mean and standard deviation of the features that need them, after the transform (for `standard`, before
            it).
    """
    fields = []
    for name, numeric in config.numeric.items():
        standard = numeric.transform == "standard"
        mean, std = moments[name] if needs_moments(numeric) else (0.0, 1.0)
        fill = 0.0 if standard or numeric.missing == "zero" else mean
        field = NumericField(
            name=name,
            transform=numeric.transform,
            mean=mean if standard else None,
            std=std if standard else None,
            missing=numeric.missing,
            fill=fill,
        )
        fields.append(field)
        if name in config.indicators:
            fields.append(
                NumericField(
                    name=config.indicators[name],
                    transform=IS_MISSING,
                    mean=None,
                    std=None,
                    missing="indicator",
                    fill=1.0,
                )
            )
    return tuple(fields)


def finished(
    values_N: npt.NDArray[np.floating], field: NumericField, *, where: Callable[[int], str] | None = None
) -> npt.NDArray[np.float32]:
    """Transformed values as they are written, [N] float32: scaled for `standard`, and what `field` says where one is
    missing (nan).

    Args:
        where: a row's place in words, where it is known.

    Raises:
        DataError: a value is so far from those of the training part that 32 bits can't hold it once it is scaled.
    """
    missing_N = np.isnan(values_N)
    if field.mean is None or field.std is None:
        return np.where(missing_N, field.fill, values_N).astype(np.float32)
    with np.errstate(over="ignore"):
        scaled_N = np.where(missing_N, field.fill, (values_N - field.mean) / field.std).astype(np.float32)
    if not np.isfinite(scaled_N).all():
        row = int(np.argmin(np.isfinite(scaled_N)))
        value = float(values_N[row])
        place = "" if where is None else f"{where(row)}: "
        raise DataError(
            f"{place}column {field.name!r} is {shown(value)}, beyond 32-bit floats after `standard` (the mean of the "
            f"training part is {field.mean:g}, its standard deviation {field.std:g}). Use the transform log1p, or mend "
            "the cell.",
            field=field.name,
            row=None if where is None else row,
            value=value,
        )
    return scaled_N
