"""A streaming vocabulary with dicts and loops: what the fast one is checked against."""

from dataclasses import dataclass, field

from embank.tables.streaming import StreamCounts, StreamingConfig


@dataclass
class SlowVocabulary:
    """The rules of `StreamingConfig`, one id at a time."""

    config: StreamingConfig
    capacity: int
    step: int = 0
    row_of: dict[int, int] = field(default_factory=dict)
    uses: dict[int, int] = field(default_factory=dict)  # of ids with a row
    seen: dict[int, int] = field(default_factory=dict)
    candidates: dict[int, list[int]] = field(default_factory=dict)  # id: count, last step
    given: set[int] = field(default_factory=set)  # rows that had an id once

    def learn(self, ids: list[int]) -> tuple[list[int], list[int], StreamCounts]:
        self.step += 1
        for id_ in ids:
            if id_ in self.row_of:
                self.uses[id_] += 1
                self.seen[id_] = self.step
            else:
                entry = self.candidates.setdefault(id_, [0, 0])
                entry[0] += 1
                entry[1] = self.step
        evictions = self._expire()
        resets: list[int] = []
        admissions = 0
        waiting = [i for i in set(ids) if i not in self.row_of and self.candidates[i][0] >= self.config.admit_after]
        for id_ in sorted(waiting, key=lambda i: (-self.candidates[i][0], i)):
            row = self._free_row()
            if row is None:
                victim = self._victim(self.candidates[id_][0])
                if victim is None:
                    break
                row = self._evict(victim)
                evictions += 1
            admissions += 1
            if row in self.given:
                resets.append(row)
            self.given.add(row)
            self.row_of[id_], self.uses[id_], self.seen[id_] = row, self.candidates.pop(id_)[0], self.step
        self._forget()
        rows = [self.row_of.get(id_, 0) for id_ in ids]
        hits = sum(row > 0 for row in rows)
        return (
            rows,
            resets,
            StreamCounts(
                lookups=len(ids),
                hits=hits,
                misses=len(ids) - hits,
                admissions=admissions,
                evictions=evictions,
                resets=len(resets),
            ),
        )

    def _expire(self) -> int:
        if self.config.max_age is None:
            return 0
        old = [id_ for id_ in self.row_of if self.step - self.seen[id_] > self.config.max_age]
        for id_ in old:
            self._evict(id_)
        return len(old)

    def _free_row(self) -> int | None:
        taken = set(self.row_of.values())
        return next((row for row in range(1, self.capacity) if row not in taken), None)

    def _victim(self, count: int) -> int | None:
        idle = [id_ for id_ in self.row_of if self.seen[id_] < self.step]
        if self.config.policy == "age" or not idle:
            return None
        if self.config.policy == "lru":
            return min(idle, key=lambda i: (self.seen[i], self.uses[i], i))
        victim = min(idle, key=lambda i: (self.uses[i], self.seen[i], i))
        return victim if count > self.uses[victim] else None

    def _evict(self, id_: int) -> int:
        del self.uses[id_], self.seen[id_]
        return self.row_of.pop(id_)

    def _forget(self) -> None:
        limit = self.capacity if self.config.candidates is None else self.config.candidates
        while len(self.candidates) > limit:
            del self.candidates[min(self.candidates, key=lambda i: (self.candidates[i][1], self.candidates[i][0], i))]
