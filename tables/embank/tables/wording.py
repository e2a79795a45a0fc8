"""What messages are made of: the nearest right name for a wrong one, lists of names, bytes with a unit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` most like `name` (case does not count), or None when none is alike."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.65)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question "Did you mean 'x'?" with a leading space, or nothing."""
    match = nearest(name, known)
    return f" Did you mean {match!r}?" if match else ""


def nearest_or_all(name: str, known: Iterable[str], *, label: str) -> str:
    """The end of a sentence: "did you mean 'x'?", or "label: a, b, c" when none is alike."""
    known = list(known)
    match = nearest(name, known)
    return f"did you mean {match!r}?" if match else f"{label}: {', '.join(known)}"


def listing(names: Iterable[str], *, most: int = 12) -> str:
    """Names joined by commas; a long list is cut and its length given."""
    names = list(names)
    if len(names) <= most:
        return ", ".join(names)
    return ", ".join(names[:most]) + f", ... ({len(names)} in all)"


def shortened(text: str, *, most: int = 60) -> str:
    """A text as messages show it: cut, with three dots at its end, when it is longer than `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def shown(value: object) -> str:
    """A value as messages show it, in quotes where it is text, cut when it is very long."""
    return shortened(repr(value), most=120)


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'; one decimal below a hundred, none above and none for single bytes."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
