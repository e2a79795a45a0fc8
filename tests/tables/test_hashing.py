"""Hashing is a contract: these values must never change, or saved tables lose their meaning."""

import subprocess
import sys

import pytest
import torch

from embank.tables.ids.hashing import hash_rows, mix64, salt64


def splitmix64(x: int) -> int:
    """The published finaliser on Python's big integers: the independent oracle."""
    mask = 2**64 - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def test_published_values_of_splitmix64() -> None:
    # The first two outputs of splitmix64 seeded with 0 are these constants of the reference implementation.
    golden = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    state = torch.tensor([0, signed(0x9E3779B97F4A7C15)])
    assert mix64(state).tolist() == [signed(v) for v in golden]


@pytest.mark.parametrize("salt", [0, 1, -1, salt64("table")])
def test_equals_big_integers(salt: int) -> None:
    ids = [0, 1, 2**31, 2**40 + 7, 2**62, 2**63 - 1, -1, -(2**63)]
    expected = [signed(splitmix64((x ^ salt) & (2**64 - 1))) for x in ids]
    assert mix64(torch.tensor(ids), salt=salt).tolist() == expected


def test_rows_are_uniform_and_in_range() -> None:
    rows = hash_rows(torch.arange(200_000), num_rows=1000, salt=salt64("hash", "C3"))
    counts = torch.bincount(rows, minlength=1000).double()
    assert counts.numel() == 1000
    chi_square = ((counts - 200).square() / 200).sum().item()
    assert chi_square < 999 + 5 * (2 * 999) ** 0.5, f"chi-square {chi_square:.0f} with 999 degrees of freedom"


def test_tables_collide_differently() -> None:
    ids = torch.arange(20_000)
    a, b = (hash_rows(ids, num_rows=100, salt=salt64("hash", name)) for name in ("a", "b"))
    assert abs((a == b).double().mean().item() - 0.01) < 0.003


def test_salts_tell_boundaries_apart_and_are_stable() -> None:
    assert salt64("ab", "c") != salt64("a", "bc")
    assert salt64("hash", "user_id") == 9164445823552992778


@pytest.mark.slow
def test_another_process_gives_the_same_rows() -> None:
    code = (
        "import torch; from embank.tables.ids.hashing import *; "
        "print(hash_rows(torch.arange(5), num_rows=1000, salt=salt64('hash', 'user_id')).tolist())"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(hash_rows(torch.arange(5), num_rows=1000, salt=salt64("hash", "user_id")).tolist())
