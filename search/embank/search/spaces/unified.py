"""Unified Embedding as a space: rows and width of the table that all features share, and lookups by feature."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from embank.compression.methods.unified import fixed_nbytes
from embank.compression.multiplexing.specs import unified_specs
from embank.search.spaces.base import Space
from embank.search.spaces.parameter import Genes, Group, Parameter, Value
from embank.tables import ConfigError, TableSpec


class UnifiedSpace(Space):
    """How many rows one table for all features has, how wide they are, and how many of them each feature looks up.

    A feature's lookups cost time and collisions but no rows, so the bytes hang on `rows` and `width` (and a little on
    salts and projections).

    Args:
        specs: the plain tables, of one feature each.
        rows: numbers of rows to try, rising.
        widths: widths of a row to try, rising.
        lookups: numbers of lookups of a feature to try, rising.
        embedding_dim: of every feature, by a learned projection where it is not lookups * width; None takes lookups *
            width, for models that take features of different dims.
        exact_below: tables of fewer ids stay plain.

    A candidate's parameters are `rows`, `width`, and `lookups.TABLE` for each table that is not plain.

    Source: Coleman et al., NeurIPS 2023; they leave the lookups to the practitioner.

    >>> specs = [TableSpec(name=n, num_embeddings=200, embedding_dim=16, feature_names=[n]) for n in ("a", "b")]
    >>> space = UnifiedSpace(specs, rows=[100, 200])
    >>> candidate = {"rows": 100, "width": 8, "lookups.a": 1, "lookups.b": 4}
    >>> space.nbytes(candidate), space.num_lookups(candidate)
    (3240, 5)
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        rows: Sequence[int],
        widths: Sequence[int] = (4, 8, 16),
        lookups: Sequence[int] = (1, 2, 4),
        embedding_dim: int | None = None,
        exact_below: int = 100,
    ) -> None:
        for spec in specs:
            if len(spec.feature_names) != 1:
                raise ConfigError(
                    f"table '{spec.name}' has {len(spec.feature_names)} features; a unified table takes one each"
                )
        if embedding_dim is not None and max(widths) > embedding_dim:
            raise ConfigError(f"a width of {max(widths)} is more than the embedding dim {embedding_dim}; leave it out")
        self.tables, self.embedding_dim, self.exact_below = tuple(specs), embedding_dim, exact_below
        self.shared = [spec for spec in specs if spec.num_embeddings >= exact_below]
        if not self.shared:
            raise ConfigError(f"no table has {exact_below} ids, so none would be shared; lower exact_below")
        common = (Parameter(name="rows", values=tuple(rows)), Parameter(name="width", values=tuple(widths)))
        groups = [
            Group(name=spec.name, parameters=(Parameter(name=f"lookups.{spec.name}", values=tuple(lookups)),))
            for spec in self.shared
        ]
        super().__init__([Group(name="", parameters=common), *groups], plain_nbytes=sum(s.plain_nbytes for s in specs))

    def specs(self, candidate: Mapping[str, Value]) -> list[TableSpec]:
        """One spec per table, in order; plain ones have the dim of a feature of one lookup, or `embedding_dim`."""
        lookups = {spec.name: int(candidate.get(f"lookups.{spec.name}", 1)) for spec in self.tables}
        return unified_specs(
            rows=int(candidate["rows"]),
            width=int(candidate["width"]),
            lookups=lookups,
            num_embeddings={spec.name: spec.num_embeddings for spec in self.tables},
            embedding_dim=self.embedding_dim,
            exact_below=self.exact_below,
        )

    def num_lookups(self, candidate: Mapping[str, Value]) -> int:
        """Rows that an example of one id per feature reads: what a second objective may be, since bytes are not."""
        shared = sum(int(candidate[f"lookups.{spec.name}"]) for spec in self.shared)
        return shared + len(self.tables) - len(self.shared)

    def nbytes_of(self, genes: Genes) -> int:
        values = self.decode(genes)
        rows, width = int(values["rows"]), int(values["width"])
        lookups = tuple(int(values[f"lookups.{spec.name}"]) for spec in self.shared)
        return 4 * rows * width + self._exact_nbytes(width) + sum(self._fixed(width, count) for count in lookups)

    def _exact_nbytes(self, width: int) -> int:
        dim = self.embedding_dim or width
        return sum(4 * spec.num_embeddings * dim for spec in self.tables if spec.num_embeddings < self.exact_below)

    @lru_cache(maxsize=1024)  # noqa: B019 - a space lives as long as its search
    def _fixed(self, width: int, lookups: int) -> int:
        """Salts and projection of one feature."""
        name = self.shared[0].name
        (spec,) = unified_specs(
            rows=1, width=width, lookups={name: lookups}, embedding_dim=self.embedding_dim, exact_below=0
        )
        return fixed_nbytes(spec)

    def floor(self) -> Genes:
        return self._extreme(min)

    def ceiling(self) -> Genes:
        return self._extreme(max)

    def _extreme(self, pick: Callable[..., Any]) -> Genes:
        """Over rows and widths; for each, the lookups with the least or the most bytes, which need not be the fewest or
        the most: a projection falls away where lookups * width is the embedding dim."""
        found = []
        for gene in self.groups[0].genes:
            width = int(self.groups[0].values(gene)["width"])
            counts = self.groups[1].parameters[0].values
            chosen = pick(range(len(counts)), key=lambda k: self._fixed(width, int(counts[k])))
            found.append((gene, *((chosen,) for _ in self.shared)))
        extreme: Genes = pick(found, key=self.nbytes_of)
        return extreme
