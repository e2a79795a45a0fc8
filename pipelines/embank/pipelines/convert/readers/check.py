"""Asks what `read.py` reads, in a process that knows nothing of embank: run by `embank convert`, as a script.

    python check.py FOLDER CASES.npz ANSWERS.npz

Prints versions, memory and times as JSON.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np


def resident() -> dict:
    """Bytes of this process in memory: its own, and pages of files, which processes share."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return {"own": int(lines["RssAnon"].split()[0]) * 1024, "mapped": int(lines["RssFile"].split()[0]) * 1024}
    except (OSError, KeyError):
        return {}


def microseconds(ask, inputs: dict, seconds: float = 0.3) -> float:
    """The median time of a call."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < 20 or time.perf_counter() < end:
        start = time.perf_counter()
        ask(inputs)
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e6)


def main(folder: str, cases: str, out: str) -> None:
    """Answers all cases."""
    spec = importlib.util.spec_from_file_location("read", Path(folder) / "read.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    before = resident()
    opened = reader.load(folder)
    answers, times = {}, {}
    with np.load(cases) as given:
        asked = json.loads(str(given["cases"]))
        for number, case in enumerate(asked):
            inputs = {name: given[f"{number}|{name}"] for name in case["inputs"]}
            if "table" in case:
                answers[str(number)] = np.asarray(reader.rows(opened, case["table"], inputs["ids"]), dtype=np.float32)
                continue
            answers[str(number)] = np.asarray(reader.score(opened, inputs))
            if case["timed"]:
                times[case["name"]] = microseconds(lambda inputs: reader.score(opened, inputs), inputs)
    after = resident()
    np.savez(out, **answers)
    libraries = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
    said = {
        "libraries": sorted(name for name in libraries if name[0] != "_"),
        "versions": {
            name: str(getattr(sys.modules[name], "__version__", "unknown"))
            for name in ("torch", "torchrec", "fbgemm_gpu", "onnxruntime", "pyarrow", "safetensors", "numpy")
            if name in sys.modules
        },
        "resident_bytes": {name: max(0, after[name] - before[name]) for name in after if name in before},
        "microseconds": times,
        "python": sys.version.split()[0],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
