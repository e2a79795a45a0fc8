"""Bundles for tests: a small one, what it gives, and what becomes of one on its way."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch

from embank.tables import TableCollection, TableSpec
from embank.tables.serving.bundle import MANIFEST
from embank.tables.storage.checksums import CHECKSUMS, file_digest


def plain(num: int = 50, dim: int = 6, *, seed: int = 0) -> TableCollection:
    return TableCollection(
        [TableSpec(name="C3", num_embeddings=num, embedding_dim=dim, feature_names=["a"])], seed=seed
    )


def outputs(tables: TableCollection, kjt: Any) -> torch.Tensor:
    with torch.no_grad():
        return tables.eval()(kjt).values()


def rewrite(bundle: Path, **changes: Any) -> None:
    """Another manifest with the right checksum: what a writer of another version leaves."""
    manifest = {**json.loads((bundle / MANIFEST).read_text()), **changes}
    (bundle / MANIFEST).write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))
    checksums = json.loads((bundle / CHECKSUMS).read_text())
    (bundle / CHECKSUMS).write_text(json.dumps({**checksums, MANIFEST: file_digest(bundle / MANIFEST)}))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def run_code(code: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Code in a new interpreter; see `tests.processes` for one that has everything loaded."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
