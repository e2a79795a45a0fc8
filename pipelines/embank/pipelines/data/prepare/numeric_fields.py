"""Numeric features as they are written and as the schema remembers them: scale, and what stands where a number is
missing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from embank.pipelines.config.columns import NumericConfig, PrepareConfig
from embank.pipelines.data.schema import IS_MISSING, NumericField


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


def finished(values_N: npt.NDArray[np.floating], field: NumericField) -> npt.NDArray[np.float32]:
    """Transformed values as they are written, [N] float32: scaled for `standard`, and what `field` says where one is
    missing (nan)."""
    missing_N = np.isnan(values_N)
    if field.mean is not None and field.std is not None:
        values_N = (values_N - field.mean) / field.std
    return np.where(missing_N, field.fill, values_N).astype(np.float32)
