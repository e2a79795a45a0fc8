"""A new folder that is there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.storage.atomic import publish, temporary_beside
from embank.tables.storage.refusals import cause_of, is_full, refused
from embank.tables.storage.resources import refuse_exhausted


@contextmanager
def new_folder(folder: Path, *, kind: str, sources: tuple[Path, ...] = ()) -> Iterator[Path]:
    """A temporary folder that gets its name, durably, when the block ends well, and vanishes when it does not.

    Args:
        folder: must not exist yet.
        kind: what it will be, for messages.
        sources: folders that are read meanwhile, inside of which nothing may be written.

    Raises:
        CheckpointError: the folder exists, or has appeared meanwhile.
        ConfigError: it would lie inside of a source, or its path can't be used.
        WorkError: it can't be written, and nothing is left behind; or it is written as a whole, and its name could not
            be made durable.
    """
    folder = folder.absolute()
    refuse_taken(folder, kind=kind)
    for source in sources:
        if folder.resolve().is_relative_to(source.resolve()):
            raise ConfigError(f"'{folder}' lies inside of '{source}', which is only read; choose another folder")
    temporary = temporary_beside(folder)
    above = [parent for parent in folder.parents if not parent.exists()]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        publish(temporary, folder)
    except (OSError, SafetensorError) as error:
        refuse_taken(folder, kind=kind, because=error)
        refuse_exhausted(error, doing=f"writing the {kind} '{folder}'")
        raise refused(error)(
            f"the {kind} '{folder}' can't be written: {cause_of(error)}. Nothing was left behind; "
            f"{'make room or ' if is_full(error) else ''}choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in above:  # the nearest first; one that holds something stays
            with suppress(OSError):
                parent.rmdir()


def refuse_taken(folder: Path, *, kind: str, because: Exception | None = None) -> None:
    """Raises CheckpointError where something lies at the path of a folder that is to be made.

    Args:
        folder: that will be made.
        kind: what it will be, for the message.
        because: the error that led here, if one did.
    """
    if folder.exists():
        raise CheckpointError(
            f"'{folder.absolute()}' exists already, and a {kind} is never written over anything; choose another folder"
        ) from because
