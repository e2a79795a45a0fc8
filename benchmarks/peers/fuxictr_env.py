"""FuxiCTR in its own virtual environment, `.venv-fuxictr` in the repository root, so that its pins never meet embank's.

    python benchmarks/peers/fuxictr_env.py          # build it (once; a changed pin builds it anew), print its python

Everything is pinned. The packages of `fuxictr_requirements.txt` are installed without their dependencies, because the
file holds all of them; `pip check` then confirms that nothing is missing. Nothing that is installed is changed.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-fuxictr"
REQUIREMENTS = Path(__file__).with_name("fuxictr_requirements.txt")
TORCH = "torch==2.13.0"  # the version that embank runs on: both sides use the same kernels


def python() -> Path:
    return VENV / "bin" / "python"


def ensure() -> Path:
    """The environment's interpreter; builds the environment when it is missing or its pins changed."""
    wanted = hashlib.sha256(TORCH.encode() + REQUIREMENTS.read_bytes()).hexdigest()
    stamp = VENV / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        build()
        stamp.write_text(wanted)
    return python()


def build() -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip("install", TORCH)
    pip("install", "--no-deps", "-r", str(REQUIREMENTS))
    pip("check")


def pip(*args: str) -> None:
    """pip inside the environment; its chatter goes to stderr, since stdout carries the interpreter's path."""
    command = [python(), "-m", "pip", "--disable-pip-version-check", *args]
    if args[0] == "install":
        command.insert(-len(args) + 1, "--quiet")
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    print(ensure())
