"""Where a run took place: what environment.json holds."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("embank", "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "polars", "pyarrow", "numpy")


def provenance_of(seed: int) -> dict[str, Any]:
    """What a bundle says of the training that made it, besides configuration and data: the same for equal runs."""
    return {"seed": seed, "versions": _versions(), "git_commit": _git_commit()}


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def environment_of(fingerprint: str) -> dict[str, Any]:
    """Versions, machine and commit, and the fingerprint of the data."""
    return {
        "versions": _versions(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "num_cpus": os.cpu_count(),
        "git_commit": _git_commit(),
        "data_fingerprint": fingerprint,
    }


def _git_commit() -> str | None:
    """Commit of the checkout that embank runs from; None for an installed package."""
    here = Path(__file__)
    # A package that is installed below somebody else's checkout is none of it.
    is_ours = _git(here.parent, "ls-files", "--error-unmatch", here.name) is not None
    return _git(here.parent, "rev-parse", "HEAD") if is_ours else None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers in a folder; None where it refuses, or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
