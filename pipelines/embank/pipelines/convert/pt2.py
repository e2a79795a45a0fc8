"""Target `pt2`: the whole model compiled by AOTInductor, its tables beside it in a file that is mapped."""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind

from embank.pipelines.convert.cases import Original
from embank.pipelines.convert.targets import Options
from embank.pipelines.convert.whole import Whole
from embank.tables.errors import ConfigError, WorkError

MODEL, CONSTANTS = "model.pt2", "constants.bin"
_ALIGNED = 64
_CHUNK_NBYTES = 2**24


def write(folder: Path, original: Original, options: Options) -> Mapping[str, Any]:
    """See `Target.write`."""
    whole = Whole(original)
    program = whole.program()
    for one in program.graph_signature.input_specs:
        if one.kind is InputKind.CONSTANT_TENSOR:  # a `torch.tensor` of a codec's: the compiler would rename it
            one.kind, one.persistent = InputKind.BUFFER, False
    # Hashes multiply modulo 2**64. To a C++ compiler that is an overflow which can't be: without -fwrapv it has made
    # wrong rows of `hash` under `int4`. There is no setting for flags of one's own, so that it rides on another one.
    contract = torch._inductor.config.cpp.enable_floating_point_contract_flag
    try:
        with _quiet():
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(folder / MODEL),
                inductor_configs={
                    "aot_inductor.package_constants_in_so": False,
                    "cpp.enable_floating_point_contract_flag": f"{contract} -fwrapv",
                },
            )
            names = torch._inductor.aoti_load_package(str(folder / MODEL)).get_constant_fqns()
    except torch._inductor.exc.InvalidCxxCompiler as error:
        raise ConfigError(
            "target 'pt2' compiles the model, and there is no C++ compiler; install g++, or take target onnx"
        ) from error
    held = {**program.state_dict, **program.constants}
    missing = [name for name in names if not isinstance(held.get(name), Tensor)]
    if missing:
        raise WorkError(
            f"the compiled model asks for '{missing[0]}', which the bundle does not hold; this is a mistake of embank. "
            "Take target onnx"
        )
    return {
        "inputs": whole.input_names,
        "output": whole.output_name,
        **whole.columns(),
        "machine": machine(),
        "constants": _write_constants(folder / CONSTANTS, {name: held[name] for name in names}),
    }


def machine() -> dict[str, Any]:
    """What a compiled model runs on: this version of torch, this kind of processor, these instructions."""
    return {
        "torch": torch.__version__,
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _write_constants(file: Path, tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Each piece of memory once, however many names it has; in pieces, so that mapped tables are not read at once."""
    entries: list[dict[str, Any]] = []
    starts: dict[tuple[int, int], int] = {}
    with file.open("wb") as opened:
        opened.write(bytes(_ALIGNED))  # a file without a byte can't be mapped
        for name, tensor in sorted(tensors.items()):
            flat = tensor.detach().contiguous().reshape(-1)
            nbytes = flat.numel() * flat.element_size()
            place = (flat.data_ptr(), nbytes) if tensor.is_contiguous() and nbytes else (-1, len(entries))
            if place not in starts:
                opened.write(bytes(-opened.tell() % _ALIGNED))
                starts[place] = opened.tell()
                content = flat.view(torch.uint8)
                for start in range(0, nbytes, _CHUNK_NBYTES):
                    opened.write(content[start : start + _CHUNK_NBYTES].numpy().tobytes())
            entries.append(
                {
                    "name": name,
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "shape": list(tensor.shape),
                    "start": starts[place],
                    "nbytes": nbytes,
                }
            )
    return entries


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("torch._inductor")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
