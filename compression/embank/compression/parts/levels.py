"""What OptEmbed's evolution chooses from: how many ids of each table keep a row, and how wide the rows are."""

import random
from collections.abc import Sequence

from embank.compression.parts.evolution import Candidate, Gene
from embank.compression.parts.sparse import rank_nbytes
from embank.tables import TableSpec


def shape_nbytes(spec: TableSpec, *, num_kept: int, width: int) -> int:
    """Serving bytes of a table: kept entries, and the bitmap of kept ids unless all are."""
    bitmap = rank_nbytes(spec.num_embeddings, num_kept) if num_kept < spec.num_embeddings else 0
    return 4 * max(1, num_kept) * width + bitmap


class Space:
    """What the search chooses from: for each table a level of rows and a width.

    Args:
        specs: the tables; the budgets of those that have one are one pool.
        counts: for each table, rows kept at each level, falling; the last one may keep all.
    """

    def __init__(self, specs: Sequence[TableSpec], counts: Sequence[Sequence[int]]) -> None:
        self.specs, self.counts = specs, counts
        self.limited = [t for t, spec in enumerate(specs) if spec.budget is not None]
        self.limit = sum((spec.budget or 0) * spec.plain_nbytes for spec in specs)
        self.bytes = [[self._bytes(spec, count) for count in own] for spec, own in zip(specs, counts, strict=True)]

    @staticmethod
    def _bytes(spec: TableSpec, num_kept: int) -> tuple[int, int]:
        """Of a level: those of the bitmap, and those of a column."""
        none, one = (shape_nbytes(spec, num_kept=num_kept, width=width) for width in (0, 1))
        return none, one - none

    def cost(self, table: int, gene: Gene) -> int:
        """Serving bytes of one table."""
        level, width = gene
        bitmap, column = self.bytes[table][level]
        return bitmap + width * column

    def excess(self, candidate: Candidate) -> float:
        """Bytes beyond the pool; at most 0 if the candidate is allowed."""
        return sum(self.cost(t, candidate[t]) for t in self.limited) - self.limit

    def draw(self, table: int, rng: random.Random) -> Gene:
        """A random gene: every width is as likely, each level half as likely as the one before."""
        level, last = 0, len(self.counts[table]) - 1
        while level < last and rng.random() < 0.5:
            level += 1
        return level, rng.randint(1, self.specs[table].embedding_dim)

    def repair(self, candidate: Candidate, rng: random.Random) -> Candidate:
        """Shrinks random tables until the candidate is allowed, then widens some to use what is left."""
        genes = list(candidate)
        if self.excess(candidate) <= 0:
            return candidate
        while self.excess(tuple(genes)) > 0:
            table = rng.choice([t for t in self.limited if self._smaller(t, genes[t])])
            genes[table] = rng.choice(self._smaller(table, genes[table]))
        for table in rng.sample(self.limited, len(self.limited)):
            genes[table] = self._widened(table, genes[table], spare=-self.excess(tuple(genes)))
        return tuple(genes)

    def _smaller(self, table: int, gene: Gene) -> list[Gene]:
        """Cheaper genes nearby: one column less, half of the columns, the next level that saves bytes (a bitmap costs
        some)."""
        level, width = gene
        narrower: list[Gene] = [(level, w) for w in sorted({width - 1, width // 2}) if w >= 1]
        levels = [*range(level + 1, len(self.counts[table])), *range(level)]
        others: list[Gene] = [(k, width) for k in levels]
        return narrower + [other for other in others if self.cost(table, other) < self.cost(table, gene)][:1]

    def _widened(self, table: int, gene: Gene, *, spare: float) -> Gene:
        level, width = gene
        more = int(spare // (4 * max(1, self.counts[table][level])))
        return level, min(self.specs[table].embedding_dim, width + more)

    def default(self) -> Candidate:
        """Chosen by cost alone: for each table the first level that leaves a quarter of the columns within its own
        budget."""
        return tuple(self._default(table) for table in range(len(self.specs)))

    def _default(self, table: int) -> Gene:
        spec = self.specs[table]
        dim = spec.embedding_dim
        if spec.budget is None:
            return 0, dim
        widest = (0, 0)
        for level in range(len(self.counts[table])):
            spare = spec.budget * spec.plain_nbytes - self.cost(table, (level, 0))
            width = self._widened(table, (level, 0), spare=spare)[1] if spare >= 0 else 0
            if 4 * width >= dim:
                return level, width
            widest = max(widest, (width, level))
        return widest[1], max(1, widest[0])
