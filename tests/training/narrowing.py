"""A small method of two stages, for tests: a search for the better half of a table's columns, and a training of that
half."""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from embank.tables import (
    Advance,
    Carry,
    Combined,
    Held,
    LocalRows,
    Method,
    Schedule,
    Score,
    Served,
    Spine,
    Stage,
    TableSpec,
    Traits,
    option_class,
    own_table,
    register_method,
)


@option_class
class NarrowingConfig:
    """No options."""


class _Halves(Schedule):
    """Narrows tables to the better half of their columns between two stages."""

    stages = (Stage(name="search", epochs=0.5, alternates=True, is_search=True), Stage(name="train"))
    dies_after_scores: ClassVar[int | None] = None

    def search_parameters(self, method: "Narrowing") -> list[nn.Parameter]:
        return [method.gates] if method.spec.stage == 0 else []

    def after_step(
        self, methods: "Sequence[Narrowing]", rows: LocalRows, *, step: int, num_steps: int, seed: int
    ) -> None:
        for method in methods:
            rows[method.spec.name][0] *= 1 - step / num_steps / 10

    def settle(self, methods: "Sequence[Narrowing]", rows: LocalRows) -> None:
        for method in methods:
            rows[method.spec.name][-1] = 0

    def advance(
        self, methods: "Sequence[Narrowing]", rows: LocalRows, *, score: Score | None, seed: int
    ) -> list[Advance]:
        advances = []
        for method in methods:
            half = int(method.gates.argmax())
            if score is not None and method.spec.embedding_dim > 1:
                scores = []
                for masked in (1, 0):
                    method.masked = masked
                    scores.append(score())
                    self._die()
                half, method.masked = int(scores[1] > scores[0]), None
            half = half if method.spec.embedding_dim > 1 else 0
            carry = Carry(table=method.spec.name, first_column=half * method.width)
            dense = {"scale": 2 * method.gates.detach().softmax(0)[half]}
            advances.append(Advance(found={"half": torch.tensor(half)}, carries={method.spec.name: carry}, dense=dense))
        return advances

    @classmethod
    def _die(cls) -> None:
        if _Halves.dies_after_scores is None:
            return
        _Halves.dies_after_scores -= 1
        if _Halves.dies_after_scores == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Half(Spine):
    """The half that is kept."""

    held = Held(facts=("half", "dim"))

    def __init__(self, *, half: int, dim: int) -> None:
        super().__init__()
        self.half, self.dim = half, dim

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor:
        return spread(rows[0], self.half, self.dim)


class Narrowing(Method):
    """Stage "search": whole rows, each half behind a gate that validation batches move. Stage "train": the half that
    validation likes better, carried over."""

    Config = NarrowingConfig
    traits = Traits(adds_loss=True, schedule=_Halves())

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.width = max(1, spec.embedding_dim // 2)
        self.masked: int | None = None
        width = self.width
        if spec.stage == 0:
            self.gates = nn.Parameter(torch.zeros(2))
            width = spec.embedding_dim
        else:
            self.scale = nn.Parameter(torch.ones(()))
        self.physical = (own_table(spec, width=width),)

    def half_of(self, column: int) -> int:
        return min(1, column // self.width)

    def combine(self, rows: tuple[Tensor, ...], side: Tensor | None) -> Tensor | Combined:
        if self.spec.stage:
            return spread(rows[0] * self.scale, int(self.spec.found["half"]), self.spec.embedding_dim)
        gates = 2 * self.gates.softmax(0)
        loss = 1e-3 * gates.square().sum()
        if self.training:
            gates = gates + 0.01 * torch.randn(2)
        if self.masked is not None:
            gates = gates * (torch.arange(2) != self.masked)
        gated = rows[0] * gates[torch.tensor([self.half_of(c) for c in range(self.spec.embedding_dim)])]
        return Combined(gated, loss) if self.training else gated

    def served(self, rows: Mapping[str, Tensor]) -> Served:
        half = int(self.spec.found["half"]) if self.spec.stage else 0
        scale = self.scale.detach() if self.spec.stage else torch.ones(())
        return Served.of_rows(rows[self.spec.name] * scale, spine=Half(half=half, dim=self.spec.embedding_dim))


class _HalvesAnew(_Halves):
    stages = (_Halves.stages[0], Stage(name="train", fresh_network=True))


class NarrowingAnew(Narrowing):
    """The same with a fresh network for the second stage."""

    traits = Traits(adds_loss=True, schedule=_HalvesAnew())


class _OneSearch(_Halves):
    stages = (Stage(name="search", alternates=True, is_search=True),)


class SearchOnly(Narrowing):
    """A single stage that searches."""

    traits = Traits(adds_loss=True, schedule=_OneSearch())


def spread(half_NW: Tensor, half: int, dim: int) -> Tensor:
    """Rows [N, dim] with the other columns zero."""
    width = half_NW.shape[1]
    left = half_NW.new_zeros(half_NW.shape[0], half * width)
    right = half_NW.new_zeros(half_NW.shape[0], dim - left.shape[1] - width)
    return torch.cat([left, half_NW, right], dim=1)


register_method("test_narrowing", Narrowing)
register_method("test_narrowing_anew", NarrowingAnew)
register_method("test_search_only", SearchOnly)
