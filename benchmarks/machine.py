"""What the figures were measured on: part of every result file."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "fbgemm-gpu-cpu", "fbgemm-gpu", "torchrec", "numpy", "polars")
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
"""Flags of /proc/cpuinfo that decide which kernels run, of x86-64 and aarch64."""


def describe(*, device: str | None = None) -> dict[str, Any]:
    """The fields of `records.Machine`; `device` is the name of a GPU that takes part."""
    found = {name: installed(name) for name in PACKAGES}
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "instruction_set": instruction_set(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: number for name, number in found.items() if number is not None},
        "device": device,
        "load_at_start": os.getloadavg()[0],
    }


def told_of_cpu(key: str) -> str | None:
    """What /proc/cpuinfo says of the first core."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), None)


def cpu_model() -> str:
    return told_of_cpu("model name") or platform.processor() or platform.machine()


def instruction_set() -> list[str]:
    """Those of `INSTRUCTIONS` that the cores have."""
    flags = (told_of_cpu("flags") or told_of_cpu("Features") or "").split()
    return [name for name in INSTRUCTIONS if name in flags]


def multiplies_bf16() -> bool:
    """Whether the cores have instructions for products in bf16; without them a product is slower than in fp32."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(instruction_set())


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """HEAD, marked when tracked files differ from it; None without a repository or without git."""
    if shutil.which("git") is None:
        return None

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    head = git("rev-parse", "HEAD")
    return (head + ("-dirty" if git("status", "--porcelain") else "")) if len(head) == 40 else None
