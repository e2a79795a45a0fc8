"""The compiled lookup against the tables themselves: every form of rows, rules and widths."""

import gc
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor

from embank.compression.codecs.affine import AffineRows
from embank.compression.codecs.rowwise import RowwiseRows
from embank.tables import (
    CheckpointError,
    PackedCollection,
    PackedTable,
    Spine,
    TableSpec,
)
from embank.tables.ids.hashing import hash_rows, salt64
from embank.tables.method.together import Rule, Widened
from embank.tables.serving.codecs.fp32 import Fp32
from embank.tables.serving.codecs.layout import Numbers, RowLayout
from embank.tables.serving.codecs.registry import encode
from embank.tables.serving.lookups import Lookups
from embank.tables.serving.native import kernel
from embank.tables.serving.native.kernel import Kernel
from embank.tables.serving.stacks import Stack
from tests.products import LAST_BITS
from tests.tables.native import CODECS, NUM_ROWS, bundle_of, ids_of, kernel_of, looked_up, stack_of


@pytest.mark.parametrize("dim", [1, 3, 6, 8, 16, 20, 70])
@pytest.mark.parametrize("codec", CODECS)
def test_rows_of_every_form(codec: str, dim: int) -> None:
    """To the bit what `take` has."""
    generator = torch.Generator().manual_seed(dim)
    matrices = [torch.randn(NUM_ROWS, dim, generator=generator) * 10.0**k for k in (-2, 0)]
    own = kernel_of(matrices, codec, [Rule("own", NUM_ROWS)] * 2)
    ids_KB = ids_of(NUM_ROWS)
    expected = torch.stack([encode(m, codec=codec).take(ids_B) for m, ids_B in zip(matrices, ids_KB, strict=True)], 1)
    assert torch.equal(looked_up(own, ids_KB), expected)
    assert torch.equal(looked_up(own, ids_KB[:, 5:6]), expected[5:6])
    assert looked_up(own, ids_KB[:, :0]).shape == (0, 2, dim)


