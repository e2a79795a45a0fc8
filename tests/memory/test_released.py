"""What others have released, loaded: against modules built as the demo's are."""

import math

import pytest
import torch
from torch import Tensor, nn

from embank.tables import CheckpointError, ConfigError, RowTier
from embank.tables.memory import Engram, MemoryTables, dequantized, fill_layer, load_demo_layer
from tests.memory.small import MEMORY_DIM, engram, stem, tokens, weights_of

DIM, BRANCHES = 12, 2


class Demo(nn.Module):
    """The layer's parts under the names of the released demo, and its forward pass in torch's own modules."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        table = nn.Module()
        table.embedding = nn.Embedding(num_rows, MEMORY_DIM // 4)
        self.multi_head_embedding = table
        self.key_projs = nn.ModuleList(nn.Linear(MEMORY_DIM, DIM) for _ in range(BRANCHES))
        self.value_proj = nn.Linear(MEMORY_DIM, DIM)
        self.norm1, self.norm2 = (nn.ModuleList(nn.RMSNorm(DIM, eps=1e-6) for _ in range(BRANCHES)) for _ in range(2))
        conv = nn.Module()
        conv.norms = nn.ModuleList(nn.RMSNorm(DIM, eps=1e-6) for _ in range(BRANCHES))
        width = DIM * BRANCHES
        conv.conv = nn.Conv1d(width, width, kernel_size=4, groups=width, bias=False, padding=9, dilation=3)
        self.short_conv = conv
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, hidden: Tensor, rows: Tensor) -> Tensor:
        gates = []
        for m in range(BRANCHES):
            scores = (self.norm1[m](self.key_projs[m](rows)) * self.norm2[m](hidden[:, :, m])).sum(-1) / math.sqrt(DIM)
            gates.append(torch.sigmoid(scores.abs().clamp_min(1e-6).sqrt() * scores.sign()))
        value = torch.stack(gates, dim=2)[..., None] * self.value_proj(rows)[:, :, None]
        normed = torch.cat([self.short_conv.norms[m](value[:, :, m]) for m in range(BRANCHES)], dim=-1)
        mixed = self.short_conv.conv(normed.transpose(1, 2))[..., : hidden.shape[1]]
        return value + nn.functional.silu(mixed).transpose(1, 2).view_as(hidden)


def test_a_layer_of_the_demo_gives_what_the_demo_gives() -> None:
    torch.manual_seed(0)
    tables, ids = MemoryTables([engram()]), tokens(length=15)
    hash = tables.layouts["engram"].hash
    demo = Demo(sum(hash.primes[3]))
    layer = Engram(DIM, MEMORY_DIM, branches=BRANCHES, bias=True, eps=1e-6)
    load_demo_layer(layer, demo.state_dict())
    fill_layer(tables, 3, demo.multi_head_embedding.embedding.weight.detach())
    shifted = hash(tables.compression(ids))[3] + torch.tensor(hash.offsets(3))
    rows = demo.multi_head_embedding.embedding(shifted).flatten(-2)
    assert torch.equal(tables(ids)["engram"][3], rows)
    hidden = torch.randn(3, 15, BRANCHES, DIM)
    torch.testing.assert_close(layer(hidden, tables(ids)["engram"][3]), demo(hidden, rows), rtol=1e-5, atol=1e-5)


def test_padding_behind_the_last_head_is_left_out() -> None:
    tables = MemoryTables([engram()])
    total, before = sum(tables.layouts["engram"].hash.primes[1]), weights_of(tables)
    padded = torch.randn(total + 7, 8)
    fill_layer(tables, 1, padded, num_rows=total + 7)
    after = weights_of(tables)
    names = tables.layouts["engram"].table_names(1)
    assert torch.equal(torch.cat([after[name] for name in names]), padded[:total])
    assert all(torch.equal(rows, before[name]) for name, rows in after.items() if name not in names)


def test_tables_of_another_size_are_refused() -> None:
    tables = MemoryTables([engram()])
    total = sum(tables.layouts["engram"].hash.primes[1])
    for rows in (torch.zeros(total + 1, 8), torch.zeros(total - 1, 8), torch.zeros(total, 4)):
        with pytest.raises(CheckpointError, match="It is of another hash, or padded: give num_rows"):
            fill_layer(tables, 1, rows)
    with pytest.raises(CheckpointError, match="It is of another hash"):
        fill_layer(tables, 1, torch.zeros(total - 1, 8), num_rows=total - 1)
    with pytest.raises(CheckpointError, match=r"this memory has no Engram layer 2; it has \[1, 3\], counted from 0"):
        fill_layer(tables, 2, torch.zeros(total, 8))
    with pytest.raises(CheckpointError, match="no Engram layer 1; it has"):
        fill_layer(MemoryTables([stem()]), 1, torch.zeros(total, 8))


def test_rows_beyond_the_type_of_the_tier_are_refused() -> None:
    """Before the first head is written: the last one has them."""
    tables = MemoryTables([engram()], tier=RowTier(dtype="fp16"), backend="torch")
    before, rows = weights_of(tables), torch.zeros(sum(tables.layouts["engram"].hash.primes[1]), 8)
    rows[-1, -1] = 1e6
    with pytest.raises(ConfigError, match=r"rows of table 'engram.layer1.order3.head1' reach 1e\+06, and fp16 holds"):
        fill_layer(tables, 1, rows)
    assert all(torch.equal(held, before[name]) for name, held in weights_of(tables).items())


def test_rows_of_eight_bits_with_shared_exponents() -> None:
    exact = torch.randn(5, 80) * 2.0 ** torch.tensor([-6.0, 0, 3, 9, 1])[:, None]
    exponents = torch.randint(120, 131, (5, 3), dtype=torch.uint8)
    scales = torch.exp2(exponents.double() - 127).repeat_interleave(32, dim=1)[:, :80]
    coded = (exact.double() / scales).to(torch.float8_e4m3fn)
    assert torch.equal(dequantized(coded, exponents), (coded.double() * scales).float())
    with pytest.raises(CheckpointError, match="rows are torch.float32 and their exponents torch.uint8"):
        dequantized(exact, exponents)
    with pytest.raises(CheckpointError, match=r"exponents of shape \(5, 2\); there must be 3 for each row"):
        dequantized(coded, exponents[:, :2])


def test_a_demo_layer_of_another_shape_is_refused() -> None:
    demo = Demo(10).state_dict()
    with pytest.raises(CheckpointError, match="the demo's layer has 'project.bias' of shape .* here it is none"):
        load_demo_layer(Engram(DIM, MEMORY_DIM, branches=BRANCHES), demo)
    with pytest.raises(CheckpointError, match="the demo's layer lacks 'key_projs.2.weight'"):
        load_demo_layer(Engram(DIM, MEMORY_DIM, branches=3, bias=True), demo)
