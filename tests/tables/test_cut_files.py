"""Files of the disk tier that something has cut: whatever uses their rows says so, and no process ends without a
word."""

from pathlib import Path

import pytest

from tests.processes import run_code

READERS = {
    "save_checkpoint": "save_checkpoint('checkpoint', tables=tables, dense={}, meta={})",
    "save_bundle": "save_bundle('bundle', tables)",
    "import_rows": "tables.import_rows('a', torch.arange(500_000), torch.ones(500_000, 4))",
    "set_rows": "tables.set_rows('a', torch.ones(500_000, 4))",
    "state_dict": "tables.state_dict()['embedding_bags.a.weight'].sum()",
    "load_state_dict": "tables.load_state_dict(state)",
    "writing": "tables.writing().__enter__()",
    "optimizer_state": "tables.optimizer_state()['a']['sum'].sum()",
    "update": "tables.update_rows()",
}
CUT = """
import os, sys
from pathlib import Path
import torch
from torchrec import KeyedJaggedTensor
from embank.tables import RowTier, TableCollection, TableSpec, WorkError, save_bundle
from embank.tables.storage.checkpoint import save_checkpoint

method, backend, act = sys.argv[1:]
size = {"num_embeddings": 500_000, "embedding_dim": 4, "feature_names": ["a"]}
tier = RowTier(name="disk", directory=Path("rows"), prefetch=False)
tables = TableCollection([TableSpec(name="a", method=method, **size)], tier=tier, backend=backend)
state = {name: value.clone() for name, value in tables.state_dict().items()}
ids = KeyedJaggedTensor(keys=["a"], values=torch.tensor([499_999]), lengths=torch.tensor([1]))
if "update" in act:
    tables(ids).values().sum().backward()
for path in Path("rows").iterdir():
    os.truncate(path, 4096)
try:
    eval(act)
except WorkError as error:
    print(error)
"""
"""What uses rows of a file that was cut, in a process of its own: one that touches them ends with SIGBUS."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("backend", ["fbgemm", "torch"])
def test_what_uses_rows_of_a_cut_file_says_so(reader: str, backend: str, tmp_path: Path) -> None:
    method = "low_precision" if reader == "update" else "full"  # whose rows are rounded after the backward pass
    done = run_code(CUT, method, backend, READERS[reader], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "has 4,096 bytes of the" in done.stdout
    assert "something has cut it" in done.stdout
    assert not (tmp_path / "checkpoint").exists()
    assert not (tmp_path / "bundle").exists()
