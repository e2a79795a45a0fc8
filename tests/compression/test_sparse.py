"""Bit streams, ranked bitmaps, packed sparse rows and exact thresholds, against numpy, scipy.sparse and plain
Python."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from embank.compression.codecs.sparse import SparseRows
from embank.compression.parts.bits import code_bits, pack_values, packed_nbytes, read_values
from embank.compression.parts.magnitude import Magnitudes, cut, cut_to_bytes, cut_to_count
from embank.compression.parts.masks import mask_of
from embank.compression.parts.sparse import (
    FORMS,
    bit_at,
    form_nbytes,
    max_nonzeros,
    popcount,
    rank_at,
    rank_bits,
    rank_by_word,
    rank_nbytes,
    sparse_nbytes,
    word_ranks,
)
from embank.tables import TableSpec


def magnitudes(table: torch.Tensor) -> Magnitudes:
    """A table's absolute values, 100 rows at a time."""
    return lambda: (table[i : i + 100].abs() for i in range(0, len(table), 100))


@given(bits=st.integers(0, 20), count=st.integers(0, 300), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_bit_stream_is_the_one_that_python_integers_give(bits: int, count: int, seed: int) -> None:
    values = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed))
    stream = pack_values(values, bits=bits)
    whole = sum(int(v) << (i * bits) for i, v in enumerate(values.tolist()))
    assert bytes(stream.tolist()) == whole.to_bytes(packed_nbytes(count, bits), "little")
    order = torch.randperm(count)
    assert torch.equal(read_values(stream, order, bits=bits), values[order])


def test_bit_stream_over_several_chunks() -> None:
    values = torch.randint(0, 8, (200_003,))
    assert torch.equal(read_values(pack_values(values, bits=3), torch.arange(200_003), bits=3), values)
    assert [code_bits(k) for k in (1, 2, 3, 4, 255, 256, 257)] == [0, 1, 2, 2, 8, 8, 9]


def test_popcount() -> None:
    words = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 0x5555555555555555, -3])
    assert popcount(words).tolist() == [bin(w & (2**64 - 1)).count("1") for w in words.tolist()]


