"""Scores of rows by the model in this folder, with torch alone: `score(load("."), {"ids.item": torch.tensor([3])})`."""

import json
import platform
from pathlib import Path

import torch


def load(folder):
    """The model, its tables mapped from the file beside it; refused where it was not compiled for this machine."""
    facts, file = json.loads((Path(folder) / "manifest.json").read_text()), Path(folder) / "constants.bin"
    here = {"torch": torch.__version__, "processor": platform.machine()}
    here["instructions"] = torch.backends.cpu.get_cpu_capability()
    if here != facts["machine"]:
        raise RuntimeError(f"compiled for {facts['machine']}, and this is {here}: convert the bundle here")
    content = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
    constants = {}
    for one in facts["constants"]:
        part = content[one["start"] : one["start"] + one["nbytes"]]
        constants[one["name"]] = part.view(getattr(torch, one["dtype"])).view(one["shape"])
    model = torch._inductor.aoti_load_package(str(Path(folder) / "model.pt2"))
    model.load_constants(constants, check_full_update=True, user_managed=True)  # without, it would crash
    return model.loader, facts["inputs"], constants  # which must live as long as the model


def score(opened, inputs):
    """One score for each row of `inputs`: `dense` float32, `ids.FEATURE` and `lengths.FEATURE` int64."""
    return opened[0].boxed_run([torch.as_tensor(inputs[name]) for name in opened[1]])[0]
