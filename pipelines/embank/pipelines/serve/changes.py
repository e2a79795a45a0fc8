"""Another bundle for a running server: loaded and tried before anyone hears of it, then taken up by all workers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from embank.pipelines.runs.model import ServedModel
from embank.pipelines.serve.models import Snapshot, features_of, tried_model
from embank.pipelines.serve.refused import RefusedRequestError
from embank.pipelines.serve.source import current_bundle
from embank.pipelines.serve.state import Current, StateFolder
from embank.tables.errors import ConfigError, EmbankError, WorkError
from embank.tables.serving.deltas.format import GapError
from embank.tables.storage.refusals import cause_of
from embank.tables.wording import listing

WAIT_S = 120.0
"""For all workers to have loaded a bundle that one has loaded."""
_LOOK_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What a change has led to.

    Args:
        snapshot: the new model.
        missing: workers that have not loaded it, and what they say.
    """

    snapshot: Snapshot
    missing: dict[int, str]


class Changes:
    """Changes what all workers of a server serve, one change at a time.

    Args:
        state: the server's folder.
        adopt: is given the new model in this process, before the others load it.
    """

    def __init__(self, state: StateFolder, *, adopt: Callable[[Snapshot], None] | None = None) -> None:
        self.state = state
        self.adopt = adopt
        self.is_busy = False

    def to_bundle(self, path: str | Path, *, waits: bool = False) -> Changed:
        """Serves another bundle.

        Args:
            path: the bundle, or what has one.
            waits: for a change that is under way.

        Raises:
            RefusedRequestError: 409 where the bundle has other columns or another change is under way, 422 where it
                can't be loaded, 503 where the server can't change. What was served is still served.
        """
        with self._changing(waits=waits):
            return self._change(current_bundle(path))

    def by_delta(self, path: str | Path) -> Changed:
        """Serves what a delta makes of the bundle that is served.

        Raises:
            RefusedRequestError: 409 where the delta does not follow on it, and as in `to_bundle`.
        """
        from embank.pipelines.deltas.deltas import apply_delta

        with self._changing(waits=False):
            now = self.state.current()
            made = self.state.applied / str(now.sequence + 1)
            try:
                try:
                    apply_delta(now.bundle, path, made)
                except GapError as error:
                    raise RefusedRequestError(409, "reload", f"nothing was reloaded: {error}") from error
                return self._change(made)
            except BaseException:
                if self.state.current().sequence == now.sequence:
                    self.state.remove_applied(but=now.bundle)
                raise

    @contextmanager
    def _changing(self, *, waits: bool) -> Iterator[None]:
        with self.state.changing(waits=waits), _as_refusals():
            self.is_busy = True
            try:
                yield
            finally:
                self.is_busy = False

    def _change(self, bundle: Path) -> Changed:
        now = self.state.current()
        model = tried_model(bundle, verify=True)
        _refuse_other_columns(model, now)
        snapshot = Snapshot(model=model, sequence=now.sequence + 1)
        following = Current(
            sequence=snapshot.sequence, bundle=str(bundle), checksum=model.checksum, features=features_of(model)
        )
        with _own_folder():
            self.state.publish(following)
            if self.adopt is not None:
                self.adopt(snapshot)
        missing = self._awaited(snapshot.sequence)
        if not missing:
            self.state.remove_applied(but=str(bundle))
        return Changed(snapshot=snapshot, missing=missing)

    def _awaited(self, sequence: int) -> dict[int, str]:
        """Waits for the workers; those that have not loaded it, or can't."""
        end = time.monotonic() + WAIT_S
        while True:
            loaded = self.state.loaded()
            behind = [
                number for number in self.state.workers() if number not in loaded or loaded[number].sequence < sequence
            ]
            failed = {n: loaded[n].failed for n in behind if n in loaded}
            said = {n: why[1] for n, why in failed.items() if why is not None and why[0] == sequence}
            if len(said) == len(behind) or time.monotonic() > end:
                return {n: said.get(n, "it has not answered yet") for n in behind}
            time.sleep(_LOOK_S)


@contextmanager
def _as_refusals() -> Iterator[None]:
    """What can't be loaded, as an answer."""
    try:
        yield
    except RefusedRequestError:
        raise
    except WorkError as error:
        raise RefusedRequestError(503, "reload", f"nothing was reloaded: {error}") from error
    except EmbankError as error:
        raise RefusedRequestError(422, "reload", f"nothing was reloaded: {error}") from error
    except OSError as error:
        raise RefusedRequestError(
            422, "reload", f"nothing was reloaded: the path can't be read: {cause_of(error)}"
        ) from error


@contextmanager
def _own_folder() -> Iterator[None]:
    """What can't be written to the server's own folder, which is no fault of the request."""
    try:
        yield
    except ConfigError as error:
        raise WorkError(str(error)) from error


def _refuse_other_columns(model: ServedModel, now: Current) -> None:
    """Clients send the columns that the server's page states; another set of them is another service."""
    ours, others = dict(now.features), features_of(model)
    if ours == others:
        return
    changed = [name for name in ours.keys() & others.keys() if ours[name] != others[name]]
    parts = [
        f"{what} {listing(sorted(names))}"
        for what, names in (
            ("it lacks", ours.keys() - others.keys()),
            ("it adds", others.keys() - ours.keys()),
            ("it reads otherwise", changed),
        )
        if names
    ]
    raise RefusedRequestError(
        409,
        "reload",
        f"the bundle's columns are not those that are served: {'; '.join(parts)}. Start another server for it",
    )
