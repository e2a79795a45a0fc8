"""Where codecs announce themselves: by an entry point of their package, or in this process. And what their names say.

A name is that of a codec, perhaps with a number and with the codec of what it holds: `int4`, `pca8`, `pca8+int4`.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.registry import Registry
from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.chunks import NUMBERS_PER_CHUNK
from embank.tables.wording import nearest_or_all

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


@dataclass(frozen=True, kw_only=True)
class NamedCodec:
    """What a codec's name says.

    Args:
        name: all of it.
        cls: the class.
        arguments: what `encode` and `nbytes_of` are given besides rows and sizes.

    Example:
        >>> int4 = named_codec("int4")
        >>> int4.takes_rows, int4.nbytes_of(1000, 16)  # half a byte a number, 4 bytes for 4 rows
        (True, 9000)
    """

    name: str
    cls: type[Coded]
    arguments: dict[str, Any]

    @property
    def takes_rows(self) -> bool:
        """Whether rows alone can be coded by it, without the method that trained them."""
        return getattr(self.cls.encode, "__func__", None) is not Coded.encode.__func__  # type: ignore[attr-defined]

    def nbytes_of(self, num_rows: int, dim: int) -> int:
        """Bytes of so many coded rows.

        Raises:
            ConfigError: only the rows decide.
        """
        return self.cls.nbytes_of(num_rows, dim, **self.arguments)


def offered_codecs() -> list[NamedCodec]:
    """What a user may choose: the codecs that rows alone can be coded by. Those of packages that can't be imported are
    left out.

    Example:
        >>> "fp32" in [codec.name for codec in offered_codecs()]
        True
    """
    found = []
    for name in registered_codecs():
        with suppress(ConfigError):
            found.append(NamedCodec(name=name, cls=codec_class(name), arguments={}))
    return [codec for codec in found if codec.takes_rows]


def row_codec(name: str, *, also: Sequence[str] = ()) -> NamedCodec:
    """The codec of a name that rows alone can be coded by.

    Args:
        name: see `named_codec`.
        also: what a message offers besides codecs.

    Raises:
        ConfigError: there is no such codec, or only its method can make it; says what there is.

    Example:
        >>> row_codec("int4").name
        'int4'
        >>> row_codec("product")
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: codec 'product' is made while its method trains; rows alone can't be coded by
        it. Choose one of `embank codecs`
    """
    named = named_codec(name, also=also)
    if not named.takes_rows:
        raise ConfigError(
            f"codec '{name}' is made while its method trains; rows alone can't be coded by it. Choose one of "
            "`embank codecs`"
        )
    return named


def named_codec(name: str, *, also: Sequence[str] = ()) -> NamedCodec:
    """The codec of a name: `CODEC`, `CODEC8` where it takes a number, `CODEC+INNER` where it holds what another codes.

    Args:
        name: the name.
        also: what a message offers besides codecs, where there is none of that name.

    Raises:
        ConfigError: there is no such codec, or it takes no number, none so large, or no inner codec.

    Example:
        >>> pca = named_codec("pca8+int4")
        >>> pca.cls.__name__, pca.arguments
        ('PcaRows', {'number': 8, 'inner': 'int4'})
        >>> pca.nbytes_of(1000, 16)
        5076
        >>> named_codec("fp16+int4")
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: codec 'fp16+int4': 'fp16' holds no other codec; use 'fp16'
    """
    if not isinstance(name, str):
        raise ConfigError(f"{name!r} is no name of a codec; give a text")
    outer, plus, inner = name.partition("+")
    arguments: dict[str, Any] = {}
    if name not in registered_codecs():
        numbered = re.fullmatch(r"(.*?[^0-9])([0-9]{1,9})", outer)
        if outer not in registered_codecs() and numbered and numbered[1] in registered_codecs():
            outer, arguments["number"] = numbered[1], int(numbered[2])
        if plus:
            arguments["inner"] = inner
    if outer not in registered_codecs():
        offered = [*also, *(codec.name for codec in offered_codecs())]
        raise ConfigError(f"there is no codec '{outer}'; {nearest_or_all(outer, offered, label='known codecs')}")
    cls = codec_class(outer)
    for argument, what in (("number", "takes no number"), ("inner", "holds no other codec")):
        if argument in arguments and argument not in cls.arguments:
            raise ConfigError(f"codec '{name}': '{outer}' {what}; use '{outer}'")
    if plus and "inner" in arguments and not named_codec(inner).takes_rows:
        raise ConfigError(
            f"codec '{name}': '{inner}' is made while its method trains; choose another inner codec, of `embank codecs`"
        )
    if arguments.get("number") == 0:
        raise ConfigError(f"codec '{name}' has number 0; it must be at least 1")
    if cls.most_number is not None and arguments.get("number", 0) > cls.most_number:
        raise ConfigError(
            f"codec '{name}' has number {arguments['number']}; that of '{outer}' is at most {cls.most_number}"
        )
    return NamedCodec(name=name, cls=cls, arguments=arguments)


def codecs_by_table(codec: str | Mapping[str, str], tables: Sequence[str]) -> dict[str, str]:
    """The codec of each table, from one for all or some by table; the others are fp32.

    Raises:
        ConfigError: it is neither a name nor names by table, there is no such table or codec, or rows alone can't be
            coded by it.

    Example:
        >>> codecs_by_table({"item": "int4"}, ["user", "item"])
        {'user': 'fp32', 'item': 'int4'}
    """
    if not isinstance(codec, (str, Mapping)):
        raise ConfigError(f"the codec is {codec!r}; give the name of one, or a dict of names by table")
    by_table = dict.fromkeys(tables, codec) if isinstance(codec, str) else dict(codec)
    for name in by_table:
        if name not in tables:
            raise ConfigError(
                f"codec of table '{name}': there is no such table; {nearest_or_all(name, list(tables), label='tables')}"
            )
    for name in dict.fromkeys(by_table.values()):
        row_codec(name)
    return {table: by_table.get(table, "fp32") for table in tables}


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


def codec_told(name: str, facts: Mapping[str, Any]) -> str:
    """A matrix's codec, with what holds its parts: of a pruned table in 4 bits "sparse_coded (int4)"."""
    parts = ", ".join(str(about["codec"]) for about in facts.get("parts", {}).values())
    return f"{name} ({parts})" if parts else name


