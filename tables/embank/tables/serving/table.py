"""One table as it is served: a spine over coded matrices. And how it is made again from a file that names its parts.

A file names a method, a spine of that method's module and codecs; all of them come from registries. Nothing else that a
file names is imported or called.
"""

import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from embank.tables.errors import CheckpointError, ConfigError, EmbankError
from embank.tables.method.base import Combined, Method, Served, Spine
from embank.tables.method.casts import only_moving, own_defaults
from embank.tables.method.facts import facts_of, frozen, restored
from embank.tables.method.modes import is_followed
from embank.tables.method.registry import method_class
from embank.tables.method.trial import some_ids
from embank.tables.serving.codecs.base import MIN_NUMBERS, Coded
from embank.tables.serving.codecs.registry import codec_class, codec_name, codec_told, encode
from embank.tables.serving.steps import Steps
from embank.tables.specs import TableSpec
from embank.tables.storage.refusals import cause_of
from embank.tables.storage.resources import refuse_exhausted

_PARTS = {"spine", "facts", "lookups", "matrices"}
"""What `PackedTable.manifest` tells."""


_MANY = 16
"""Ids from which on it pays to combine each distinct row once."""

_REPLACED = (
    "{what} of a packed table can't be replaced: its lookups hold it. Make another table, PackedTable(spine, matrices, "
    "lookups), or pack with another codec; load_state_dict changes tensors"
)


