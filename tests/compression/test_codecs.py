"""Codecs of any rows: what every one of them keeps, at every size."""

import re
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from embank.compression.parts import bits as bits_module
from embank.tables import ConfigError, Fidelity, encode, fidelity, named_codec, register_codec, registered_codecs
from embank.tables.serving.codecs import chunks, registry
from embank.tables.serving.codecs.composite import Composite
from embank.tables.serving.codecs.fbgemm import MANY, is_there
from embank.tables.serving.codecs.registry import codec_class, codecs_by_table, row_codec
from tests.compression.codecs import NAMES, OWN, loaded, random_rows

SIZES = [(0, 6), (1, 1), (7, 3), (130, 6), (70, 16), (33, 1), (9, 2048)]
CLOSE = {"fp32": 0.0, "fp16": 1e-3, "bf16": 5e-3, "fp8_e4m3": 0.05, "fp8_e5m2": 0.1, "int8": 0.01, "int6": 0.04}
CLOSE |= {"int4": 0.15, "int3": 0.3, "int2": 0.5, "dedup": 0.12, "binary3": 0.4, "bits_8_4_2": 0.5}
CLOSE |= {"int8_rowwise": 0.006, "int4_rowwise": 0.1, "int2_rowwise": 0.4}
"""Root mean square of the loss, as a share of that of the rows."""


def nbytes_told(codec: str, num_rows: int, dim: int) -> int | None:
    """What is known without rows; None where rows decide."""
    try:
        return named_codec(codec).nbytes_of(num_rows, dim)
    except ConfigError as error:
        assert "depends on the rows" in str(error)
        return None


@pytest.mark.parametrize("codec", NAMES)
def test_any_size_is_held_in_the_bytes_that_are_told_and_loads_to_the_bit(codec: str) -> None:
    for num_rows, dim in SIZES:
        if codec == "opq" and dim > 256:
            dim = 256  # a rotation of 2,048 columns takes half a minute to find
        rows = random_rows(num_rows, dim)
        before = rows.clone()
        coded = encode(rows, codec=codec)
        all_rows = torch.arange(num_rows)
        found = coded.take(all_rows)
        assert found.shape == rows.shape
        assert found.dtype == torch.float32
        assert bool(found.isfinite().all())
        assert coded.nbytes() == sum(
            len(bytes(b.contiguous().view(-1).view(torch.uint8).numpy())) for b in coded.buffers()
        )
        assert nbytes_told(codec, num_rows, dim) in (None, coded.nbytes()), (num_rows, dim)
        assert torch.equal(loaded(coded).take(all_rows), found)
        assert torch.equal(encode(rows, codec=codec).take(all_rows), found), "encoded twice"
        assert torch.equal(rows, before), "the rows were written to"
        if num_rows:
            some = torch.tensor([num_rows - 1, 0, num_rows - 1])
            torch.testing.assert_close(coded.take(some), found[some], rtol=1e-6, atol=1e-6)  # a product of 3 rows


@pytest.mark.parametrize("codec", CLOSE)
def test_what_comes_back_is_near(codec: str) -> None:
    rows = random_rows(3000, 16)
    loss = (encode(rows, codec=codec).take(torch.arange(3000)) - rows).square().mean().sqrt()
    assert float(loss / rows.square().mean().sqrt()) <= CLOSE[codec]


def test_every_codec_of_ours_was_looked_at() -> None:
    tried = {named_codec(name).cls for name in NAMES}
    assert tried == {named_codec(name).cls for name in OWN}
    assert {"int4", "pq", "opq", "binary", "pca", "lowrank", "dedup", "bits_8_4_2"} <= set(OWN)