def encode(rows_RD: Tensor, *, codec: str = "fp32") -> Coded:
    """Rows in the form of a codec.

    Args:
        rows_RD: fp32 [R, D].
        codec: a name, see `named_codec`.

    Raises:
        ConfigError: no such codec, one that only its method can make, something else than a matrix in fp32, rows that
            are not finite (under all but fp32) or too large for it, or a codec whose `take` does not give rows back.

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
    named = row_codec(codec)
    if not inspect.ismethod(named.cls.encode):
        raise ConfigError(f"codec '{codec}': encode makes an instance, so it must be a class method; decorate it")
    if rows_RD.dim() != 2 or rows_RD.dtype != torch.float32 or not rows_RD.shape[1]:
        raise ConfigError(
            f"codec '{codec}' holds a matrix of rows in float32, with a column at least, and it is given "
            f"{list(rows_RD.shape)} in {str(rows_RD.dtype).removeprefix('torch.')}"
        )
    if codec != "fp32":
        _refuse_non_finite(rows_RD, codec=codec)
    try:
        coded: Coded = named.cls.encode(rows_RD, **named.arguments)
    except _NotFiniteError as error:
        raise _too_large(rows_RD, codec=codec) from error
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ConfigError(
            f"rows reach {_largest(rows_RD):.4g}, and codec '{codec}' can't be fitted to them: "
            f"{str(error).rstrip('.')}; use another codec or 'fp32', or scale them"
        ) from error
    _refuse_other_rows(coded, rows_RD, codec=codec)
    if codec != "fp32":
        _refuse_infinities(coded, rows_RD, codec=codec)
    return coded


def _largest(rows_RD: Tensor) -> float:
    """The largest number of some rows without its sign."""
    return float(torch.stack(rows_RD.detach().aminmax()).abs().max())


def _too_large(rows_RD: Tensor, *, codec: str) -> ConfigError:
    return ConfigError(
        f"rows reach {_largest(rows_RD):.4g}, of which codec '{codec}' makes numbers beyond float32; use 'fp32', or "
        "scale them"
    )


@torch.no_grad()
def _refuse_infinities(coded: Coded, rows_RD: Tensor, *, codec: str) -> None:
    """Tries the rows with the largest and the smallest number; all of them, some at a time, where numbers are so large
    that a sum over columns, which any row may have, leaves float32.

    Raises:
        ConfigError: a row does not come back finite.
    """
    num_rows, dim = rows_RD.shape
    if not rows_RD.numel():
        return
    tried = torch.stack([rows_RD.amax(dim=1).argmax(), rows_RD.amin(dim=1).argmin()])
    if _largest(rows_RD) > torch.finfo(torch.float32).max / (4 * dim):
        tried = torch.arange(num_rows, device=rows_RD.device)
    for rows_N in torch.split(tried, max(1, NUMBERS_PER_CHUNK // dim)):
        if not bool(coded.take(rows_N).isfinite().all()):
            raise _too_large(rows_RD, codec=codec)


class _NotFiniteError(ConfigError):
    """Rows are not finite; raised within `encode` of finite ones, it is of what a codec has made of them."""


def _refuse_non_finite(rows_RD: Tensor, *, codec: str) -> None:
    """Raises ConfigError for rows that are not finite: a step or a scale made of them would spoil their neighbours."""
    if rows_RD.numel() and not bool(torch.stack(rows_RD.detach().aminmax()).isfinite().all()):
        raise _NotFiniteError(
            f"rows are not finite, so codec '{codec}' can't hold them; use 'fp32', or train with a lower rate"
        )


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
