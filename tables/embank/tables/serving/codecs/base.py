"""A codec: how a matrix of rows is held while it is served."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from embank.tables.errors import ConfigError
from embank.tables.method.base import Held
from embank.tables.method.together import Array
from embank.tables.serving.codecs.layout import Layout

MIN_NUMBERS = 64
"""A matrix of fewer numbers is held as it is: steps, offsets and codebooks would take what codes save."""


class Coded(nn.Module, ABC):
    """A matrix of rows in its served form: buffers of any type, and plain attributes. The class is the codec.

    `take` is made of traceable tensor operations: no `.tolist()`, no `int(tensor)`, no loop that depends on data.

    Attributes:
        held: the plain attributes that a bundle saves, and the buffers that the paper does not count.
        arguments: what a codec's name may add to it, see `named_codec`: a "number", another codec as the "inner" one.
            `encode` and `nbytes_of` take them by keyword.
        most_number: the largest "number" that a name may have; None where any will do.

    Example:
        >>> class Halves(Coded):
        ...     def __init__(self, rows_RD):
        ...         super().__init__()
        ...         self.register_buffer("rows", rows_RD.half())
        ...     @classmethod
        ...     def encode(cls, rows_RD):
        ...         return cls(rows_RD)
        ...     def take(self, rows_N):
        ...         return self.rows.index_select(0, rows_N).float()
        >>> halves = Halves.encode(torch.tensor([[1.0, 2.0], [0.5, 0.25]]))
        >>> halves.take(torch.tensor([1])), halves.nbytes()
        (tensor([[0.5000, 0.2500]]), 8)
    """

    held: ClassVar[Held] = Held()
    arguments: ClassVar[tuple[Literal["number", "inner"], ...]] = ()
    most_number: ClassVar[int | None] = None

    @classmethod
    def encode(cls, rows_RD: Tensor, *args: Any, **arguments: Any) -> Self:
        """Any rows, fp32 [R, D], in this form. They may share memory with it.

        Args:
            rows_RD: the rows; finite, unless the codec is fp32.
            args: none; so typed, subclasses may take other arguments.
            arguments: those that the codec has.

        Raises:
            ConfigError: the codec is made by a method, which has more to tell than rows.
        """
        raise ConfigError(
            f"codec '{cls.__name__}' is made while its method trains; rows alone can't be coded by it. Choose another "
            "codec"
        )

    @classmethod
    def nbytes_of(cls, num_rows: int, dim: int, *args: Any, **arguments: Any) -> int:
        """Bytes of so many rows in this form, without the rows.

        Raises:
            ConfigError: only the rows decide.
        """
        raise ConfigError(
            f"how many bytes codec '{cls.__name__}' takes depends on the rows; encode them and ask nbytes"
        )

    @classmethod
    def rows_per_block(cls, dim: int) -> int:
        """Rows of which every multiple is coded as it is within a larger matrix: the buffers of such blocks, one after
        the other, are those of the whole. 0 where all rows are coded together.

        Args:
            dim: of the rows.
        """
        return 0

    def recoded(self, codec: str) -> "Coded":
        """The same rows, what is fp32 in this form (centroids, values) held by another codec; by default as it is."""
        return self

    @abstractmethod
    def take(self, rows_N: Tensor) -> Tensor:
        """Rows [N, D], fp32, for row ids int64 [N]; N may be 0. Ids out of range are the caller's to refuse."""

    def first(self, num_rows: int) -> Tensor:
        """The first rows, [num_rows, D]."""
        return self.take(torch.arange(num_rows))

    def fused(self) -> tuple[str, Tensor] | None:
        """Rows as inference tables of FBGEMM hold whole numbers, uint8 [R, 4 + bytes of codes], each from its step and
        offset in fp16 on, and the name of their type (int8, int4, int2); None where they are held otherwise."""
        return None

    def layout(self) -> Layout | None:
        """Where its rows lie, if compiled code can read them there; None where they are held otherwise."""
        return None

    def joint_place(self) -> Hashable | None:
        """What matrices have in common whose rows `joined` takes at once; None where each is asked alone."""
        return None

    def num_joint_rows(self) -> int:
        """Rows that it has, where it has a joint place; a few more where the last byte holds so many."""
        raise NotImplementedError(f"{type(self).__name__} has a joint place, and no number of rows")

    @classmethod
    def joined(cls, matrices: Sequence[Self]) -> Callable[[Array], Tensor]:
        """What takes rows of several matrices at once: of K of one `joint_place`, fp32 [B, K, D] in one piece of memory
        for row ids int64 [K, B], all of them within their matrices. The same rows as `take` has, to the bit."""
        raise NotImplementedError(f"{cls.__name__} has a joint place, and no way to take from it")

    def nbytes(self) -> int:
        """Bytes of everything that is held."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())
