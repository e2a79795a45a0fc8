"""Text for language models: files as documents, duplicates dropped, split by document into train, valid and test."""

import hashlib
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embank.tables.errors import DataError
from embank.tables.storage.refusals import cause_of

SPLITS = ("train", "valid", "test")
PART_BYTES = 65_536
"""A longer file is cut, at blank lines, into parts of about this size: a book is many documents."""
SMALLER_PARTS = (16_384, 4_096, 1_024)
"""Where a split would be empty, as with a single file of a megabyte, it is cut into these."""
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text that stands in one split as a whole.

    Args:
        name: the file, and which part of it.
        text: never empty.
    """

    name: str
    text: str

    @property
    def digest(self) -> bytes:
        """Of the text alone, so that copies have the same."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).digest()


def standard_library() -> list[Path]:
    """The source files of Python's standard library, without its tests: text that every installation has."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in root.rglob("*.py") if not _NOT_LIBRARY.intersection(path.relative_to(root).parts))


def files_of(paths: Sequence[str | Path], *, setting: str = "corpus.paths") -> list[Path]:
    """Files, and all files of folders, sorted; without hidden ones.

    Args:
        paths: files and folders.
        setting: where they were given, for the message.

    Raises:
        DataError: a path does not exist.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.is_file())
            found += [f for f in inside if not any(part.startswith(".") for part in f.relative_to(path).parts)]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"'{path}' is no file or folder; give text files, or folders of them ({setting})")
    return sorted(set(found))


def read_documents(
    paths: Sequence[str | Path] | None, *, part_bytes: int = PART_BYTES, setting: str = "corpus.paths"
) -> list[Document]:
    """The documents of some files in the order of their names, each text once.

    Args:
        paths: files and folders; None takes the standard library. Files that are not UTF-8 text are left out.
        part_bytes: what longer files are cut into, about.
        setting: where paths were given, for messages.

    Raises:
        DataError: a path does not exist or can't be read, or there is no text in any of them.
    """
    documents: dict[bytes, Document] = {}
    for path in standard_library() if paths is None else files_of(paths, setting=setting):
        for document in _documents_in(path, part_bytes):
            documents.setdefault(document.digest, document)
    if not documents:
        if paths is not None and not paths:
            raise DataError(f"{setting} is empty; give text files, or folders of them")
        where = "the standard library" if paths is None else ", ".join(f"'{path}'" for path in paths)
        raise DataError(f"there is no UTF-8 text in {where}; give text files, or folders of them ({setting})")
    return list(documents.values())


def _documents_in(path: Path, part_bytes: int) -> Iterator[Document]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    except OSError as error:
        raise DataError(f"'{path}' can't be read: {cause_of(error)}") from error
    if "\0" in text:
        return
    for number, part in enumerate(_parts(text, part_bytes)):
        if part.strip():
            yield Document(name=f"{path}#{number}", text=part)


def _parts(text: str, part_bytes: int) -> Iterator[str]:
    """A text in parts of at least so many characters, each of which ends with a blank line or the text."""
    start = 0
    while len(text) - start > part_bytes:
        end = text.find("\n\n", start + part_bytes)
        if end < 0:
            break
        yield text[start : end + 2]
        start = end + 2
    yield text[start:]


def read_splits(paths: Sequence[str | Path] | None, *, ratios: Sequence[float], seed: int) -> dict[str, list[Document]]:
    """`split_documents` of `read_documents`; files are cut smaller where a split would be empty.

    Raises:
        DataError: no text, or a split that is empty all the same.
    """
    documents = read_documents(paths)
    for part_bytes in SMALLER_PARTS:
        try:
            return split_documents(documents, ratios=ratios, seed=seed)
        except DataError:
            documents = read_documents(paths, part_bytes=part_bytes)
    return split_documents(documents, ratios=ratios, seed=seed)


def split_documents(documents: Sequence[Document], *, ratios: Sequence[float], seed: int) -> dict[str, list[Document]]:
    """Documents by split, in a seeded order: whether one is in a split depends on its text and the seed alone.

    Args:
        documents: as `read_documents` gives them.
        ratios: expected shares of train, valid and test.
        seed: of splits and order.

    Raises:
        DataError: a split would be empty.
    """
    bounds = (ratios[0], ratios[0] + ratios[1])
    found: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in documents:
        draw = _draw(document, seed)
        found[SPLITS[sum(draw >= bound for bound in bounds)]].append(document)
    for split, members in found.items():
        if not members:
            cures = "" if len(documents) < len(SPLITS) else ", other corpus.ratios or another corpus.seed"
            raise DataError(
                f"no document is in split '{split}', of {len(documents)} in all; give more text (a document is a file, "
                f"or a part of one between blank lines){cures}"
            )
    order = random.Random(seed)
    for members in found.values():
        order.shuffle(members)
    return found


def _draw(document: Document, seed: int) -> float:
    """A number from [0, 1) that depends on text and seed."""
    keyed = hashlib.sha256(document.digest + str(seed).encode()).digest()
    return int.from_bytes(keyed[:8], "big") / 2**64