def test_every_number_of_sixteen_bits() -> None:
    """Denormal ones, infinities and those that are none."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype, numbers in ((torch.float16, Numbers.FP16), (torch.bfloat16, Numbers.BF16)):
        rows = bits.view(dtype).view(-1, 4)
        layout = RowLayout(numbers, rows, num_rows=len(rows), width=4, stride_bits=64)
        own = Kernel.of([layout], [Rule("own", len(rows))], None, num_ids=[len(rows)])
        assert own is not None
        found = looked_up(own, torch.arange(len(rows))[None])[:, 0]
        assert torch.equal(found.nan_to_num(nan=7.0), rows.float().nan_to_num(nan=7.0))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 1000, 1024, NUM_ROWS])
def test_rules(num_rows: int) -> None:
    matrix = torch.arange(NUM_ROWS, dtype=torch.float32)[:, None]
    ids_KB = torch.randint(2**63 - 1, (3, 500), generator=torch.Generator().manual_seed(1))
    ids_KB[:, :6] = torch.tensor([0, 1, num_rows - 1, num_rows, 2**62, 2**63 - 1])
    salts = [salt64("a"), salt64("b")]
    assert min(salts) < 0, "one with the sign bit set"
    rules = [Rule("cut", num_rows), *(Rule("hash", num_rows, salt) for salt in salts)]
    found = looked_up(kernel_of([matrix] * 3, "fp32", rules), ids_KB)[..., 0].long().T
    assert torch.equal(found[0], torch.where(ids_KB[0] < num_rows, ids_KB[0], 0))
    for place, salt in enumerate(salts, start=1):
        assert torch.equal(found[place], hash_rows(ids_KB[place], num_rows=num_rows, salt=salt))


def test_the_hash_of_as_many_rows_as_there_can_be() -> None:
    """The quotient of 63 bits by a large number, and by one next to a power of two."""
    ids_1B = torch.randint(2**63 - 1, (1, 4000), generator=torch.Generator().manual_seed(2))
    for num_rows in (2**31 - 1, 2**32, 2**40 + 1, 2**62 - 1):
        rows = torch.zeros(1)  # what is never read: the rows are fp32 of no width, so to speak, all at one place
        layout = RowLayout(Numbers.FP32, rows, num_rows=num_rows, width=1, stride_bits=0)
        own = Kernel.of([layout], [Rule("hash", num_rows, 5)], None, num_ids=[num_rows])
        assert own is not None
        assert bool((looked_up(own, ids_1B) == 0).all())


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("codec", "width"), [("fp32", 3), ("fp16", 8), ("int4", 5), ("int8_rowwise", 31), ("fp32", 1)])
def test_widened_rows(codec: str, width: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(width)
    matrices = [torch.randn(NUM_ROWS, width, generator=generator) for _ in range(2)]
    weights_JdD = torch.randn(2, width, 16, generator=generator)
    biases_JD = torch.randn(2, 16, generator=generator) if has_bias else None
    own = kernel_of(matrices, codec, [Rule("own", NUM_ROWS)] * 2, Widened(weights_JdD, biases_JD))
    ids_KB = ids_of(NUM_ROWS)
    found = looked_up(own, ids_KB)
    for k in range(2):
        rows = encode(matrices[k], codec=codec).take(ids_KB[k]).double()
        expected = rows @ weights_JdD[k].double() + (0 if biases_JD is None else biases_JD[k].double())
        torch.testing.assert_close(found[:, k].double(), expected, rtol=0, atol=3e-5)
    assert torch.equal(looked_up(own, ids_KB[:, 700:701])[0], found[700])  # whatever company a row is in


def test_wide_rows_are_widened_by_a_library() -> None:
    rules, widening = [Rule("own", 100)], Widened(torch.zeros(1, 64, 128))
    assert Kernel.of([encode(torch.randn(100, 64)).layout()], rules, widening, num_ids=[100]) is None


def test_many_ids_are_shared_out_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_NUMBERS_PER_THREAD", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    rows, ids_KB = torch.randn(NUM_ROWS, 16), ids_of(NUM_ROWS, batch_size=1000)
    own = kernel_of([rows, rows + 1], "fp32", [Rule("own", NUM_ROWS)] * 2)
    assert torch.equal(looked_up(own, ids_KB), torch.stack([rows[ids_KB[0]], rows[ids_KB[1]] + 1], dim=1))
    assert looked_up(own, ids_KB[:, :0]).shape == (0, 2, 16)


@pytest.mark.slow
def test_a_fork_makes_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none of its parent's, and would wait for them for ever."""
    code = """
import os, torch
from embank.tables.method.together import Rule
from embank.tables.serving.codecs.fp32 import Fp32
from embank.tables.serving.native import kernel
kernel._NUMBERS_PER_THREAD = 64
torch.set_num_threads(2)
rows, ids = torch.randn(10, 16), torch.arange(10)[None].repeat(1, 100).numpy()
own = kernel.Kernel.of([Fp32(rows).layout()], [Rule("own", 10)], None, num_ids=[10])
before = own(ids)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(own(ids), before) else 1)
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.parametrize("codec", ["fp32", "int4", "int8_rowwise"])
@pytest.mark.parametrize("method", ["full", "hash", "frequency_cut", "uniform_dim", "mde"])
def test_bundles_are_looked_up_by_it(method: str, codec: str, tmp_path: Path) -> None:
    packed = bundle_of(tmp_path / "b", method, codec)
    stack = stack_of(packed)
    ids_KB = ids_of(500, num_tables=3, batch_size=300).numpy()
    assert stack.kernel is not None
    found = stack.kernel(ids_KB)
    assert found is not None
    stack.kernel = None
    torch.testing.assert_close(found, stack(ids_KB), rtol=0, atol=LAST_BITS)


@pytest.mark.parametrize("method", ["full", "hash", "mde", "mgqe", "deeplight"])
def test_bags_are_looked_up_by_it(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = bundle_of(tmp_path / "b", method, "int4")
    ids = {f"f{k}": torch.randint(500, (60,), generator=torch.Generator().manual_seed(k)) for k in range(3)}
    lengths = {f"f{k}": torch.tensor([20, 0, 39, 1]) for k in range(3)}
    calls: list[int] = []
    asked = Kernel.__call__

    def counted(self: Kernel, ids_KB: Any) -> Tensor | None:
        calls.append(ids_KB.shape[1])
        return asked(self, ids_KB)

    monkeypatch.setattr(Kernel, "__call__", counted)
    (found,) = Lookups(packed, bags=list(ids))(ids, lengths, num_rows=4)
    assert calls == [60, 60, 60]
    monkeypatch.setattr(Kernel, "__call__", lambda self, ids_KB: None)
    torch.testing.assert_close(
        found, Lookups(packed, bags=list(ids))(ids, lengths, num_rows=4)[0], rtol=0, atol=LAST_BITS
    )


def test_other_methods_and_codecs_go_their_own_way(tmp_path: Path) -> None:
    steps = Lookups(bundle_of(tmp_path / "memcom", "memcom", "fp32")).parts[0]
    assert all(step.kernel is None for step in steps if isinstance(step, Stack))
    assert encode(torch.randn(100, 16), codec="binary").layout() is None
    assert encode(torch.randn(0, 16), codec="int4").layout() is None
    assert encode(torch.randn(0, 16)).layout() is None


@pytest.mark.parametrize("name", ["steps", "offsets", "codes"])
def test_what_a_damaged_bundle_lacks_is_not_read(name: str, tmp_path: Path) -> None:
    """Compiled code would read beyond the end."""
    packed = bundle_of(tmp_path / "b", "full", "int4")
    matrix = packed.packs["t2"].coded[0]
    assert isinstance(matrix, AffineRows)
    setattr(matrix, name, getattr(matrix, name)[:-40].clone())
    layout = matrix.layout()
    assert layout is not None
    assert layout.num_rows < 502
    lookups = Lookups(packed)
    assert all(step.kernel is None or len(step.names) < 3 for step in lookups.parts[0] if isinstance(step, Stack))
    with pytest.raises(CheckpointError, match="can't be looked up"):
        lookups({f"f{k}": torch.tensor([499 + k]) for k in range(3)}, {}, num_rows=1)


@pytest.mark.parametrize("copied", [deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
def test_copies_look_into_memory_of_their_own(copied: Callable[[Kernel], Kernel]) -> None:
    rows, weights = torch.randn(50, 4), torch.randn(1, 4, 8)
    own = kernel_of([rows], "fp32", [Rule("hash", 50, -7)], Widened(weights))
    ids_KB = torch.arange(40)[None]
    expected = looked_up(own, ids_KB).clone()
    other = copied(own)
    rows.zero_()
    weights.zero_()
    del own
    assert torch.equal(looked_up(other, ids_KB), expected)


def test_ids_that_do_not_follow_each_other() -> None:
    rows = torch.randn(50, 4)
    own = kernel_of([rows, rows], "fp32", [Rule("own", 50)] * 2)
    ids_KB = np.arange(40).reshape(20, 2).T
    assert ids_KB.strides[1] != ids_KB.itemsize
    found = own(ids_KB)
    assert found is not None
    assert torch.equal(found, torch.cat([rows[ids_KB[0]], rows[ids_KB[1]]], dim=1))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_the_types_and_devices_that_torch_takes_by_default_do_not_matter(kind: torch.dtype) -> None:
    rows, ids_KB = torch.randn(50, 16), ids_of(50)
    own = kernel_of([rows, rows], "fp32", [Rule("own", 50)] * 2)
    expected = torch.stack([rows[ids_KB[0]], rows[ids_KB[1]]], dim=1)
    torch.set_default_dtype(kind)
    try:
        with torch.device("meta"):
            found = looked_up(own, ids_KB)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("codec", ["fp32", "int4", "int8_rowwise"])
def test_rows_that_are_moved_to_shared_memory_are_found_there(codec: str, tmp_path: Path) -> None:
    packed = bundle_of(tmp_path / "b", "full", codec)
    lookups, ids = Lookups(packed), {f"f{k}": torch.arange(200) for k in range(3)}
    (expected,) = lookups(ids, {}, num_rows=200)
    packed.share_memory()
    assert torch.equal(lookups(ids, {}, num_rows=200)[0], expected)


def test_what_other_parts_work_on_outlives_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C in the first part, while others write into the same memory."""
    monkeypatch.setattr(kernel, "_NUMBERS_PER_THREAD", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    rows = torch.randn(50, 16)
    own = kernel_of([rows], "fp32", [Rule("own", 50)])
    look_up, done, begun = own._look_up, threading.Event(), threading.Event()
    assert look_up is not None

    def part(*arguments: int) -> None:
        if arguments[4] == 0:
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        gc.collect()
        look_up(*arguments)
        done.set()

    own.__dict__["_look_up"] = part
    with pytest.raises(KeyboardInterrupt):
        own(np.arange(48)[None])
    assert done.wait(10)


def test_without_more_threads_it_goes_on_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_NUMBERS_PER_THREAD", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    class Full:
        def submit(self, *_: object) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(kernel, "_threads", Full)
    rows = torch.randn(50, 16)
    assert torch.equal(looked_up(kernel_of([rows], "fp32", [Rule("own", 50)]), torch.arange(48)[None])[:, 0], rows[:48])


class Doubled(Fp32):
    """What another package may make of a codec."""

    def take(self, rows_N: Tensor) -> Tensor:
        return 2 * super().take(rows_N)

    @classmethod
    def joined(cls, matrices: Sequence[Self]) -> Callable[[Any], Tensor]:
        inner = super().joined(matrices)
        return lambda rows_KB: 2 * inner(rows_KB)


def test_a_codec_that_gives_other_rows_than_it_inherits_is_asked_itself() -> None:
    spec = TableSpec(name="t", num_embeddings=20, embedding_dim=4, feature_names=["f"])
    pack = PackedTable(Spine(), [Doubled(torch.ones(20, 4))], [0])
    (found,) = Lookups(PackedCollection([spec], [pack]))({"f": torch.arange(5)}, {}, num_rows=5)
    assert bool((found == 2).all())


def test_facts_of_a_damaged_bundle_are_not_believed(tmp_path: Path) -> None:
    packed = bundle_of(tmp_path / "cut", "frequency_cut", "fp32")
    for wrong in (-1, 0, 3.5):
        packed.packs["t1"].spine.num_rows = wrong
        assert stack_of(packed).kernel is None
    packed = bundle_of(tmp_path / "narrow", "uniform_dim", "int8_rowwise")
    matrix = packed.packs["t1"].coded[0]
    assert isinstance(matrix, RowwiseRows)
    assert matrix.layout() is not None
    for wrong in (1, 2, 4, 40):
        matrix.dim = wrong
        assert matrix.layout() is None
    weights = torch.zeros(1, 5, 8)
    rows = encode(torch.randn(10, 4)).layout()
    assert Kernel.of([rows], [Rule("own", 10)], Widened(weights), num_ids=[10]) is None
    assert Kernel.of([rows], [Rule("own", 10)], Widened(weights[:, :4].double()), num_ids=[10]) is None