@pytest.mark.parametrize("size", [1, 63, 64, 65, 511, 512, 513, 5000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rank_counts_the_ones_before(size: int, share: float) -> None:
    mask = torch.rand(size, generator=torch.Generator().manual_seed(size)) < share
    words, samples = rank_bits(mask)
    everywhere = torch.arange(size)
    assert torch.equal(bit_at(words, everywhere), mask)
    assert torch.equal(rank_at(words, samples, everywhere), mask.long().cumsum(0) - mask.long())
    assert words.numel() * 8 + samples.numel() * 4 == rank_nbytes(size, int(mask.sum()))


def sparse_rows(num: int, dim: int, density: float) -> torch.Tensor:
    """Random rows with empty ones among them, the first and last too when sparse."""
    generator = torch.Generator().manual_seed(num * dim)
    rows = torch.randn(num, dim, generator=generator)
    rows[torch.rand(num, dim, generator=generator) >= density] = 0
    if density < 0.5 and num > 3:
        rows[0] = rows[-1] = rows[num // 2] = 0
    return rows


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("num", "dim"), [(1, 1), (1, 3), (700, 1), (700, 3), (301, 16), (40, 2048)])
@pytest.mark.parametrize("density", [0.0, 0.004, 0.2, 1.0])
def test_lookup_is_that_of_scipy(form: str, num: int, dim: int, density: float) -> None:
    rows = sparse_rows(num, dim, density)
    packed = SparseRows(rows, form=form)
    csr = sparse.csr_matrix(sparse.coo_matrix(rows.numpy()))
    for ids in (torch.tensor([0]), torch.tensor([num - 1]), torch.randint(0, num, (200,)), torch.empty(0).long()):
        np.testing.assert_array_equal(packed.take(ids).numpy(), csr[ids.numpy()].toarray().reshape(-1, dim))
    assert packed.nbytes() == int(form_nbytes(form, num * dim, torch.tensor(csr.nnz)))


def test_the_smallest_form_is_taken() -> None:
    chosen = {density: SparseRows(sparse_rows(5000, 16, density)).form for density in (0.0003, 0.02, 0.3, 1.0)}
    assert chosen == {0.0003: "list16", 0.02: "list8", 0.3: "bitmap", 1.0: "dense"}
    rows = sparse_rows(5000, 16, 0.02)
    sizes = {form: SparseRows(rows, form=form).nbytes() for form in FORMS}
    assert SparseRows(rows).nbytes() == min(sizes.values())
    csr = sparse.csr_matrix(rows.numpy())
    assert min(sizes.values()) < csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes


@given(entries=st.integers(1, 5000), nbytes=st.integers(0, 25_000))
@settings(max_examples=100, deadline=None)
def test_max_nonzeros_is_the_last_that_fits(entries: int, nbytes: int) -> None:
    sizes = sparse_nbytes(entries, torch.arange(entries + 1))
    assert (sizes.diff() >= 0).all()
    fitting = (sizes <= nbytes).nonzero()
    assert max_nonzeros(entries, nbytes) == (int(fitting[-1]) if len(fitting) else -1)


def test_indices_grow_past_31_bits() -> None:
    sizes = sparse_nbytes(2**40, torch.tensor([2**31 - 1, 2**31]))
    assert sizes[1] - sizes[0] > 2**25


@pytest.mark.parametrize("count", [0, 1, 17, 3000, 8999, 9000, 20_000])
def test_threshold_is_the_kth_largest(count: int) -> None:
    tables = [torch.randn(500, 12), 1e-4 * torch.randn(1000, 3)]
    flat = np.abs(np.concatenate([t.numpy().ravel() for t in tables]))
    threshold = cut_to_count([magnitudes(t) for t in tables], count=count, total=lambda t: t)
    kept = np.flatnonzero(flat >= np.float32(threshold))
    expected = np.argpartition(-flat, count)[:count] if count < flat.size else np.arange(flat.size)
    assert set(kept) == set(expected)


def test_threshold_drops_equal_entries_together_and_never_keeps_zeros() -> None:
    table = torch.tensor([[3.0, -1.0, 1.0, 0.0]])
    for count, kept in ((4, 3), (3, 3), (2, 1), (1, 1), (0, 0)):
        threshold = cut_to_count([magnitudes(table)], count=count, total=lambda t: t)
        assert int((table.abs() >= threshold).sum()) == kept


def test_threshold_of_shards_is_that_of_the_whole() -> None:
    """Two processes: each brings its rows, and the sum adds the other's histograms."""
    table = torch.randn(700, 5)
    parts = table.split(400)
    whole = cut_to_count([magnitudes(table)], count=999, total=lambda t: t)
    others: list[torch.Tensor] = []
    cut([magnitudes(parts[1])], fits=lambda kept: kept.sum(0) <= 999, total=lambda t: others.append(t) or t)
    merged = others[0]  # the coarse histogram of the second part; the fine one depends on the bin, so make it here

    def total(counts: torch.Tensor) -> torch.Tensor:
        nonlocal merged
        if merged is not None:
            first, merged = merged, None
            return counts + first
        bits = parts[1].abs().reshape(-1).view(torch.int32)
        bin_ = int(torch.tensor(whole).view(torch.int32)) - 1 >> 16
        return counts + torch.bincount(bits[bits >> 16 == bin_] & 0xFFFF, minlength=1 << 16)

    assert cut([magnitudes(parts[0])], fits=lambda kept: kept.sum(0) <= 999, total=total) == whole


def test_tables_share_their_bytes() -> None:
    specs = [TableSpec(name=n, num_embeddings=400, embedding_dim=8, feature_names=[n]) for n in "ab"]
    tables = [torch.randn(400, 8), 3 * torch.randn(400, 8)]
    threshold = cut_to_bytes(specs, [magnitudes(t) for t in tables], nbytes=9000, total=lambda t: t)

    def nbytes(at: float) -> int:
        return sum(SparseRows(torch.where(t.abs() >= at, t, 0)).nbytes() for t in tables)

    below = max(float(t.abs()[t.abs() < threshold].max()) for t in tables)
    assert nbytes(threshold) <= 9000 < nbytes(below)


@pytest.mark.parametrize("num_bits", [1, 64, 65, 3000])
def test_ranks_by_word_are_those_by_samples(num_bits: int) -> None:
    mask = torch.rand(num_bits, generator=torch.Generator().manual_seed(num_bits)) < 0.3
    words, samples = rank_bits(mask)
    positions = torch.arange(num_bits)
    expected = mask.long().cumsum(0) - mask.long()
    assert torch.equal(rank_by_word(words, word_ranks(words), positions), expected)
    assert torch.equal(rank_at(words, samples, positions), expected)


@pytest.mark.parametrize("dim", [1, 7, 16, 32, 33, 100])
def test_masks_of_rows_are_the_bits_that_were_packed(dim: int) -> None:
    mask_RD = torch.rand(50, dim, generator=torch.Generator().manual_seed(dim)) < 0.5
    ids = torch.tensor([49, 0, 7, 7, 48])
    assert torch.equal(mask_of(pack_values(mask_RD, bits=1), ids, dim=dim), mask_RD[ids])
    assert mask_of(pack_values(mask_RD, bits=1), ids[:0], dim=dim).shape == (0, dim)
