"""Hashing that never changes: the same 64 bits for the same id and name, in any process, on any machine, in any
version.

`mix64` is the mixer of `embank.tables.ids.mixing` on tensors. A salt is made from a *name*, never from a position, so
adding, removing or reordering tables leaves the others' rows where they are.

torch has no unsigned 64-bit arithmetic worth the name on all devices; int64 wraps on overflow, which is the same thing
modulo 2**64, and the logical right shift is an arithmetic one with the copied sign bits masked off.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from embank.tables.ids.mixing import FIRST, GAMMA, SECOND, bits_of
from embank.tables.ids.token_space import INTEGER_SALT

HASH_VERSION = 1
"""Stored with everything that was addressed by these functions; a different version must be refused on load."""

_GAMMA, _FIRST, _SECOND = (bits - 2**64 for bits in (GAMMA, FIRST, SECOND))  # as int64: all have the sign bit set
_POSITIVE = 0x7FFF_FFFF_FFFF_FFFF  # clears the sign: the 63 bits of a number that is no id below 0


def salt64(*names: str | int) -> int:
    """A salt from names: the first 8 bytes of BLAKE2b over them, length-prefixed, as int64.

    Args:
        names: what the salt stands for, e.g. a table's name and a lookup's number.

    Returns:
        An integer in [-2**63, 2**63).

    Example:
        >>> salt64("item")
        -8531390824922509182
    """
    # With lengths, or ("ab", "c") would equal ("a", "bc").
    encoded = [str(name).encode() for name in names]
    return bits_of(b"".join(len(name).to_bytes(8, "little") + name for name in encoded), signed=True)


def _xor_shift(z: Tensor, bits: int) -> Tensor:
    # int64 shifts copies of the sign in; the mask drops them. In place from there on: the shifted one is nobody else's.
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1).bitwise_xor_(z)


def mix64(ids: Tensor, *, salt: int | Tensor = 0) -> Tensor:
    """Mixes ids with a salt into 64 well-spread bits.

    Args:
        ids: integers, any shape, any value; narrower ones are widened first.
        salt: int64, see `salt64`; a tensor where it is part of a graph that is exported: of no dimensions, or one that
            broadcasts with the ids.

    Returns:
        int64 of the same shape; for one salt a bijection of the ids.

    Example:
        >>> mix64(torch.tensor([0, 1, 2]))
        tensor([-2152535657050944081, -7995527694508729151, -7541218347953203506])
    """
    z = (ids.to(torch.int64) ^ salt).add_(_GAMMA)
    z = _xor_shift(z, 30).mul_(_FIRST)
    z = _xor_shift(z, 27).mul_(_SECOND)
    return _xor_shift(z, 31)


def hash_rows(ids: Tensor, *, num_rows: int | Tensor, salt: int | Tensor) -> Tensor:
    """Rows in [0, num_rows) for ids: 63 mixed bits modulo the number of rows.

    The bias of the modulo is below num_rows / 2**63: nothing that can be measured.

    Args:
        ids: int64, any shape.
        num_rows: at least 1; an int64 tensor that broadcasts with the ids where there are several.
        salt: int64, as for `mix64`.

    Returns:
        int64 of the same shape.

    Example:
        >>> hash_rows(torch.tensor([0, 1, 2, 3]), num_rows=10, salt=salt64("item"))
        tensor([2, 2, 7, 8])
    """
    return (mix64(ids, salt=salt) & _POSITIVE) % num_rows  # `%` of a negative int64 would count from the other end


def integer_ids(values: Tensor) -> Tensor:
    """Ids in 0 .. 2**63 - 1 of integers that are tokens, as `embank.tables.ids.token_hash.token_id` has them.

    Args:
        values: integers, any shape, any value.

    Returns:
        int64 of the same shape.

    Example:
        >>> integer_ids(torch.tensor([5, -1]))
        tensor([3078423676072780866, 7808511447956689915])
        >>> [token_id(5), token_id(-1)]
        [3078423676072780866, 7808511447956689915]
    """
    return (mix64(values, salt=INTEGER_SALT) >> 1) & _POSITIVE  # the upper 63 bits, as `token_id` takes them


def seed_of(seed: int, *names: str | int) -> int:
    """A non-negative seed for a torch generator, from the run's seed and the names of what it is for."""
    return salt64(seed, *names) & _POSITIVE


def generator_of(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator that depends on the run's seed and the names alone, not on what was drawn before."""
    return torch.Generator().manual_seed(seed_of(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """torch's global CPU generator as `generator_of` gives it, for code that takes none (`nn.init`); afterwards it is
    as before.

    `torch.manual_seed` would reseed the generators of all devices, and `torch.random.fork_rng` restores those that it
    is told of.

    Example:
        >>> with seeded(0, "item"):
        ...     drawn = torch.rand(2)
        >>> with seeded(0, "item"):
        ...     print(torch.equal(torch.rand(2), drawn))
        True
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed_of(seed, *names))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
