"""The comparison with TorchRec's examples changes the lines that it says, and no other version's."""

from pathlib import Path

import pytest
from tests.scripts import script


def checkout(folder: Path, line: str) -> Path:
    (folder / "torchrec_dlrm").mkdir()
    (folder / "torchrec_dlrm/dlrm_main.py").write_text(f"import torch\n{line}\n")
    return folder


def test_lines_are_changed_in_a_copy(tmp_path: Path) -> None:
    examples = script("torchrec_examples")
    program = examples.PROGRAMS["dlrm"]
    source = checkout(tmp_path, "from torchrec import EmbeddingBagCollection")
    for swapped, line in ((False, "from torchrec import"), (True, "from embank.tables.torchrec import")):
        copy = examples.changed_copy(program, source, tmp_path / f"copy{swapped}", swapped=swapped)
        assert (copy / "dlrm_main.py").read_text() == f"import torch\n{line} EmbeddingBagCollection\n"
    assert "embank" not in (source / "torchrec_dlrm/dlrm_main.py").read_text()


def test_another_version_is_refused(tmp_path: Path) -> None:
    examples = script("torchrec_examples")
    source = checkout(tmp_path, "from torchrec.modules import EmbeddingBagCollection")
    with pytest.raises(SystemExit, match="0 lines 'from torchrec import EmbeddingBagCollection', not one"):
        examples.changed_copy(examples.PROGRAMS["dlrm"], source, tmp_path / "copy", swapped=True)


def test_no_program_changes_more_than_five_lines() -> None:
    programs = script("torchrec_examples").PROGRAMS
    assert {name: program.num_changed for name, program in programs.items()} == {
        "dlrm": 1,
        "dlrm, Adagrad": 1,
        "dlrm, DCN": 1,
        "golden_training": 1,
        "two_tower": 1,
        "bert4rec, DDP": 1,
        "bert4rec, DMP": 4,
    }
