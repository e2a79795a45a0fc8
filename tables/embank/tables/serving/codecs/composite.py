"""A codec that holds other coded matrices: projected columns, factors, parts of a table."""

from collections.abc import Mapping
from typing import Any, cast

from embank.tables.method.base import Held
from embank.tables.method.facts import facts_of, restored
from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.registry import codec_class, codec_name


class Composite(Coded):
    """Holds coded matrices as its own buffers, since a bundle writes those: buffer "rows" of the part "scores" is
    `scores_rows`.

    Attributes:
        parts: of each part its codec and that one's facts.

    Example:
        >>> class Twice(Composite):
        ...     def __init__(self, rows_RD):
        ...         super().__init__()
        ...         self.hold("half", encode(rows_RD / 2, codec="fp16"))
        ...     def take(self, rows_N):
        ...         return self.part("half").take(rows_N) * 2
        >>> twice = Twice(torch.tensor([[1.0, 2.0]]))
        >>> twice.take(torch.tensor([0])), [name for name, _ in twice.named_buffers()]
        (tensor([[1., 2.]]), ['half_rows'])
    """

    held = Held(facts=("parts",))
    parts: dict[str, Mapping[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.parts = {}

    def hold(self, name: str, coded: Coded) -> None:
        """Takes a coded matrix in."""
        self.parts[name] = {
            "codec": codec_name(type(coded)),
            "facts": facts_of(coded),
            "buffers": [buffer for buffer, _ in coded.named_buffers()],
        }
        for buffer, tensor in coded.named_buffers():
            self.register_buffer(f"{name}_{buffer}", tensor)

    def part(self, name: str) -> Coded:
        """A matrix as its codec has it. It reads the buffers that are held now: a move to another device and an
        exporter replace them."""
        made = cast(dict[str, Coded], self.__dict__.setdefault("_made", {}))  # no submodules: a bundle would see them
        about, own = self.parts[name], self._buffers
        tensors = {buffer: own[f"{name}_{buffer}"] for buffer in about["buffers"]}
        if name not in made:
            made[name] = restored(codec_class(about["codec"]), about["facts"], cast(Any, tensors))
        coded = made[name]
        coded._buffers.update(tensors)
        return coded
