"""The nearest right name for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` most like `name` (case does not count), or None when none is alike."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question "Did you mean 'x'?" with a leading space, or nothing."""
    match = nearest(name, known)
    return f" Did you mean {match!r}?" if match else ""


def listing(names: Iterable[str], *, most: int = 12) -> str:
    """Names joined by commas; a long list is cut and its length given."""
    names = list(names)
    if len(names) <= most:
        return ", ".join(names)
    return ", ".join(names[:most]) + f", ... ({len(names)} in all)"
