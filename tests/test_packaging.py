"""The wheel: installs in a fresh environment, imports from anywhere, and litters nothing."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PACKAGES = ["embank.tables", "embank.compression", "embank.search", "embank.ctr_models", "embank.pipelines"]
TOP_LEVEL = ["tables", "compression", "search", "ctr_models", "pipelines"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fresh environment with the wheel and nothing else, and the folder where the dependencies are."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("embank-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return python, sysconfig.get_path("purelib")


def run(installed: tuple[Path, str], code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs code with the dependencies on the path, but none of this checkout's links to its sources."""
    python, dependencies = installed
    return subprocess.run(
        [str(python), "-W", "ignore", "-c", code],
        cwd=cwd,
        env={"PYTHONPATH": dependencies, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_package_imports_from_the_wheel(installed: tuple[Path, str], tmp_path: Path) -> None:
    code = f"import importlib\nfor n in {PACKAGES}: print(importlib.import_module(n).__file__)"
    done = run(installed, code, tmp_path)
    assert done.returncode == 0, done.stderr
    home = str(installed[0].parent.parent)
    assert all(line.startswith(home) for line in done.stdout.split()), done.stdout


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_source_roots_are_not_importable_by_themselves(installed: tuple[Path, str], tmp_path: Path, name: str) -> None:
    # Python 3.14 has a standard module called compression; what must not exist is ours.
    code = f"import importlib.util as u; s = u.find_spec({name!r}); print(s.origin if s else None)"
    done = run(installed, code, tmp_path)
    assert str(installed[0].parent.parent) not in done.stdout, done.stdout
    assert done.stdout.strip() == "None" or "lib/python" in done.stdout


def test_methods_and_command_are_announced(installed: tuple[Path, str], tmp_path: Path) -> None:
    done = run(
        installed,
        "from embank.tables import method_class as m; print(m('full').__module__, m('hash').__module__)",
        tmp_path,
    )
    assert done.stdout.split() == ["embank.compression.methods.full", "embank.compression.methods.hash"], done.stderr
    assert (installed[0].parent / "embank").is_file()
