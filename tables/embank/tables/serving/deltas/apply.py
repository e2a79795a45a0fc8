"""From a bundle and deltas to the bundle that they lead to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.serving.bundle import Bundle
from embank.tables.serving.deltas.format import Delta, refuse_gaps
from embank.tables.serving.deltas.sources import CURE, Source, bundle_sources, digest
from embank.tables.storage.checksums import CHECKSUMS
from embank.tables.storage.json_text import read_json
from embank.tables.storage.new_folder import new_folder


def write_applied(bundle: str | Path, deltas: Sequence[Delta], out: str | Path) -> Bundle:
    """Writes the bundle that deltas lead to, in one pass over its bytes however many deltas there are; at every moment
    either nothing or all of it is at `out`. What is read stays as it is.

    Args:
        bundle: where the first delta starts.
        deltas: in the order in which they were made.
        out: must not exist yet.

    Returns:
        The new bundle.

    Raises:
        CheckpointError: no bundle, a damaged one, `out` exists, or a delta is missing, repeated, out of order or of
            another model.
        ConfigError: no deltas.
        WorkError: it can't be written; nothing is left behind.
    """
    if not deltas:
        raise ConfigError("there is no delta to apply; give one or several")
    out = Path(out)
    # Its checksums are compared while it is read for the result, and only sizes here: files may be large.
    old, last = Bundle(bundle, verify=False), deltas[-1]
    refuse_gaps(old.checksum, deltas, bundle=old.path, keys=old.keys)
    files: Mapping[str, Source] = bundle_sources(old.path, read_json(old.path / CHECKSUMS, cure=CURE))
    for delta in deltas:
        files = delta.over(files)
    with new_folder(out, kind="bundle", sources=(old.path, *(delta.path for delta in deltas))) as temporary:
        for name, source in files.items():
            if digest(source.chunks(), into=temporary / name) != last.listing[name]:
                _refuse_damaged(old, name, last)
        (temporary / CHECKSUMS).write_text(last.checksums, encoding="utf-8")
        _refuse_no_bundle(temporary, last)
    return Bundle(out, verify=False)


def _refuse_damaged(old: Bundle, name: str, last: Delta) -> None:
    """Says why a file is not what it should be: the bundle is damaged, or else the delta."""
    Bundle(old.path)
    raise CheckpointError(
        f"'{name}' has another SHA-256 than delta '{last.path}' says, and bundle '{old.path}' is whole: the delta, or "
        "one before it, is damaged. Make it again"
    )


def _refuse_no_bundle(folder: Path, last: Delta) -> None:
    try:
        Bundle(folder, verify=False)
    except CheckpointError as error:
        raise CheckpointError(f"what delta '{last.path}' leads to can't be served here: {error}") from error
