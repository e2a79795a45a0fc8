"""What torch and word2vec have saved, when it is damaged or more than tensors."""

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from embank.pipelines.importing.torch_states import open_state
from embank.pipelines.importing.vocabularies import TokenSources
from embank.pipelines.importing.word2vec import Word2VecVectors
from embank.tables import DataError


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_no_code_of_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"rows": torch.ones(2, 2), "other": Trap(tmp_path / "sprung")}, tmp_path / "saved.pt")
    with pytest.raises(DataError, match="other objects, which would be executed.*torch.save.model.state_dict"):
        open_state(tmp_path / "saved.pt")
    dcp.save({"rows": torch.ones(2, 2)}, checkpoint_id=str(tmp_path / "dcp"))
    metadata = pickle.loads((tmp_path / "dcp/.metadata").read_bytes())
    metadata.planner_data = Trap(tmp_path / "sprung")
    (tmp_path / "dcp/.metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(DataError, match=r"its .metadata is damaged or holds other objects.*pathlib.*touch|getattr"):
        open_state(tmp_path / "dcp")
    assert not (tmp_path / "sprung").exists()


def test_objects_of_a_checkpoint_are_left_where_they_are(tmp_path: Path) -> None:
    rows = torch.arange(12.0).view(6, 2)
    dcp.save({"a": {"rows": rows}, "b": Trap(tmp_path / "sprung"), "step": 3}, checkpoint_id=str(tmp_path / "dcp"))
    state = open_state(tmp_path / "dcp")
    assert list(state.shapes) == ["a.rows"]
    assert torch.equal(state.rows("a.rows", 2, 5), rows[2:5])
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("keep", [0.0, 0.4, 0.9])
def test_truncated(keep: float, tmp_path: Path) -> None:
    torch.save({"rows": torch.ones(2000, 8)}, tmp_path / "saved.pt")
    dcp.save({"rows": torch.ones(2000, 8)}, checkpoint_id=str(tmp_path / "dcp"))
    for path in (tmp_path / "saved.pt", tmp_path / "dcp/__0_0.distcp"):
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match="saved.pt' .*(truncated|tensors alone|holds no tensor)"):
        open_state(tmp_path / "saved.pt")
    with pytest.raises(DataError, match="'rows' can't be read from __0_0.distcp: it is truncated. Copy the folder"):
        open_state(tmp_path / "dcp").read("rows")


def test_neither_file_nor_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no .metadata"):
        open_state(tmp_path)
    with pytest.raises(DataError, match="there is no file"):
        open_state(tmp_path / "nothing.pt")
    torch.save({"step": 3}, tmp_path / "empty.pt")
    with pytest.raises(DataError, match="holds no tensor"):
        open_state(tmp_path / "empty.pt")


TEXT = [
    ("", "is empty; give a file of word2vec"),
    ("cat 1 2\ndog 3 4\n", "line 1: 'cat 1 2' is not.*Files of GloVe lack that line"),
    ("2 2\ncat 1 2\n", "line 3: the file ends, and the first line says 2 vectors of 2"),
    ("2 2\ncat 1 2\ndog 3\n", "line 3: 1 numbers follow the token"),
    ("2 2\ncat 1 2\ndog 3 4x\n", "line 3: '4x' is no number"),
    ("1 2\ncat 1 2\ndog 3 4\n", "line 3: the first line says 1 vectors, and there are more"),
    ("2 2\ncat 1 2\ncat 3 4\n", "vectors 0 and 1: both have the token 'cat'"),
    ("0 2\n", "there are no vectors"),
    ("2 2\ncat 1 2\n 3 4\n", "line 3: the token is empty"),
]


@pytest.mark.parametrize(("content", "message"), TEXT)
def test_text_of_word2vec_that_is_damaged(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        list((vectors := Word2VecVectors(tmp_path / "words.txt")).chunks()), vectors.keys()


def test_binary_of_word2vec_that_is_damaged(tmp_path: Path) -> None:
    rows = torch.ones(3, 4).numpy()
    content = b"3 4\n" + b"".join(
        token + b" " + row.tobytes() for token, row in zip([b"a", b"b", b"\xff"], rows, strict=True)
    )
    (tmp_path / "words.bin").write_bytes(content)
    with pytest.raises(DataError, match="vector 2: its token .* is not UTF-8"):
        list(Word2VecVectors(tmp_path / "words.bin").chunks())
    rest = content.replace(b"\xff", b"")  # an empty token in place of \xff
    (tmp_path / "words.bin").write_bytes(rest)
    with pytest.raises(DataError, match="vector 2: the token is empty"):
        list(Word2VecVectors(tmp_path / "words.bin").chunks())
    (tmp_path / "words.bin").write_bytes(content.replace(b"\xff", b"c") + b"\nd \0\0")
    with pytest.raises(DataError, match="more bytes follow the last vector, and the first line says 3 vectors of 4"):
        list(Word2VecVectors(tmp_path / "words.bin").chunks())
    (tmp_path / "words.bin").write_bytes(content[:-30])
    with pytest.raises(DataError, match="vector 1: the file ends or has no token there"):
        list(Word2VecVectors(tmp_path / "words.bin").chunks())


def test_a_byte_order_mark_is_no_part_of_what_follows(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("2 2\ncat 1 2\ndog 3 4\n", encoding="utf-8-sig")
    vectors = Word2VecVectors(tmp_path / "words.txt")
    assert vectors.keys().to_list() == ["cat", "dog"]  # type: ignore[union-attr]
    assert torch.cat(list(vectors.chunks())).tolist() == [[1, 2], [3, 4]]
    (tmp_path / "vocab.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    tokens = TokenSources([str(tmp_path / "vocab.txt")]).tokens("word")
    assert tokens is not None
    assert tokens.tokens.to_list() == ["cat", "dog"]
