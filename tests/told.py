"""A reporter that remembers what it was told."""

from embank.pipelines.reporting import Reporter


class Told(Reporter):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)
