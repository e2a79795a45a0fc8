"""How a network's steps are run, where the configuration leaves it open (`train.precision: auto`, `train.compile:
auto`): measured on a copy of the network before the first step, and said with its reason.

A run keeps to what it has chosen: the choice stands in its configuration from then on, and a resumed run takes it from
there.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from statistics import median
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from embank.ctr_models import CTRModel
from embank.ctr_models.network import Network
from embank.pipelines.config.changes import AUTO
from embank.pipelines.config.run import Config, parse_config
from embank.pipelines.config.sections import TrainConfig
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.score import autocast, cause_of_failure, compiled_score
from embank.tables import WorkError

LONG_SECONDS = 120.0
"""Time in the network from which on a choice is measured; shorter trainings take fp32 and no compiler, so that their
figures depend on nothing but the configuration."""
LEAST_GAIN = 1.1
"""How much faster a step must be for another way to be taken: what noise would not show."""
ROUNDS = 5

Precision = Literal["fp32", "bf16", "auto"]


def is_open(train: TrainConfig) -> bool:
    """Whether something is left to be chosen."""
    return AUTO in (train.precision, train.compile)


def plainly(train: TrainConfig) -> TrainConfig:
    """What a short training takes for what is left open."""
    return replace(
        train,
        precision="fp32" if train.precision == AUTO else train.precision,
        compile=False if train.compile == AUTO else train.compile,
    )


def chosen_before(config: Config, run: RunFolder) -> Config:
    """A configuration with what a run has chosen for what it leaves open."""
    own = parse_config(run.read_config(), origin=str(run.config)).train
    open_keys = [key for key in ("precision", "compile", "table_lr") if getattr(config.train, key) == AUTO]
    return replace(config, train=replace(config.train, **{key: getattr(own, key) for key in open_keys}))


def choose(model: CTRModel, train: TrainConfig, *, batch_rows: int, num_steps: int) -> tuple[TrainConfig, str | None]:
    """What is faster for a training of some length, by steps of a copy of the network on made-up rows.

    Nothing of the model changes, nor the state of torch's generators.

    Args:
        model: tables and network.
        train: what is left open in it is chosen.
        batch_rows: rows of a step on this process.
        num_steps: of the training.

    Returns:
        The settings, and a line that says why, where something was measured.
    """
    if not is_open(train):
        return train, None
    own = next((p.device for p in model.network.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[own] if own.type == "cuda" else []):
        probe = _Probe(model, rows=batch_rows)
        plain = probe.seconds("fp32" if train.precision == AUTO else train.precision)
        if plain * num_steps < LONG_SECONDS:
            return plainly(train), None
        precision, said = _precision(probe, train, plain)
        compiled, more = _compiler(probe, train, precision, num_steps=num_steps)
    chosen = replace(train, precision=precision, compile=compiled)
    return chosen, f"train.precision {precision}, train.compile {str(compiled).lower()}: {said}{more}"


def _precision(probe: "_Probe", train: TrainConfig, plain: float) -> tuple[Precision, str]:
    """The precision, and what was measured."""
    if train.precision != AUTO:
        return train.precision, f"a step of the network takes {_ms(plain)} in {train.precision}"
    if not _has_bf16(probe.device):
        return "fp32", f"a step of the network takes {_ms(plain)}, and this machine has no instructions for bf16"
    plain, half = probe.both("fp32", "bf16")
    gain = plain / half
    said = f"a step of the network takes {_ms(plain)} in fp32, {_ms(half)} in bf16"
    return "bf16" if gain >= LEAST_GAIN else "fp32", said


def _compiler(probe: "_Probe", train: TrainConfig, precision: str, *, num_steps: int) -> tuple[bool, str]:
    """Whether to compile, and what was measured."""
    if train.compile != AUTO:
        return bool(train.compile), ""
    begun = time.monotonic()
    try:
        probe.compile(precision)
    except Exception as error:  # a compiler that is missing, or what it can't do: torch has many types for it
        cause = error.__cause__ if isinstance(error, WorkError) and error.__cause__ else error
        return False, f"; it can't be compiled here ({type(cause).__name__}: {cause_of_failure(cause)})"
    cost = time.monotonic() - begun
    plain, compiled = probe.compiled_and_not(precision)
    said = f"; compiled, which took {cost:.0f} s, {_ms(compiled)} beside {_ms(plain)}"
    return plain / compiled >= LEAST_GAIN and (plain - compiled) * num_steps > cost, said


class _Probe:
    """A copy of a network with a batch of made-up rows, and the time of its steps."""

    def __init__(self, model: CTRModel, *, rows: int) -> None:
        network = model.network
        assert isinstance(network, Network)
        self.network = deepcopy(network).train()
        self.parameters = list(self.network.parameters())
        self.device = next((p.device.type for p in self.parameters), "cpu")
        self.compiled: Callable[..., Tensor] | None = None
        draw: dict[str, object] = {"device": self.device}
        self.inputs: Sequence[Tensor] = [
            torch.randn(rows, width, **draw)  # type: ignore[call-overload]
            for width in (network.inputs.num_dense, network.num_embedding_columns + network.num_first_order_columns)
        ]
        self.labels = torch.zeros(rows, device=self.device)

    def step(self, network: Callable[..., Tensor], precision: str) -> float:
        """Forward and backward; the seconds that they take."""
        dense, values = self.inputs[0], self.inputs[1].detach().requires_grad_(self.inputs[1].numel() > 0)
        self._wait()
        begun = time.perf_counter()
        with autocast(precision, device=self.device):
            logits = network(dense, values)
        F.binary_cross_entropy_with_logits(logits.float(), self.labels).backward()  # type: ignore[no-untyped-call]
        self._wait()
        seconds = time.perf_counter() - begun
        for parameter in self.parameters:
            parameter.grad = None
        return seconds

    def seconds(self, precision: str) -> float:
        """Of a plain step."""
        return median([self.step(self.network.score, precision) for _ in range(3)][1:])

    def both(self, first: str, second: str) -> tuple[float, float]:
        """Of steps in two precisions, taken in turn."""
        return self._in_turn(
            lambda: self.step(self.network.score, first), lambda: self.step(self.network.score, second)
        )

    def compile(self, precision: str) -> None:
        """Compiles a copy and takes its first step.

        Raises:
            Exception: whatever the compiler raises.
        """
        self.compiled = compiled_score(self.network)
        self.step(self.compiled, precision)

    def compiled_and_not(self, precision: str) -> tuple[float, float]:
        """Of plain and of compiled steps, taken in turn."""
        compiled = self.compiled
        assert compiled is not None
        return self._in_turn(lambda: self.step(self.network.score, precision), lambda: self.step(compiled, precision))

    def _in_turn(self, *steps: Callable[[], float]) -> tuple[float, float]:
        for step in steps:
            step()
        taken = [[step() for step in steps] for _ in range(ROUNDS)]
        first, second = (median(times) for times in zip(*taken, strict=True))
        return first, second

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _has_bf16(device: str) -> bool:
    """Whether matrix products in bf16 have instructions of their own."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpu = torch.cpu
    return any(
        bool(getattr(cpu, name, lambda: False)()) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
