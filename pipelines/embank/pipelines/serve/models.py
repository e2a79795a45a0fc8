"""The model that a worker serves, and how another one takes its place."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embank.pipelines.runs.model import ServedModel, load_model


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One model as it is served. A request takes the one that there is when it arrives, and is answered by it.

    Args:
        model: loaded, and tried on a row.
        sequence: of the change that brought it.
    """

    model: ServedModel
    sequence: int

    @property
    def headers(self) -> dict[str, str]:
        """Version and checksum, as every answer states them."""
        version = self.model.version.encode("ascii", "replace").decode()
        return {"X-Embank-Version": version, "X-Embank-Checksum": self.model.checksum}

    @property
    def facts(self) -> dict[str, str]:
        """Version and checksum, in the body of an answer."""
        return {"version": self.model.version, "checksum": self.model.checksum}


class Served:
    """Holds the snapshot of a worker. Reading and replacing it is one step each, also from other threads."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot


def tried_model(path: str | Path, *, verify: bool) -> ServedModel:
    """A bundle's model, after it has scored a row: what can't is refused before anyone is served by it.

    Args:
        path: the bundle.
        verify: reads all its files for their checksums, not only those that are read in any case.

    Raises:
        EmbankError: it can't be loaded.
    """
    model = load_model(path, verify=verify or "small")
    model.score_encoded(model.encode([model.example]))
    return model


def features_of(model: ServedModel) -> dict[str, Any]:
    """The columns that a model reads and of what type, as JSON gives them back."""
    features: dict[str, Any] = json.loads(json.dumps(dict(model.features)))
    return features
