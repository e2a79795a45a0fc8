"""Keys that no values are tried of: a command that tries values sets them itself, or compares its runs by them."""

from collections.abc import Mapping

from embank.tables import ConfigError


def refuse_untuned(key: str, untuned: Mapping[str, str], *, where: str) -> None:
    """Refuses such a key, one below it, and a section with one in it.

    Args:
        key: "section.key", of which values are to be tried.
        untuned: those keys, each with what to do instead.
        where: what names the key, for messages.

    Raises:
        ConfigError: it is one.
    """
    own = next((own for own in untuned if key == own or key.startswith(f"{own}.")), None)
    if own is not None:
        raise ConfigError(f"{where} has the key {key}, which is not tuned: {untuned[own]}")
    within = [own for own in untuned if own.startswith(f"{key}.")]
    if within:
        raise ConfigError(
            f"{where} has the whole section {key}, with {within[0]} in it; give single keys, as {key}.KEY"
        )
