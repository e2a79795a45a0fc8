"""The network of another framework's model as the parameters of ours: names, and the order of columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from embank.pipelines.importing.network_maps import RECIPES, Layers, One, Recipe
from embank.pipelines.importing.sources import Source
from embank.tables.errors import ConfigError, DataError
from embank.tables.wording import listing

Block = tuple[object, int]
"""Columns that stand for one thing: what they stand for, and how many they are."""

BOTTOM = "the bottom network"
_MODULE = r"(?P<module>(?:\.[^.]+)*)\.(?P<part>weight|bias|running_mean|running_var|num_batches_tracked)$"


@dataclass(frozen=True, kw_only=True)
class InputOrder:
    """What a model reads, in an order.

    Args:
        fields: all features that have vectors, in the source's order; ids before numbers in ours.
        ids: categorical features.
        numbers: numeric inputs.
        dims: of the ids' vectors.
        number_dim: columns of a number: those of its vector, or 1.
        dim: common to all vectors.
        has_bottom: whether numbers go through a network of their own.
        is_dot: whether pairs of fields are multiplied, rather than put side by side.
    """

    fields: Sequence[str]
    ids: Sequence[str]
    numbers: Sequence[str]
    dims: Mapping[str, int]
    number_dim: int
    dim: int
    has_bottom: bool
    is_dot: bool

    def width(self, name: str) -> int:
        """Columns of a feature."""
        return self.dims.get(name, self.number_dim)


def _side_by_side(order: InputOrder, names: Sequence[str]) -> list[Block]:
    return [(name, order.width(name)) for name in names]


def _pairs(names: Sequence[str]) -> list[Block]:
    return [(frozenset(pair), 1) for pair in combinations(names, 2)]


def _with_bottom(order: InputOrder, *, is_first: bool) -> list[Block]:
    """DLRM: the bottom network's output, and products of all pairs (or all fields); one before the other."""
    bottom = [BOTTOM] if order.has_bottom else []
    own: list[Block] = [(BOTTOM, order.dim)] if order.has_bottom else []
    if not order.is_dot:
        fields = _side_by_side(order, order.ids)
        return own + fields if is_first else fields + own
    pairs = _pairs([*bottom, *order.ids] if is_first else [*order.ids, *bottom])
    return own + pairs if is_first else pairs + own


LAYOUTS: Mapping[str, Callable[[InputOrder], list[Block]]] = {
    "mixed": lambda order: _side_by_side(order, order.fields),
    "ids_then_numbers": lambda order: _side_by_side(order, [*order.ids, *order.numbers]),
    "numbers_then_ids": lambda order: _side_by_side(order, [*order.numbers, *order.ids]),
    "numbers": lambda order: [(name, 1) for name in order.numbers],
    "mixed_pairs": lambda order: _side_by_side(order, order.fields) + _pairs(order.fields),
    "ids_numbers_pairs": lambda order: (
        _side_by_side(order, [*order.ids, *order.numbers]) + _pairs([*order.ids, *order.numbers])
    ),
    "bottom_first": lambda order: _with_bottom(order, is_first=True),
    "bottom_last": lambda order: _with_bottom(order, is_first=False),
}
"""The columns that layers read, by the names of `RECIPES`."""


def recipe_of(source: Source, model: str) -> Recipe:
    """How the network of a source becomes our model.

    Raises:
        ConfigError: there is none for it.
    """
    recipes = RECIPES.get(source.kind, {})
    if model not in recipes:
        able = listing(f"{ours} ({recipe.theirs})" for ours, recipe in recipes.items())
        raise ConfigError(
            f"the network of a model of '{source.kind}' can't be imported as model '{model}'; those that compute the "
            f"same are {able}. Set model.name to one, or import the tables alone with --tables-only"
        )
    return recipes[model]


def translated(
    source: Source,
    *,
    model: Mapping[str, Any],
    ours: Mapping[str, Tensor],
    theirs_in: InputOrder,
    ours_in: InputOrder,
) -> dict[str, Tensor]:
    """The parameters of our network from those of a source.

    Args:
        source: has them.
        model: the section of the configuration.
        ours: our network's `state_dict`, for names and shapes.
        theirs_in, ours_in: what both read, in their orders.

    Raises:
        ConfigError: a parameter has another shape, is missing or left over; names it.
    """
    return _Translation(source, model=model, ours=ours, theirs_in=theirs_in, ours_in=ours_in).run()


