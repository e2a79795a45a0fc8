"""What may differ between the configuration that a run was started with and the one that it goes on with."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embank.tables.errors import ConfigError

MAY_CHANGE = frozenset(
    [
        "data.path",
        "data.prefetch",
        "rows.device",
        "rows.prefetch",
        "rows.directory",
        "rows.planner",
        "rows.plan",
        "rows.memory_per_rank",
        "train.num_threads",
        "train.tensorboard",
        "train.checkpoint_every",
        "train.checkpoint_minutes",
    ]
)
"""Keys that a resumed run may have other values for: they don't enter its figures. Data is checked by its
fingerprint."""

AUTO = "auto"
"""What leaves a setting open; a run's own configuration has what was chosen for it."""


def refuse_changed_config(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], *, may_change: frozenset[str] = MAY_CHANGE
) -> None:
    """Raises ConfigError if two configurations differ in what enters figures; names the first key, with both values."""
    before, now = dict(flat(old)), dict(flat(new))
    changed = [
        key
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key not in may_change and not (now.get(key) == AUTO and key in before)
    ]
    if changed:
        key = changed[0]
        if key not in before:
            raise ConfigError(
                f"'{folder}' was started by an embank that did not know the key {key}, which is {now[key]!r} here; go "
                "on with the embank that started it, or start a new run in another --out"
            )
        raise ConfigError(
            f"'{folder}' was started with {key} = {before.get(key)!r}, the configuration now says {now.get(key)!r}; "
            "resume with the same configuration or start a new run in another --out"
        )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as pairs of "section.key" and value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
