"""What the tables in this folder give, with torchrec alone: `look_up(load("."), kjt)` is a KeyedTensor."""

import json
from pathlib import Path

import torch
from torchrec import KeyedJaggedTensor, KeyedTensor


def load(folder):
    """The tables, and what they read and give."""
    return torch.jit.load(str(Path(folder) / "tables.pt")), json.loads((Path(folder) / "manifest.json").read_text())


def look_up(opened, kjt):
    """Pooled rows of a KeyedJaggedTensor whose keys are the manifest's `features`, in their order."""
    tables, facts = opened
    assert kjt.keys() == facts["features"]
    return KeyedTensor(facts["keys"], facts["dims"], tables(kjt.values(), kjt.lengths()))


def score(opened, inputs):
    """Their values for `ids.FEATURE`, and `lengths.FEATURE` where a row has not one id."""
    features = opened[1]["features"]
    ids = [torch.as_tensor(inputs[f"ids.{name}"]) for name in features]
    ones = [torch.ones_like(ids_N) for ids_N in ids]
    lengths = [torch.as_tensor(inputs.get(f"lengths.{name}", one)) for name, one in zip(features, ones, strict=True)]
    return look_up(opened, KeyedJaggedTensor(features, torch.cat(ids), lengths=torch.cat(lengths))).values()
