"""One table as it is served: a spine over coded matrices. And how it is made again from a file that names its parts.

A file names a method, a spine of that method's module and codecs; all of them come from registries. Nothing else that a
file names is imported or called.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.method.base import Combined, Method, Served, Spine, facts_of, frozen, restored
from embank.tables.method.registry import method_class
from embank.tables.serving.codecs.base import Coded
from embank.tables.serving.codecs.registry import codec_class, codec_name, encode
from embank.tables.specs import TableSpec

_PARTS = {"spine", "facts", "lookups", "matrices"}
"""What `PackedTable.manifest` tells."""


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
        self.matrices = nn.ModuleList(matrices)
        self.coded = tuple(matrices)  # the same; a ModuleList is slow to ask
        self.lookups = list(lookups)
        self.eval()

    @classmethod
    def of(cls, served: Served, *, codec: str = "fp32") -> "PackedTable":
        """What a method serves, its plain matrices held by a codec. It may share memory with the rows.

        Raises:
            ConfigError: there is no such codec, or rows alone can't be coded by it.
        """
        names = list(served.matrices)
        coded = [m if isinstance(m, Coded) else encode(m, codec=codec) for m in served.matrices.values()]
        return cls(frozen(served.spine), coded, [names.index(name) for name in served.lookups])

    def lookup(self, ids_N: Tensor) -> Tensor:
        """Logical rows [N, D] for ids int64 [N], N may be 0; ids out of range are the caller's to refuse."""
        spine, coded = self.spine, self.coded
        addressed = spine.address(ids_N)
        rows = tuple(coded[k].take(rows_N) for k, rows_N in zip(self.lookups, addressed, strict=True))
        combined = spine.combine(rows, spine.side(ids_N))
        assert not isinstance(combined, Combined), "only a training pass adds to the loss"
        return combined

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
        return cls(spine, matrices, manifest["lookups"])


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


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


def pack_table(method: Method, rows: Mapping[str, Tensor], *, codec: str = "fp32") -> PackedTable:
    """The served form of one table.

    Args:
        method: the table's.
        rows: fp32 [R, width] of each physical table by name. The result may share memory with them.
        codec: how matrices are held that the method does not code itself.

    Raises:
        ConfigError: the method's module does not name its spine, so that nobody could load a bundle of it.

    Example:
        >>> spec = TableSpec(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])
        >>> tables = TableCollection([spec])
        >>> pack_table(build_method(spec), tables.weights(), codec="fp32").nbytes()
        32000
    """
    packed = PackedTable.of(method.served(rows), codec=codec)
    name = type(packed.spine).__name__
    if spine_class(method.spec.method, name) is not type(packed.spine):
        raise ConfigError(
            f"table '{method.spec.name}': its spine {type(packed.spine).__module__}.{name} is not named in the module "
            f"of method '{method.spec.method}', where a bundle looks for it; define or import it there"
        )
    return packed


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