@pytest.mark.parametrize("codec", [name for name in NAMES if name != "fp32"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_rows_that_are_not_finite_are_refused(codec: str, value: float) -> None:
    rows = random_rows(20, 6)
    rows[13, 2] = value
    with pytest.raises(ConfigError, match="rows are not finite, so codec"):
        encode(rows, codec=codec)


@pytest.mark.parametrize("codec", ["fp16", "int8", "int2", "binary", "pca2+fp16"])
def test_rows_beyond_what_a_codec_holds_are_refused_with_their_size(codec: str) -> None:
    with pytest.raises(ConfigError, match=r"rows reach .*e\+06"):
        encode(random_rows(20, 6) * 1e6, codec=codec)


@pytest.mark.parametrize("codec", ["bf16", "fp8_e4m3", "fp8_e5m2", "pq", "opq", "pca", "lowrank", "dedup", "sparse"])
@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_rows_of_any_size_keep_their_shape(codec: str, size: float) -> None:
    rows = random_rows(40, 6).double()
    found = encode((rows * size).float(), codec=codec).take(torch.arange(40)).double() / size
    small = encode(rows.float(), codec=codec).take(torch.arange(40)).double()
    torch.testing.assert_close(found, small, rtol=0.13, atol=0.05)  # an 8-bit float's scale is rounded


@pytest.mark.parametrize("codec", NAMES)
def test_rows_at_the_end_of_float32_are_held_or_refused(codec: str) -> None:
    """Never as infinities."""
    rows = random_rows(40, 6)
    rows *= torch.finfo(torch.float32).max / rows.abs().max() * 0.999999
    try:
        found = encode(rows, codec=codec).take(torch.arange(40))
    except ConfigError as error:
        assert re.match(r"rows (reach [\d.]+e\+3[78], |reach up to|.* and )", str(error)), error
        assert "'bf16'" not in str(error) or codec != "bf16"
    else:
        assert found.isfinite().all()
        assert codec in ("fp32", "fp8_e4m3", "fp8_e5m2") or found.abs().max() < 3.5e38


@pytest.mark.parametrize("codec", ["pca", "pca8", "lowrank", "lowrank8", "opq", "pca4+bf16"])
@pytest.mark.parametrize("seed", range(4))
def test_no_row_near_the_end_of_float32_becomes_infinite(codec: str, seed: int) -> None:
    """Sums of directions may leave it in any row, not only in that of the largest number."""
    rows = (random_rows(24, 8, seed=seed) * 1.3e38).clamp(-3.4e38, 3.4e38)
    try:
        found = encode(rows, codec=codec).take(torch.arange(24))
    except ConfigError as error:
        assert re.match(r"rows reach [\d.]+e\+3[78], ", str(error)), error
        assert "'bf16'" not in str(error)
    else:
        assert found.isfinite().all(), f"{int((~found.isfinite()).any(1).sum())} rows"


def test_every_row_near_the_end_of_float32_is_tried_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (torch.randn(24, 8, generator=torch.Generator().manual_seed(2)) * 1.3e38).clamp(-3.4e38, 3.4e38)
    monkeypatch.setattr(registry, "NUMBERS_PER_CHUNK", 5 * 8)  # five rows
    with pytest.raises(ConfigError, match="of which codec 'pca' makes numbers beyond float32; use 'fp32', or scale"):
        encode(rows, codec="pca")


def test_a_fit_that_fails_is_not_blamed_on_the_size_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge.")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    with pytest.raises(ConfigError) as refused:
        encode(torch.ones(40, 6), codec="pca")
    assert str(refused.value) == (
        "rows reach 1, and codec 'pca' can't be fitted to them: linalg.eigh: The algorithm failed to converge; use "
        "another codec or 'fp32', or scale them"
    )


@pytest.mark.parametrize("codec", ["int8", "int2", "binary", "fp16", "int8_rowwise"])
def test_a_cure_is_one_that_holds_the_rows(codec: str) -> None:
    """bf16 ends before float32 does."""
    for size, cure in ((1e6, "'fp32' or 'bf16'"), (3.4e38, "'fp32'")):
        rows = torch.tensor([[-1.0, 1.0] * 4]).repeat(9, 1) * size
        with pytest.raises(ConfigError, match=rf"rows reach {re.escape(f'{size:.4g}')}, .* use (codec )?{cure}$"):
            encode(rows, codec=codec)
        for named in re.findall(r"'(\w+)'", cure):
            assert encode(rows, codec=named).take(torch.arange(9)).isfinite().all()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (torch.ones(100, 4, dtype=torch.int64), r"\[100, 4\] in int64"),
        (torch.ones(100), r"\[100\] in float32"),
        (torch.ones(9, 0), r"\[9, 0\] in float32"),
    ],
)
def test_what_is_no_matrix_in_fp32_is_refused(rows: torch.Tensor, told: str) -> None:
    with pytest.raises(
        ConfigError,
        match=f"codec 'int8' holds a matrix of rows in float32, with a column at least, and it is given {told}",
    ):
        encode(rows, codec="int8")


