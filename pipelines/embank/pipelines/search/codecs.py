"""Codecs among the values of a space: whether a budget can count their bytes."""

from embank.tables import ConfigError, named_codec


def is_sized(codec: str) -> bool:
    """Whether the bytes of a codec are known without rows.

    Raises:
        ConfigError: there is no such codec.
    """
    named = named_codec(codec)  # in front of the try: a name that no codec has is refused as that
    try:
        named.nbytes_of(1, 1)
    except ConfigError:
        return False
    return True


def refuse_unsized(codec: str, *, where: str, cure: str) -> None:
    """Raises ConfigError for a codec whose bytes depend on the rows, and for a name that no codec has.

    Args:
        codec: a value of the space.
        where: the key that holds it, and what counts its bytes.
        cure: what to do.
    """
    if not is_sized(codec):
        raise ConfigError(f"{where}, but how many bytes '{codec}' takes is only known once rows are trained; {cure}")
