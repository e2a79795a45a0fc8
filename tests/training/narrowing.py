"""A small method of two stages, for tests: a search for the better half of a table's columns, and a training of that
half."""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from embank.tables import (
    Advance,
    Carry,
    LocalRows,
    Method,
    PackedTable,
    PhysicalTable,
    Score,
    Stage,
    TableSpec,
    default_init,
    option_class,
    register_method,
)


@option_class
class NarrowingConfig:
    """No options."""


class Narrowing(Method):
    """Stage "search": whole rows, each half behind a gate that validation batches move. Stage "train": the half that
    validation likes better, carried over."""

    Config = NarrowingConfig
    stages = (Stage(name="search", epochs=0.5, alternates=True, is_search=True), Stage(name="train"))
    dies_after_scores: ClassVar[int | None] = None

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec)
        self.width = max(1, spec.embedding_dim // 2)
        self.masked: int | None = None
        self.losses: list[Tensor] = []
        width = self.width
        if spec.stage == 0:
            self.gates = nn.Parameter(torch.zeros(2))
            width = spec.embedding_dim
        else:
            self.scale = nn.Parameter(torch.ones(()))
        self.physical = (
            PhysicalTable(
                name=spec.name, num_embeddings=spec.num_embeddings, embedding_dim=width, init=default_init(spec)
            ),
        )

    def address(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        return (ids_N,)

    def half_of(self, column: int) -> int:
        return min(1, column // self.width)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        if self.spec.stage:
            return spread(rows[0] * self.scale, int(self.spec.found["half"]), self.spec.embedding_dim)
        gates = 2 * self.gates.softmax(0)
        self.losses = [1e-3 * gates.square().sum()]
        if self.training:
            gates = gates + 0.01 * torch.randn(2)
        if self.masked is not None:
            gates = gates * (torch.arange(2) != self.masked)
        return rows[0] * gates[torch.tensor([self.half_of(c) for c in range(self.spec.embedding_dim)])]

    def extra_loss(self) -> Tensor | None:
        return self.losses.pop() if self.losses else None

    def search_parameters(self) -> list[nn.Parameter]:
        return [self.gates] if self.spec.stage == 0 else []

    @classmethod
    def after_step(cls, methods: Sequence[Self], rows: LocalRows, *, step: int, num_steps: int) -> None:
        for method in methods:
            rows[method.spec.name][0] *= 1 - step / num_steps / 10

    @classmethod
    def settle(cls, methods: Sequence[Self], rows: LocalRows) -> None:
        for method in methods:
            rows[method.spec.name][-1] = 0

    @classmethod
    def advance(cls, methods: Sequence[Self], rows: LocalRows, *, score: Score | None) -> list[Advance]:
        advances = []
        for method in methods:
            half = int(method.gates.argmax())
            if score is not None and method.spec.embedding_dim > 1:
                scores = []
                for masked in (1, 0):
                    method.masked = masked
                    scores.append(score())
                    cls._die()
                half, method.masked = int(scores[1] > scores[0]), None
            half = half if method.spec.embedding_dim > 1 else 0
            carry = Carry(table=method.spec.name, first_column=half * method.width)
            dense = {"scale": 2 * method.gates.detach().softmax(0)[half]}
            advances.append(Advance(found={"half": torch.tensor(half)}, carries={method.spec.name: carry}, dense=dense))
        return advances

    @classmethod
    def _die(cls) -> None:
        if cls.dies_after_scores is None:
            return
        cls.dies_after_scores -= 1
        if cls.dies_after_scores == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def pack(self, rows: Mapping[str, Tensor]) -> PackedTable:
        half = int(self.spec.found["half"]) if self.spec.stage else 0
        scale = self.scale if self.spec.stage else torch.ones(())
        return PackedNarrowing(rows[self.spec.name] * scale, half=half, dim=self.spec.embedding_dim)


class NarrowingAnew(Narrowing):
    """The same with a fresh network for the second stage."""

    stages = (Narrowing.stages[0], Stage(name="train", fresh_network=True))


class SearchOnly(Narrowing):
    """A single stage that searches."""

    stages = (Stage(name="search", alternates=True, is_search=True),)


class PackedNarrowing(PackedTable):
    """The half that is kept."""

    facts = ("half", "dim")
    rows: Tensor

    def __init__(self, rows_RW: Tensor, *, half: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", rows_RW.detach())
        self.half, self.dim = half, dim

    def lookup(self, ids_N: Tensor) -> Tensor:
        return spread(self.rows[ids_N], self.half, self.dim)


def spread(half_NW: Tensor, half: int, dim: int) -> Tensor:
    """Rows [N, dim] with the other columns zero."""
    width = half_NW.shape[1]
    left = half_NW.new_zeros(half_NW.shape[0], half * width)
    right = half_NW.new_zeros(half_NW.shape[0], dim - left.shape[1] - width)
    return torch.cat([left, half_NW, right], dim=1)


register_method("test_narrowing", Narrowing)
register_method("test_narrowing_anew", NarrowingAnew)
register_method("test_search_only", SearchOnly)