class _Matrices(nn.ModuleList):
    """Those of a table, which hold on to them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            raise ConfigError(_REPLACED.format(what=f"matrix {name}"))
        super().__setattr__(name, value)


def _are_many(ids_N: Tensor) -> bool:
    """Whether rows may be combined in another way because of the number of ids; an exporter must not depend on it."""
    return not is_followed() and ids_N.numel() >= _MANY


def _rows_of(combined: Tensor | Combined) -> Tensor:
    assert not isinstance(combined, Combined), "only a training pass adds to the loss"
    return combined


class PackedTable(nn.Module):
    """A logical table as it is served: its method's address, side and combine in evaluation mode, over matrices that
    codecs hold. It can't be trained.

    Args:
        spine: what looks up; not copied.
        matrices: what it reads.
        lookups: for each tensor of the spine's `address`, which of the matrices it indexes.

    Example:
        >>> spec = TableSpec(
        ...     name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"], method="hash", budget=0.1
        ... )
        >>> tables = TableCollection([spec])
        >>> packed = pack_table(build_method(spec), tables.weights())
        >>> packed.lookup(torch.tensor([3, 500])).shape, packed.nbytes()
        (torch.Size([2, 8]), 3176)
    """

    def __init__(self, spine: Spine, matrices: Sequence[Coded], lookups: Sequence[int]) -> None:
        super().__init__()
        self.spine = spine
        self.matrices = _Matrices(matrices)
        self.coded = tuple(matrices)  # the same; a ModuleList is slow to ask
        self.lookups = list(lookups)
        self._takes = tuple(matrices[k].take for k in lookups)
        self._steps = Steps.of(spine)
        self.eval()

    @classmethod
    def of(
        cls, served: Served, *, codec: str = "fp32", coded: Callable[[Tensor], Coded | None] = lambda _: None
    ) -> "PackedTable":
        """What a method serves, its plain matrices of at least 64 numbers held by a codec. It may share memory with the
        rows.

        Args:
            served: what a method serves.
            codec: of the plain matrices.
            coded: the form of a matrix that has one already, as where tables share rows.

        Raises:
            ConfigError: there is no such codec, or rows alone can't be coded by it.
        """
        names = list(served.matrices)
        unknown = next((name for name in served.lookups if name not in names), None)
        if unknown is not None:
            raise ConfigError(
                f"what is served looks up a matrix '{unknown}', and there are {names}; name each lookup's matrix"
            )
        matrices = [
            _recoded(m, codec) if isinstance(m, Coded) else coded(m) or encode(m, codec=codec_of(codec, m))
            for m in served.matrices.values()
        ]
        return cls(frozen(served.spine), matrices, [names.index(name) for name in served.lookups])

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("spine", "matrices", "lookups") and "_steps" in self.__dict__:
            raise ConfigError(_REPLACED.format(what=f"'{name}'"))
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `nn.Module.to`, `half` and their like call: a table moves, but its tensors keep their types."""
        super()._apply(only_moving(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def lookup(self, ids_N: Tensor) -> Tensor:
        """Logical rows [N, D] for ids int64 [N], N may be 0; ids out of range are the caller's to refuse."""
        takes, (both, address, side, combine, combine_distinct) = self._takes, self._steps
        if both is not None:
            addressed, side_N = both(ids_N)
        else:
            addressed = (ids_N,) if address is None else address(ids_N)
            side_N = None if side is None else side(ids_N)
        if combine_distinct is not None and _are_many(ids_N):
            tops = [int(rows_N.max()) + 1 for rows_N in addressed]
            if max(tops) <= ids_N.numel():
                rows = tuple([self.coded[k].first(top) for k, top in zip(self.lookups, tops, strict=True)])
                return _rows_of(combine_distinct(rows, torch.stack(addressed), side_N))
        if len(takes) == 1:
            row_ND = takes[0](addressed[0])
            return row_ND if combine is None else _rows_of(combine((row_ND,), side_N))
        rows = tuple([take(rows_N) for take, rows_N in zip(takes, addressed, strict=True)])
        return torch.cat(rows, dim=1) if combine is None else _rows_of(combine(rows, side_N))

    def forward(self, ids_N: Tensor) -> Tensor:
        """See `lookup`: what `torch.export` follows."""
        return self.lookup(ids_N)

    def parts(self) -> list[tuple[str, Spine | Coded]]:
        """The spine and the matrices, each with the beginning of its tensors' names."""
        return [("spine", self.spine), *((f"matrices.{i}", matrix) for i, matrix in enumerate(self.coded))]

    def nbytes(self) -> int:
        """Bytes of everything that is held: rows, codes, maps, hash constants."""
        return sum(t.numel() * t.element_size() for t in self.buffers())

    def counted(self) -> list[Tensor]:
        """What the paper counts."""
        return [
            buffer
            for _, part in self.parts()
            for name, buffer in part.named_buffers()
            if name not in part.held.uncounted
        ]

    def manifest(self) -> dict[str, Any]:
        """All but the tensors, as JSON."""
        return {
            "spine": type(self.spine).__name__,
            "facts": facts_of(self.spine),
            "lookups": self.lookups,
            "matrices": [{"codec": codec_name(type(m)), "facts": facts_of(m)} for m in self.coded],
        }

    def codecs(self) -> list[str]:
        """What holds each matrix, with what holds its parts: `["sparse_coded (int4)"]`."""
        return [codec_told(codec_name(type(coded)), facts_of(coded)) for coded in self.coded]

    @classmethod
    def restore(cls, method: str, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "PackedTable":
        """A packed table from what `manifest` and `state_dict` gave.

        Args:
            method: name of the method that it is of.
            manifest: what `manifest` gave.
            tensors: what `state_dict` gave.

        Raises:
            CheckpointError: the method has no such spine, there is no such codec, or facts are missing.
            ConfigError: there is no such method.
        """
        if set(manifest) != _PARTS:
            raise CheckpointError(
                f"what it says of its parts has the keys {sorted(manifest)}, not {sorted(_PARTS)}; export it again"
            )
        spine_cls = spine_class(method, manifest["spine"])
        if spine_cls is None:
            raise CheckpointError(
                f"it is served by a {manifest['spine']}, which method '{method}' no longer has; load it with the "
                "embank that wrote it, or export it again"
            )
        spine = restored(spine_cls, manifest["facts"], _below("spine", tensors))
        matrices = []
        for i, entry in enumerate(manifest["matrices"]):
            try:
                codec = codec_class(entry["codec"])
            except ConfigError as error:
                raise CheckpointError(f"{error}; install the package that has it") from error
            matrices.append(restored(codec, entry["facts"], _below(f"matrices.{i}", tensors)))
        lookups = manifest["lookups"]
        if not all(type(number) is int and 0 <= number < len(matrices) for number in lookups):
            raise CheckpointError(f"it looks up the matrices {lookups}, and has {len(matrices)}; export it again")
        return cls(spine, matrices, lookups)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _recoded(matrix: Coded, codec: str) -> Coded:
    return matrix if codec == "fp32" else matrix.recoded(codec)


def codec_of(codec: str, rows_RD: Tensor) -> str:
    """The codec of a matrix under one for the table."""
    return codec if rows_RD.numel() >= MIN_NUMBERS else "fp32"


def spine_class(method: str, name: str) -> type[Spine] | None:
    """The spine that a file names: the method itself, one in the module of it or of what it inherits, or the plain one;
    None if there is none.

    Raises:
        ConfigError: there is no such method.
    """
    cls = method_class(method)
    if name == Spine.__name__:
        return Spine
    homes = [sys.modules.get(base.__module__) for base in cls.__mro__ if issubclass(base, Spine)]
    found = [cls, *(vars(home)[name] for home in homes if home is not None and name in vars(home))]
    spines = (one for one in found if isinstance(one, type) and issubclass(one, Spine) and one.__name__ == name)
    return next(spines, None)


def pack_table(
    method: Method,
    rows: Mapping[str, Tensor],
    *,
    codec: str = "fp32",
    shared: MutableMapping[tuple[str, str], Coded] | None = None,
) -> PackedTable:
    """The served form of one table.

    Args:
        method: the table's.
        rows: fp32 [R, width] of each physical table by name. The result may share memory with them.
        codec: how matrices are held that the method does not code itself.
        shared: coded physical tables by name and codec, which several tables may read; those of this one are added.

    Raises:
        ConfigError: what is served is not what a bundle would give: the method's module does not name its spine, a fact
            is missing or no JSON, a codec is not registered or takes other rows than it should.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> pack_table(build_method(spec), tables.weights(), codec="fp32").nbytes()
        32000
    """
    with own_defaults(), torch.no_grad(), torch.autocast("cpu", enabled=False):  # else a product of rows would be bf16
        return _packed(method, rows, codec, {} if shared is None else shared)


def _packed(
    method: Method, rows: Mapping[str, Tensor], codec: str, shared: MutableMapping[tuple[str, str], Coded]
) -> PackedTable:
    spec = method.spec
    who = f"table '{spec.name}': method '{spec.method}'"
    try:
        served = method.served(rows)
    except KeyError as error:
        raise ConfigError(f"{who}: served asks for rows of {error}, and there are {sorted(rows)}; mend it") from error
    if not isinstance(served, Served):
        raise ConfigError(f"{who}: served gives a {type(served).__name__}; give a Served")
    try:
        own = {id(matrix): name for name, matrix in rows.items()}
        packed = PackedTable.of(
            served, codec=codec, coded=lambda m: shared.get((own.get(id(m), ""), codec_of(codec, m)))
        )
        for matrix, form in zip(served.matrices.values(), packed.coded, strict=True):
            if isinstance(matrix, Tensor) and id(matrix) in own:
                shared[own[id(matrix)], codec_of(codec, matrix)] = form
        name = type(packed.spine).__name__
        if spine_class(spec.method, name) is not type(packed.spine):
            raise ConfigError(
                f"its spine {type(packed.spine).__module__}.{name} is not named in the module of the method, where a "
                "bundle looks for it; define or import it there"
            )
        _refuse_other_than_loaded(packed, spec)
    except ConfigError as error:
        raise ConfigError(f"{who}: {error}") from error
    return packed


def _refuse_other_than_loaded(packed: PackedTable, spec: TableSpec) -> None:
    """Tries what a bundle would give of a table: facts and tensors alone must give the same rows.

    Raises:
        ConfigError: they do not, or a part has something that a bundle does not write.
    """
    for _, part in packed.parts():
        _refuse_unsaved(part)
    ids_N = torch.tensor(some_ids(spec.num_embeddings))
    loaded = PackedTable.restore(spec.method, packed.manifest(), packed.state_dict())
    try:
        rows_ND, again_ND = packed.lookup(ids_N), loaded.lookup(ids_N)
    except Exception as error:  # whatever an author's steps raise
        raise ConfigError(
            f"what is served of it can't be looked up: {type(error).__name__}: {error}. All that address, side, "
            "combine and take read is a fact that `held` names, or a buffer or parameter of the spine or codec itself"
        ) from error
    shape = (len(ids_N), spec.embedding_dim)
    if rows_ND.shape != shape or rows_ND.dtype != torch.float32:
        raise ConfigError(
            f"what is served of it gives {rows_ND.dtype} {list(rows_ND.shape)} for {len(ids_N)} ids, not fp32 "
            f"{list(shape)}; mend `served`"
        )
    if not torch.equal(rows_ND.nan_to_num(), again_ND.nan_to_num()):
        raise ConfigError(
            "what is served of it gives other rows once it was saved and loaded; all that address, side, combine and "
            "take read is a fact that `held` names, or a buffer of the spine or codec itself"
        )


def _refuse_unsaved(part: Spine | Coded) -> None:
    """Raises ConfigError where a part has tensors that a bundle would not make again as they are."""
    cls = type(part).__name__
    inner = next((name for name, _ in (*part.named_buffers(), *part.named_parameters()) if "." in name), None)
    if inner is not None:
        raise ConfigError(f"tensor '{inner}' of {cls} is a submodule's; register it as a buffer of {cls} itself")
    learned = next((name for name, _ in part.named_parameters()), None)
    if learned is not None:
        raise ConfigError(f"'{learned}' of {cls} is a parameter, and what is served is not trained; make it a buffer")


def looked_up(table: PackedTable, ids_N: Tensor, *, spec: TableSpec) -> Tensor:
    """Logical rows [N, D] of a table that may have been made from damaged files.

    Its first and last id were tried when it was restored; only now it may turn out that others lead nowhere.

    Args:
        table: what looks up.
        ids_N: int64 [N].
        spec: of the table.

    Raises:
        CheckpointError: an id that the table has can't be looked up.
    """
    try:
        return table.lookup(ids_N)
    except Exception as error:  # whatever a lookup of wrong tensors raises
        if is_followed() or isinstance(error, EmbankError):  # exporters learn from what is raised
            raise
        refuse_exhausted(error, doing=f"looking up {ids_N.numel():,} ids of table '{spec.name}'")
        raise CheckpointError(
            f"ids of table '{spec.name}' can't be looked up: {cause_of(error)}. What is served of it is damaged, or "
            f"the ids are none of its {spec.num_embeddings:,}: copy or export its bundle again"
        ) from error


def tried(table: PackedTable, spec: TableSpec) -> PackedTable:
    """A restored table, tried on its first and its last id.

    Raises:
        CheckpointError: facts and tensors don't make a table of the spec's size.
    """
    ends = torch.tensor([0, spec.num_embeddings - 1])
    try:
        shape = tuple(table.lookup(ends).shape)
    except Exception as error:  # whatever a lookup of wrong tensors raises
        raise CheckpointError(f"its tensors don't make a {type(table.spine).__name__}: {error}") from error
    if shape != (2, spec.embedding_dim):
        raise CheckpointError(
            f"its tensors give rows of width {shape[-1]}, where the table has dim {spec.embedding_dim}"
        )
    return table
