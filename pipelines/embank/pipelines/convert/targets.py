"""What a bundle can be converted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from embank.pipelines.convert.cases import Original
from embank.tables.errors import ConfigError
from embank.tables.libraries import missing_library
from embank.tables.wording import nearest_or_all

READER, PARITY, MANIFEST = "read.py", "parity.json", "manifest.json"
OWN_FILES = (READER, PARITY, MANIFEST)
"""What a conversion holds beside what its target writes."""
Gives = Literal["rows", "scores", "values"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may ask of a target.

    Args:
        dtype: of the rows; a target's own default where none was named.
        tokens: write tokens beside ids, where the bundle has them.
        written: is told of each number of rows that are written.
    """

    dtype: str
    tokens: bool = True
    written: Callable[[int], None] = lambda rows: None


class Writer(Protocol):
    """Writes a target into a folder that is there; returns what the manifest says of it."""

    def __call__(self, folder: Path, original: Original, options: Options) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """A format that others read.

    Args:
        name: on the command line.
        holds: what it is, in a few words.
        home: the module of its writer, imported when it is asked for; its function is `write`.
        gives: what it answers with: rows of tables, values of all tables for a batch, or scores (of a bundle without a
            network: values).
        dtypes: of rows, the default first; none where rows stay as the bundle holds them.
        takes_tokens: whether tokens can be written beside ids.
        needs: libraries beside embank's own.
        reader: the name of its script in `readers/`.
        tolerance: the largest difference that is no mistake, by dtype ("" where there are none): of rows in units of
            the largest number of their table, of values of the largest of all.
    """

    name: str
    holds: str
    home: str
    gives: Gives
    dtypes: Sequence[str] = ()
    takes_tokens: bool = False
    needs: Sequence[str] = ()
    reader: str
    tolerance: Mapping[str, float] = field(default_factory=dict)

    def write(self, folder: Path, original: Original, options: Options) -> Mapping[str, Any]:
        """Writes it.

        Raises:
            ConfigError: a table can't be written as this, or a library is missing.
        """
        for library in self.needs:
            try:
                import_module(library)
            except ModuleNotFoundError as error:
                raise ConfigError(f"target '{self.name}': {missing_library(error) or error}") from error
        write: Writer = import_module(self.home).write
        return write(folder, original, options)


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="parquet",
            holds="rows of tables: id, token, vector",
            home="embank.pipelines.convert.rows",
            gives="rows",
            takes_tokens=True,
            reader="parquet.py",
            tolerance={"": 1e-5},
        ),
        Target(
            name="safetensors",
            holds="rows of tables, a tensor each",
            home="embank.pipelines.convert.rows_safetensors",
            gives="rows",
            dtypes=("fp32", "fp16"),
            reader="safetensors.py",
            tolerance={"fp32": 1e-5, "fp16": 1e-3},
        ),
        Target(
            name="onnx",
            holds="the whole model, for ONNX Runtime",
            home="embank.pipelines.convert.onnx",
            gives="scores",
            needs=("onnx", "onnxscript", "onnxruntime"),
            reader="onnx.py",
            tolerance={"": 1e-5},
        ),
        Target(
            name="pt2",
            holds="the whole model, compiled for this machine by AOTInductor",
            home="embank.pipelines.convert.pt2",
            gives="scores",
            reader="pt2.py",
            tolerance={"": 1e-5},
        ),
        Target(
            name="torchrec",
            holds="tables of plain rows, for TorchRec",
            home="embank.pipelines.convert.torchrec",
            gives="values",
            dtypes=("fp32", "fp16", "int8", "int4"),
            needs=("torchrec",),
            reader="torchrec.py",
            tolerance={"fp32": 1e-5, "fp16": 1e-2},
        ),
        Target(
            name="nve",
            holds="rows of tables, for NVIDIA's nv-embedding-cache",
            home="embank.pipelines.convert.rows_nve",
            gives="rows",
            dtypes=("fp32", "fp16"),
            reader="nve.py",
            tolerance={"fp32": 1e-5, "fp16": 1e-3},
        ),
    )
}


def target_of(name: str) -> Target:
    """A target by its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TARGETS:
        raise ConfigError(f"there is no target '{name}'; {nearest_or_all(name, TARGETS, label='there are')}")
    return TARGETS[name]