class _Translation:
    def __init__(
        self,
        source: Source,
        *,
        model: Mapping[str, Any],
        ours: Mapping[str, Tensor],
        theirs_in: InputOrder,
        ours_in: InputOrder,
    ) -> None:
        self.source, self.model, self.ours = source, model, ours
        self.theirs_in, self.ours_in = theirs_in, ours_in
        self.recipe = recipe_of(source, str(model["name"]))
        self.taken: dict[str, Tensor] = {}
        self.used: set[str] = set()

    def run(self) -> dict[str, Tensor]:
        self._refuse_other_mathematics()
        for part in self.recipe.parts:
            if isinstance(part, Layers):
                self._layers(part)
            else:
                for one in self._each(part):
                    self._one(*one)
        lacking = [name for name in self.ours if name not in self.taken]
        if lacking:
            raise self._refused(f"it has nothing for {listing(map(repr, lacking))} of model '{self.model['name']}'")
        left = [name for name in self.source.network if name not in self.used]
        if left:
            raise self._refused(
                f"its {listing(map(repr, left))} {'have' if len(left) > 1 else 'has'} no counterpart in model "
                f"'{self.model['name']}', so that it would compute something else"
            )
        return self.taken

    def _refuse_other_mathematics(self) -> None:
        if not self.ours_in.numbers:
            return
        name, title = self.model["name"], f"{self.recipe.theirs} of {self.source.kind}"
        for key, value in self.recipe.needs.items():
            if self.model[key] != value:
                raise ConfigError(
                    f"model.{key} is {self.model[key]!r}, and {title} reads numbers as with {value!r}; set model.{key} "
                    f"to {str(value).lower()}"
                )
        if not self.recipe.numbers:
            raise ConfigError(
                f"{title} reads numbers otherwise than model '{name}', so that a model with numeric features can't be "
                "imported. Import its tables alone with --tables-only"
            )

    def _refused(self, what: str) -> ConfigError:
        return ConfigError(
            f"'{self.source.path}' does not fit the configuration: {what}. Give the model the settings that the source "
            f"had ({self.recipe.theirs}), or import its tables alone with --tables-only"
        )

    # Names in the source

    def _find(self, name: str) -> str | None:
        """The source's full name of a parameter: models may lie within others."""
        found = [full for full in self.source.network if full == name or full.endswith(f".{name}")]
        return min(found, key=len) if found else None

    def _read(self, name: str) -> Tensor:
        self.used.add(name)
        assert self.source.read is not None
        value = self.source.read(name)
        return value if name.endswith("num_batches_tracked") else self._finite(name, value.float())

    def _finite(self, name: str, value: Tensor) -> Tensor:
        if not bool(value.isfinite().all()):
            raise DataError(
                f"'{self.source.path}': parameter '{name}' has a number that is NaN or infinite; train the model again"
            )
        return value

    # Order of columns

    def _permutation(self, inputs: tuple[str, str] | None) -> Tensor | None:
        """For each of our columns that of the source."""
        if inputs is None:
            return None
        theirs, ours = LAYOUTS[inputs[0]](self.theirs_in), LAYOUTS[inputs[1]](self.ours_in)
        places: dict[object, range] = {}
        start = 0
        for label, width in theirs:
            places[label] = range(start, start + width)
            start += width
        if {label: len(place) for label, place in places.items()} != dict(ours):
            raise self._refused("it has other inputs, or vectors of other lengths")
        return torch.tensor([column for label, _ in ours for column in places[label]], dtype=torch.int64)

    def _sorted(self, value: Tensor, axes: Sequence[int], order: Tensor | None, *, name: str) -> Tensor:
        for axis in axes if order is not None else ():
            assert order is not None
            if value.shape[axis] < len(order):
                raise self._refused(f"'{name}' has the shape {list(value.shape)}, and {len(order)} columns are read")
            rest = torch.arange(len(order), value.shape[axis])
            value = value.index_select(axis, torch.cat([order, rest]))
        return value

    # Single parameters

    def _each(self, part: One) -> Iterator[tuple[str, list[str], One, int]]:
        """The parameters of ours that a part is about, with the names they may have in the source."""
        if "{i}" not in part.ours:
            if part.ours in self.ours:
                yield part.ours, list(part.theirs), part, 0
            return
        i = 0
        while (name := part.ours.format(i=i)) in self.ours:
            yield name, [theirs.replace("{i}", str(i)) for theirs in part.theirs], part, i
            i += 1

    def _one(self, name: str, theirs: list[str], part: One, i: int) -> None:
        shape = self.ours[name].shape
        if not theirs:
            self.taken[name] = torch.zeros_like(self.ours[name])
            return
        found = next((values for pattern in theirs if (values := self._values(pattern, i)) is not None), None)
        if found is None:
            raise self._refused(f"it has no '{theirs[0]}', which is '{name}' here (model.{part.setting})")
        where, value = found
        if part.transposed:
            value = value.transpose(-1, -2)
        if part.axes and value.numel() == shape.numel():
            value = value.reshape(shape)
        is_same = part.unless is not None and self.model.get(part.unless[0]) in part.unless[1]
        value = self._sorted(value, part.axes, None if is_same else self._permutation(part.inputs), name=where)
        self._take(name, value.reshape(shape) if value.numel() == shape.numel() else value, where, part.setting)

    def _values(self, pattern: str, i: int) -> tuple[str, Tensor] | None:
        """What the source has under a name; several under one with a {number} or {k} are put together."""
        if "{number}" in pattern:
            names = [pattern.replace("{number}", self.source.theirs.get(n, n)) for n in self.ours_in.numbers]
            return self._stacked(pattern, names)
        if "{k}" in pattern:
            names, k = [], 0
            while self._find(pattern.replace("{k}", str(k))) is not None:
                names.append(pattern.replace("{k}", str(k)))
                k += 1
            return self._stacked(pattern, names)
        plain = pattern.removesuffix("[i]")
        full = self._find(plain)
        if full is None:
            return None
        value = self._read(full)
        if plain == pattern:
            return full, value
        num_layers = sum(
            re.fullmatch(r"cross\.(weights\.\d+|layers\.\d+\.weight)", name) is not None for name in self.ours
        )
        if value.shape[0] != num_layers:
            raise self._refused(f"'{full}' is of {value.shape[0]} layers, and model.num_cross_layers is {num_layers}")
        return full, value[i]

    def _stacked(self, pattern: str, names: Sequence[str]) -> tuple[str, Tensor] | None:
        found = [self._find(name) for name in names]
        if not found or None in found:
            return None
        values = [self._read(name).reshape(-1) for name in found if name is not None]
        if len({value.numel() for value in values}) > 1:
            raise self._refused(f"'{pattern}' have unlike shapes")
        return pattern, torch.stack(values)

    def _take(self, name: str, value: Tensor, where: str, setting: str) -> None:
        shape = self.ours[name].shape
        if value.shape != shape:
            raise self._refused(
                f"'{where}' has the shape {list(value.shape)}, and '{name}' here {list(shape)} (model.{setting})"
            )
        self.taken[name] = value.to(self.ours[name].dtype).clone()

    # Stacks of layers

    def _layers(self, part: Layers) -> None:
        ours = _modules(self.ours, [part.ours])
        if not ours:
            return
        theirs = _modules(self.source.network, part.theirs)
        for kind in ("linear", "norm", "other"):
            own = [parts for parts in ours if self._kind(parts) == kind]
            their = [parts for parts in theirs if self._kind(parts) == kind]
            if len(own) != len(their):
                title = {"linear": "linear layer", "norm": "normalisation", "other": "learned activation"}[kind]
                title += "s" if len(their) != 1 else ""
                raise self._refused(
                    f"it has {len(their)} {title} in '{part.theirs[0]}', and model.{part.setting} makes {len(own)}"
                )
            for number, (to, of) in enumerate(zip(own, their, strict=True)):
                is_first = kind == "linear" and number == 0
                self._module(to, of, part, self._permutation(part.inputs) if is_first else None)

    def _kind(self, parts: Mapping[str, str]) -> str:
        if "running_mean" in parts:
            return "norm"
        name = parts.get("weight", "")
        if name in self.ours:
            return "linear" if self.ours[name].dim() == 2 else "other"
        return "linear" if name and len(self.source.network[name]) == 2 else "other"

    def _module(self, ours: Mapping[str, str], theirs: Mapping[str, str], part: Layers, order: Tensor | None) -> None:
        for key, name in ours.items():
            if key not in theirs:
                if key != "bias":
                    raise self._refused(f"it has no '{key}' beside '{next(iter(theirs.values()))}'")
                self.taken[name] = torch.zeros_like(self.ours[name])
                continue
            value = self._read(theirs[key])
            value = self._sorted(value, [1] if key == "weight" else [], order, name=theirs[key])
            self._take(name, value, theirs[key], part.setting)


def _modules(names: Mapping[str, Any], prefixes: Sequence[str]) -> list[dict[str, str]]:
    """The modules of a stack in order, each with the full names of its parts."""
    stack: list[dict[str, str]] = []
    for prefix in prefixes:
        found: dict[tuple[int, ...], dict[str, str]] = {}
        pattern = re.compile(rf"(?:^|\.){re.escape(prefix)}{_MODULE}")
        for name in names:
            match = pattern.search(name)
            if match:
                number = tuple(int(text) for text in re.findall(r"\.(\d+)", match["module"]))
                found.setdefault(number, {})[match["part"]] = name
        stack += [found[number] for number in sorted(found)]
    return stack
