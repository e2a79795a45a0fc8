"""Where codecs announce themselves: by an entry point of their package, or in this process."""

import inspect
from typing import Any

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.registry import Registry
from embank.tables.serving.codecs.base import Coded

CODECS: Registry[Coded] = Registry("codec", Coded, group="embank.codecs")  # type: ignore[type-abstract]


def register_codec(name: str, codec: type[Coded]) -> None:
    """Adds a codec of this process; a package announces its codecs by an entry point of the group `embank.codecs`.

    Raises:
        ConfigError: it is no codec, or the name is taken by another class.

    Example:
        >>> register_codec("fp32", Coded)
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: codec 'fp32' is registered already
        (embank.tables.serving.codecs.fp32:Fp32); choose another name
    """
    CODECS.add(name, codec)


def registered_codecs() -> list[str]:
    """Names of all codecs, those that only their methods can make included.

    Example:
        >>> "fp32" in registered_codecs()
        True
    """
    return CODECS.names()


def codec_class(name: str) -> type[Coded]:
    """The class of a registered codec.

    Raises:
        ConfigError: nothing of this name is registered; the message has the nearest one.

    Example:
        >>> codec_class("fp32").__name__
        'Fp32'
        >>> codec_class("fp23")
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: there is no codec 'fp23'; did you mean 'fp32'?
    """
    return CODECS.find(name)


def codec_name(cls: type[Coded]) -> str:
    """The name under which a codec is registered.

    Raises:
        ConfigError: it is not.
    """
    name = CODECS.name_of(cls)
    if name is None:
        raise ConfigError(
            f"codec {cls.__module__}.{cls.__qualname__} is not registered, so nobody who reads a bundle would know it; "
            "announce it by an entry point of the group 'embank.codecs', or call register_codec"
        )
    return name


def encode(rows_RD: Tensor, *, codec: str = "fp32") -> Coded:
    """Rows in the form of a codec.

    Args:
        rows_RD: fp32 [R, D].
        codec: a registered name.

    Raises:
        ConfigError: no such codec, one that only its method can make, or one whose `take` does not give rows back.

    Example:
        >>> import torch
        >>> from embank.tables import encode
        >>> coded = encode(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), codec="fp32")
        >>> coded.take(torch.tensor([1, 1]))
        tensor([[3., 4.],
                [3., 4.]])
        >>> coded.nbytes()
        16
    """
    cls = codec_class(codec)
    if getattr(cls.encode, "__func__", None) is Coded.encode.__func__:  # type: ignore[attr-defined] # a class method's
        raise ConfigError(f"codec '{codec}' is made while its method trains; rows alone can't be coded by it")
    if not inspect.ismethod(cls.encode):
        raise ConfigError(f"codec '{codec}': encode makes an instance, so it must be a class method; decorate it")
    coded: Coded = cls.encode(rows_RD)
    _refuse_other_rows(coded, rows_RD, codec=codec)
    return coded


@torch.no_grad()
def _refuse_other_rows(coded: Any, rows_RD: Tensor, *, codec: str) -> None:
    """Tries a new matrix on no row, its first, and its first and last.

    Raises:
        ConfigError: it does not give so many rows of its width, in fp32.
    """
    if not isinstance(coded, Coded):
        raise ConfigError(f"codec '{codec}': encode gives a {type(coded).__name__}; give an instance of the codec")
    ends = [0, len(rows_RD) - 1] if len(rows_RD) else []
    for rows in ([], ends[:1], ends):
        try:
            taken: Any = coded.take(torch.tensor(rows, dtype=torch.int64, device=rows_RD.device))
        except Exception as error:  # whatever an author's class raises
            raise ConfigError(
                f"codec '{codec}': take fails for the row ids {rows}, int64 [{len(rows)}]: {type(error).__name__}: "
                f"{error}; give fp32 rows"
            ) from error
        shape = (len(rows), rows_RD.shape[1])
        if not isinstance(taken, Tensor) or taken.shape != shape or taken.dtype != torch.float32:
            got = f"{taken.dtype} {list(taken.shape)}" if isinstance(taken, Tensor) else f"a {type(taken).__name__}"
            raise ConfigError(
                f"codec '{codec}': take gives {got} for {len(rows)} row ids of a matrix of width {shape[1]}; give fp32 "
                f"{list(shape)}"
            )
