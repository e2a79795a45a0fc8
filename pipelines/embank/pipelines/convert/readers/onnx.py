"""Scores of rows by the model in this folder, with onnxruntime alone: `score(load("."), {"ids.item": [3, 5], ...})`."""

from pathlib import Path

import numpy as np
import onnxruntime


def load(folder):
    """The model; its tables are mapped from the file beside it."""
    return onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"), providers=["CPUExecutionProvider"])


def score(session, inputs):
    """One score for each row of `inputs`: `dense` float, `ids.FEATURE` and `lengths.FEATURE` whole numbers."""
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    given = {one.name: np.asarray(inputs[one.name], dtype=kinds[one.type]) for one in session.get_inputs()}
    return session.run(None, given)[0]
