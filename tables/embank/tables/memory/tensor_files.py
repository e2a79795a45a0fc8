"""Files of tensors with facts: safetensors, written as a whole and read with one error."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.storage.refusals import cause_of, fitting, refused, writing

Get = Callable[[str], Tensor]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, facts: Mapping[str, Any], what: str) -> None:
    """Writes a file under a temporary name and renames it.

    Args:
        path: the file; it is replaced.
        tensors: on any device.
        facts: as JSON.
        what: it is, for the message.

    Raises:
        WorkError, ConfigError: it can't be written, see `refused`.
    """
    cure = "Make room, or choose another place"
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(f"{what} '{path}'", cure=cure):
            path.parent.mkdir(parents=True, exist_ok=True)
            held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(held, temporary, metadata={"embank": json.dumps(facts)})
            temporary.chmod(path.parent.stat().st_mode & 0o666)  # safetensors would keep it from other users
            temporary.replace(path)
    except SafetensorError as error:
        cause, cure = cause_of(error, folder=path.parent), fitting(cure, error, folder=path.parent)
        raise refused(error)(f"{what} '{path}' can't be written: {cause}. {cure}") from error
    finally:
        temporary.unlink(missing_ok=True)


def refuse_non_finite(rows: Tensor, *, table: str) -> None:
    """Raises ConfigError for rows of a table that hold NaN or infinity."""
    if rows.numel() and not bool(torch.stack(rows.aminmax()).isfinite().all()):
        raise ConfigError(f"rows of table '{table}' are not finite; train with a lower rate")


@contextmanager
def reading_tensors(path: Path, *, what: str, cure: str = "") -> Iterator[tuple[dict[str, Any], Get]]:
    """Opens a file that `write_tensors` wrote.

    Args:
        path: the file.
        what: it should be, for the message.
        cure: the message's end, where it can't be opened.

    Yields:
        Its facts, and what gives a tensor by name.

    Raises:
        CheckpointError: it is missing, damaged, or something else.
    """
    try:
        file = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        fact = "it is a folder" if path.is_dir() else cause_of(error)
        raise CheckpointError(f"{what} '{path}' can't be read: {fact}{cure and '. '}{cure}") from error
    with file as opened:
        try:
            facts = json.loads((opened.metadata() or {})["embank"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"'{path}' is no {what.removeprefix('the ')} of embank") from error

        def get(name: str) -> Tensor:
            try:
                tensor: Tensor = opened.get_tensor(name)
            except SafetensorError as error:
                raise CheckpointError(f"{what} '{path}' lacks '{name}'; write it again") from error
            return tensor

        yield facts, get
