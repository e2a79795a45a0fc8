"""Target `onnx`: the whole model as a graph of ONNX, its tables coded as in the bundle, in a file beside it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embank.pipelines.convert.cases import Original
from embank.pipelines.convert.targets import Options
from embank.pipelines.convert.whole import Whole

MODEL = "model.onnx"
OPSET = 20


def write(folder: Path, original: Original, options: Options) -> Mapping[str, Any]:
    """See `Target.write`."""
    whole = Whole(original)
    with _quiet():
        program = whole.program().run_decompositions({**torch.export.default_decompositions(), **_SPELLED})
        model = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=whole.input_names,
            output_names=[whole.output_name],
            verbose=False,
        )
        assert model is not None
        _forget_sources(model.model)
        model.save(str(folder / MODEL), external_data=True)
    return {"inputs": whole.input_names, "output": whole.output_name, **whole.columns(), "opset": OPSET}


def _forget_sources(model: Any) -> None:
    """Takes out where in which file each node was called: a third of a small file, and nobody's business."""
    model.metadata_props.clear()
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of libraries that nobody needs here."""
    levels = {log: log.level for log in (logging.getLogger("torch.onnx"), logging.getLogger("onnx_ir"))}
    for log in levels:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)


def _bag_numbers(repeats: Tensor, output_size: int | None = None) -> Tensor:
    """Number i as often as `repeats` says: behind each bag's end, the ends before it are counted."""
    ends_B = repeats.cumsum(0)
    size = int(ends_B[-1].item()) if output_size is None else output_size
    marks = repeats.new_zeros(size + 1).index_add(0, ends_B, torch.ones_like(repeats))
    return marks.cumsum(0)[:-1]


def _as_float(bits: Tensor, dtype: torch.dtype) -> Any:
    """The bits of an int32 as the fp32 number that they spell: sign, a power of two, and a fraction; exact of
    zero and all normal numbers. Those of two bytes each as an fp16 number, exact of all finite ones."""
    if (bits.dtype, dtype) == (torch.uint8, torch.float16):
        return _as_half(bits)
    if (bits.dtype, dtype) != (torch.int32, torch.float32):
        return NotImplemented
    exponent = torch.bitwise_and(torch.bitwise_right_shift(bits, 23), 0xFF)
    fraction = torch.bitwise_and(bits, 0x7FFFFF).float() * 2.0**-23 + 1.0
    steps = (exponent - 127).abs()
    power = torch.ones_like(fraction)
    for k in range(7):  # no table: a constant that is made here can't be written
        is_set = torch.bitwise_and(torch.bitwise_right_shift(steps, k), 1) > 0
        power = torch.where(is_set, power * 2.0 ** (1 << k), power)
    size = torch.where(exponent < 127, 1.0 / power, power) * fraction
    size = torch.where(exponent == 0, 0.0, size)
    return torch.where(bits < 0, -size, size)


def _as_half(octets: Tensor) -> Tensor:
    """fp16 numbers of pairs of bytes, the lower one first."""
    pairs = octets.int().view(*octets.shape[:-1], octets.shape[-1] // 2, 2)
    bits = pairs[..., 0] + 256 * pairs[..., 1]
    exponent = torch.bitwise_and(torch.bitwise_right_shift(bits, 10), 31)
    size = torch.bitwise_and(bits, 1023).float() * 2.0**-24  # in the unit of those that are not normal
    size = torch.where(exponent > 0, size + 2.0**-14, size)
    for k in range(5):
        is_set = torch.bitwise_and(torch.bitwise_right_shift((exponent - 1).clamp(min=0), k), 1) > 0
        size = torch.where(is_set, size * 2.0 ** (1 << k), size)
    return torch.where(bits >= 1 << 15, -size, size).half()


def _right_shift(values: Tensor, shift: Tensor) -> Any:
    """The exporter shifts bytes as signed ones, and then can't say what they are."""
    if values.dtype != torch.uint8:
        return NotImplemented
    return torch.bitwise_right_shift(values.int(), shift.int()).to(torch.uint8)


_SPELLED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.repeat_interleave.Tensor: _bag_numbers,
    torch.ops.aten.view.dtype: _as_float,
    torch.ops.aten.bitwise_right_shift.Tensor: _right_shift,
    torch.ops.aten.__rshift__.Tensor: torch.bitwise_right_shift,
    torch.ops.aten.__lshift__.Tensor: torch.bitwise_left_shift,
}
"""What the exporter has no words for, in those that it has."""
