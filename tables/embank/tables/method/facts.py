"""Spines and codecs as a bundle writes them: their facts and tensors, and what is made of those again."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.method.base import Held, Spine
from embank.tables.wording import shown

if TYPE_CHECKING:
    from embank.tables.serving.codecs.base import Coded


def facts_of(part: "Spine | Coded") -> dict[str, Any]:
    """The plain attributes of a spine or a codec, as they come back from a bundle: lists in place of tuples.

    Raises:
        ConfigError: there is no such attribute, or it does not come back from JSON.
    """
    return {name: _fact(part, name) for name in part.held.facts}


def _fact(part: "Spine | Coded", name: str) -> Any:
    cls = type(part).__name__
    if not hasattr(part, name):
        raise ConfigError(f"{cls} has no '{name}', which its `held` names as a fact; set it, or take it off the facts")
    value = getattr(part, name)
    cure = "a fact is a number, a text, a list or a dict of them by text; register tensors as buffers"
    try:
        read: Any = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"fact '{name}' of {cls} can't be saved as JSON ({error}); {cure}") from error
    if read != _as_lists(value):
        raise ConfigError(f"fact '{name}' of {cls} is {value!r} and would come back from a bundle as {read!r}; {cure}")
    return read


def _as_lists(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_as_lists(part) for part in value]
    return {key: _as_lists(part) for key, part in value.items()} if isinstance(value, dict) else value


_LARGEST = 2**19
"""Columns, bits, layers: what a lookup repeats, or makes tensors of, without asking what its tensors hold."""


def _is_size(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_size, value))
    return value is None or (isinstance(value, int) and 0 <= value <= _LARGEST)


def restored(cls: "type[Any]", facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """A spine or a codec from its facts and tensors, without its constructor.

    Raises:
        CheckpointError: a fact is missing, there is one too many, or one that is no size and has to be.
    """
    names = sorted(facts) if isinstance(facts, Mapping) else facts
    if names != sorted(cls.held.facts):
        raise CheckpointError(
            f"a saved {cls.__name__} has the facts {shown(names)}; this embank expects "
            f"{sorted(cls.held.facts)}. It was written by another version: export it again"
        )
    for name in cls.held.sizes:
        if not _is_size(facts[name]):
            raise CheckpointError(
                f"a saved {cls.__name__} has {name} {shown(facts[name])}, which is no size from 0 to {_LARGEST:,}; "
                "export it again"
            )
    part = object.__new__(cls)
    nn.Module.__init__(part)
    part.held = Held(facts=cls.held.facts, uncounted=cls.held.uncounted)  # what is served moves as a whole
    for name, value in facts.items():
        setattr(part, name, value)
    for name, tensor in tensors.items():
        part.register_buffer(name, tensor)
    return part.eval()


def frozen(spine: Spine) -> Spine:
    """A spine as it is served: its facts and copies of its tensors, in host memory, and nothing else of it."""
    own = {**spine._parameters, **spine._buffers}
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in own.items() if tensor is not None}
    result: Spine = restored(type(spine), facts_of(spine), tensors)
    return result