@pytest.mark.parametrize("name", ["binary17", "binary999999999", "pca4+binary17"])
def test_more_levels_of_signs_than_sixteen_are_refused_by_name(name: str) -> None:
    """Before there are rows, so that no training is lost to it."""
    assert encode(random_rows(20, 6), codec="binary16").take(torch.arange(20)).shape == (20, 6)
    for ask in (named_codec, row_codec, lambda codec: codecs_by_table(codec, ["item"])):
        with pytest.raises(ConfigError, match=r"codec 'binary\d+' has number \d+; that of 'binary' is at most 16"):
            ask(name)


@pytest.mark.parametrize("codec", [None, 5, ["int8"]])
def test_what_is_no_name_of_a_codec_is_refused(codec: Any) -> None:
    with pytest.raises(ConfigError, match=r"the codec is .*; give the name of one, or a dict of names by table"):
        codecs_by_table(codec, ["item"])
    with pytest.raises(ConfigError, match="is no name of a codec; give a text"):
        codecs_by_table({"item": codec if codec != ["int8"] else ("int8",)}, ["item"])


@pytest.mark.parametrize("codec", NAMES)
def test_rows_of_zeros_and_of_one_number_come_back(codec: str) -> None:
    for value in (0.0, 0.5):
        rows = torch.full((70, 6), value)
        torch.testing.assert_close(encode(rows, codec=codec).take(torch.arange(70)), rows, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("codec", ["int3", "int8", "fp8_e4m3", "binary", "bits_8_4_2"])
def test_some_rows_at_a_time_are_all_rows_at_once(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(2000, 6)
    whole = encode(rows, codec=codec)
    parts = chunks.row_chunks
    from embank.compression.codecs import affine, binary
    from embank.tables.serving.codecs import float8

    for module in (affine, binary, float8):
        monkeypatch.setattr(
            module, "row_chunks", lambda rows, *, multiple=1, numbers=0: parts(rows, multiple=multiple, numbers=700)
        )
    again = encode(rows, codec=codec)
    for (name, one), (_, other) in zip(whole.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("dim", [1, 3, 4, 8, 12])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_rows_of_a_stream_are_its_values(bits: int, dim: int) -> None:
    values = torch.randint(0, 2**bits, (40, dim), generator=torch.Generator().manual_seed(0))
    stream = bits_module.pack_values(values, bits=bits)
    rows = torch.tensor([39, 0, 7, 7])
    assert torch.equal(bits_module.read_rows(stream, rows, dim=dim, bits=bits).long(), values[rows])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("int5", "there is no codec 'int5'; did you mean 'int"),
        ("int8+int4", "codec 'int8+int4': 'int8' holds no other codec; use 'int8'"),
        ("fp1616", "there is no codec 'fp1616'"),
        ("opq8+int4", "'opq' holds no other codec"),
        ("pca0+int8", "has number 0; it must be at least 1"),
        ("pca8+", "there is no codec ''"),
        ("pca8+stepped", "'stepped' is made while its method trains"),
        ("sparse4", "codec 'sparse4': 'sparse' takes no number"),
        ("+int8", "there is no codec ''"),
    ],
)
def test_names_that_say_nothing_are_refused(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        named_codec(name)
    assert told in str(refused.value)


@pytest.mark.parametrize("scale", [1e-3, 1e-4, 1e-5, 1e-6])
def test_steps_too_fine_for_fp16_are_not_rounded_to_nothing(scale: float) -> None:
    """More bits lose less, also where a step is among the numbers that fp16 holds coarsely, or below all of them."""
    rows = random_rows(200, 16) * scale
    lost = [float((encode(rows, codec=f"int{bits}").take(torch.arange(200)) - rows).norm()) for bits in (8, 4, 2)]
    assert lost[0] <= lost[1] * 1.01
    assert lost[1] < lost[2] < 0.5 * float(rows.norm())
    assert lost[0] < 0.03 * float(rows.norm())


@pytest.mark.parametrize("name", ["zzzz", "", "8/4/2", "product_code", "steppd", "pca8+sparse_code"])
def test_a_wrong_name_is_told_what_can_be_chosen(name: str) -> None:
    """Not what only methods make."""
    with pytest.raises(ConfigError, match="there is no codec") as refused:
        named_codec(name, also=["auto"])
    words = set(re.findall(r"[a-z0-9_]+", str(refused.value).partition("; ")[2]))
    assert words & {"int4", "sparse", "power_of_two"}, refused.value
    assert not words & {"product", "product_coded", "sparse_coded", "stepped"}
    assert "known codecs" not in str(refused.value) or "auto" in words


def test_a_name_that_ends_with_a_digit_is_a_name_first() -> None:
    named = named_codec("bits_8_4_2")
    assert named.arguments == {}
    assert named_codec("pca12+pca4+int2").arguments == {"number": 12, "inner": "pca4+int2"}


def test_fidelity_is_that_of_plain_arithmetic() -> None:
    rows = random_rows(200, 5)
    rows[3] = 0
    coded = encode(rows, codec="int3")
    other = coded.take(torch.arange(200))
    cosine = torch.tensor(
        [torch.dot(a, b) / a.norm() / b.norm() for i, (a, b) in enumerate(zip(rows, other, strict=True)) if i != 3]
    )
    same = 0
    for i in range(200):
        near = [
            {j for _, j in sorted((float((rows[i] - of[j]).norm()), j) for j in range(200) if j != i)[:10]}
            for of in (rows, other)
        ]
        same += len(near[0] & near[1])
    found = fidelity(rows, coded)
    assert (found.nbytes, found.share) == (coded.nbytes(), coded.nbytes() / 4000)
    assert found.rmse == pytest.approx(float((rows - other).square().mean().sqrt()), rel=1e-6)
    assert found.cosine == pytest.approx(float(cosine.mean()), rel=1e-6)
    assert found.recall == pytest.approx(same / 2000, abs=0.002)
    assert fidelity(rows, encode(rows)) == Fidelity(
        nbytes=4000, share=1.0, rmse=0.0, cosine=pytest.approx(1), recall=1.0
    )
    assert fidelity(rows[:0], encode(rows[:0], codec="int4")).recall == 1.0


def test_a_part_follows_the_buffers_of_its_codec() -> None:
    """They are replaced where a module moves to another device, and by exporters."""
    coded = encode(random_rows(30, 6), codec="pca3+int8")
    assert isinstance(coded, Composite)
    before = coded.take(torch.arange(30))
    coded.coordinates_offsets = coded.coordinates_offsets * 0
    assert not torch.equal(coded.take(torch.arange(30)), before)
    assert not list(coded.children())


def test_a_codec_without_bytes_for_sizes_says_so() -> None:
    with pytest.raises(ConfigError, match="depends on the rows; encode them and ask nbytes"):
        named_codec("dedup").nbytes_of(10, 4)


def test_names_are_registered_once() -> None:
    assert len(set(registered_codecs())) == len(registered_codecs())
    with pytest.raises(ConfigError, match="codec 'int4' is registered already"):
        register_codec("int4", Composite)


@pytest.mark.parametrize("dim", [4, 8, 12, 16, 24, 64, 100, 2048])
@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_many_rows_of_several_tables_by_fbgemm(codec: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit what `take` gives, also of equal, tiny and large numbers, in one block and in several."""
    import_module("fbgemm_gpu")
    assert is_there()
    draw = torch.Generator().manual_seed(dim)
    one, tiny, large = (torch.randn(30, dim, generator=draw) * scale for scale in (1.0, 1e-7, 1e4))
    rows = [torch.cat([one, torch.full((30, dim), 0.1), tiny, large])[4 * k :] for k in range(3)]
    own = [codec_class(codec).encode(rows_RD) for rows_RD in rows]
    for name in ("codes", "steps", "offsets"):  # in one piece of memory, as a bundle has them
        memory = torch.cat([getattr(coded, name) for coded in own])
        parts = memory.split([len(getattr(coded, name)) for coded in own])
        for coded, part in zip(own, parts, strict=True):
            setattr(coded, name, part)
    asked = np.random.default_rng(dim).integers(0, 112, size=(3, MANY + 1))
    wanted = torch.stack([coded.take(torch.from_numpy(ids)) for coded, ids in zip(own, asked, strict=True)], dim=1)
    assert torch.equal(codec_class(codec).joined(own)(asked), wanted)
    assert torch.equal(codec_class(codec).joined(own[1:2])(asked[1:2]), wanted[:, 1:2])
    monkeypatch.setattr("embank.compression.codecs.affine._FUSED_BLOCK", 3 * (MANY + 1) // 2)
    assert torch.equal(codec_class(codec).joined(own)(asked), wanted)
    monkeypatch.setattr("embank.compression.codecs.affine.is_there", lambda: False)  # a server without TorchRec
    assert torch.equal(codec_class(codec).joined(own)(asked), wanted)


ROWWISE = ["int8_rowwise", "int4_rowwise", "int2_rowwise"]


@pytest.mark.parametrize("dim", [1, 3, 4, 5, 6, 7, 8, 16, 100])
@pytest.mark.parametrize("codec", ROWWISE)
def test_rows_of_fbgemm_are_read_in_place(codec: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few, some and many rows of several tables in one piece of memory, to the bit what `take` gives; with FBGEMM's
    operator where it can, and without."""
    import_module("fbgemm_gpu")
    rows = [random_rows(90, dim, seed=k)[4 * k :] * 10.0 ** (4 - 4 * k) for k in range(3)]
    own = [codec_class(codec).encode(rows_RD) for rows_RD in rows]
    memory = torch.cat([coded.rows for coded in own])
    for coded, part in zip(own, memory.split([len(coded.rows) for coded in own]), strict=True):
        coded.rows = part
    assert len({coded.joint_place() for coded in own}) == 1
    for is_with in (True, False):
        monkeypatch.setattr("embank.compression.codecs.rowwise.is_there", lambda is_with=is_with: is_with)
        for num in (1, 40, MANY + 1):
            asked = np.random.default_rng(num).integers(0, 82, size=(3, num))
            wanted = torch.stack([c.take(torch.from_numpy(ids)) for c, ids in zip(own, asked, strict=True)], dim=1)
            assert torch.equal(codec_class(codec).joined(own)(asked), wanted)
            assert torch.equal(codec_class(codec).joined(own[1:2])(asked[1:2]), wanted[:, 1:2])


@pytest.mark.parametrize("codec", ROWWISE)
def test_rows_of_fbgemm_by_hand(codec: str) -> None:
    """From the bytes: a step and an offset in fp16, then codes, the first in the lowest bits; of tiny, negative and
    equal numbers, too."""
    rows = torch.cat([random_rows(20, 8), random_rows(20, 8) * 1e-6, torch.full((2, 8), -0.1), torch.zeros(1, 8)])
    coded = encode(rows, codec=codec)
    kind, fused = coded.fused() or ("", torch.empty(0))
    bits = int(codec[3])
    assert (kind, fused.shape) == (f"int{bits}", (43, 4 + bits))
    expected = np.empty((43, 8), dtype=np.float32)
    for i, line in enumerate(fused.numpy()):
        step, offset = (float(half) for half in np.frombuffer(line[:4].tobytes(), np.float16))
        stream = int.from_bytes(line[4:].tobytes(), "little")
        codes = np.array([stream >> bits * j & (1 << bits) - 1 for j in range(8)])
        expected[i] = np.float32(np.float32(step) * codes.astype(np.float32) + np.float32(offset))
    assert torch.equal(coded.take(torch.arange(43)), torch.from_numpy(expected))
    assert bool((coded.take(torch.tensor([42])) == 0).all())


def test_narrow_rows_of_fbgemm_are_fp16() -> None:
    """Where a step and an offset would make them larger; and the bytes are told so."""
    for codec, narrow in (("int8_rowwise", 4), ("int4_rowwise", 3), ("int2_rowwise", 2)):
        rows = random_rows(50, narrow)
        coded = encode(rows, codec=codec)
        assert (coded.nbytes(), coded.fused()) == (2 * 50 * narrow, None)
        assert torch.equal(coded.take(torch.arange(50)), rows.half().float())
        assert encode(random_rows(50, narrow + 1), codec=codec).fused() is not None
