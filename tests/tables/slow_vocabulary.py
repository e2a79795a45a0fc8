"""A streaming vocabulary with dicts and loops: what the fast one is checked against."""

from dataclasses import dataclass, field

from embank.tables.streaming import StreamCounts, StreamingConfig


@dataclass
class SlowVocabulary:
    """The rules of `StreamingConfig`, one id at a time."""

    config: StreamingConfig
    capacity: int
    step: int = 0
    slot_of: dict[int, int] = field(default_factory=dict)
    uses: dict[int, int] = field(default_factory=dict)  # of ids with a slot
    seen: dict[int, int] = field(default_factory=dict)
    candidates: dict[int, list[int]] = field(default_factory=dict)  # id: count, last step
    given: set[int] = field(default_factory=set)  # slots that had an id once

    def learn(self, ids: list[int]) -> tuple[list[int], list[int], StreamCounts]:
        self.step += 1
        for id_ in ids:
            if id_ in self.slot_of:
                self.uses[id_] += 1
                self.seen[id_] = self.step
            else:
                entry = self.candidates.setdefault(id_, [0, 0])
                entry[0] += 1
                entry[1] = self.step
        evictions = self._expire()
        resets: list[int] = []
        admissions = 0
        waiting = [i for i in set(ids) if i not in self.slot_of and self.candidates[i][0] >= self.config.admit_after]
        for id_ in sorted(waiting, key=lambda i: (-self.candidates[i][0], i)):
            slot = self._free_slot()
            if slot is None:
                victim = self._victim(self.candidates[id_][0])
                if victim is None:
                    break
                slot = self._evict(victim)
                evictions += 1
            admissions += 1
            if slot in self.given:
                resets.append(slot)
            self.given.add(slot)
            self.slot_of[id_], self.uses[id_], self.seen[id_] = slot, self.candidates.pop(id_)[0], self.step
        self._forget()
        slots = [self.slot_of.get(id_, 0) for id_ in ids]
        hits = sum(slot > 0 for slot in slots)
        return (
            slots,
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
        old = [id_ for id_ in self.slot_of if self.step - self.seen[id_] > self.config.max_age]
        for id_ in old:
            self._evict(id_)
        return len(old)

    def _free_slot(self) -> int | None:
        taken = set(self.slot_of.values())
        return next((slot for slot in range(1, self.capacity) if slot not in taken), None)

    def _victim(self, count: int) -> int | None:
        idle = [id_ for id_ in self.slot_of if self.seen[id_] < self.step]
        if self.config.policy == "age" or not idle:
            return None
        if self.config.policy == "lru":
            return min(idle, key=lambda i: (self.seen[i], self.uses[i], i))
        victim = min(idle, key=lambda i: (self.uses[i], self.seen[i], i))
        return victim if count > self.uses[victim] else None

    def _evict(self, id_: int) -> int:
        del self.uses[id_], self.seen[id_]
        return self.slot_of.pop(id_)

    def _forget(self) -> None:
        limit = self.capacity if self.config.candidates is None else self.config.candidates
        while len(self.candidates) > limit:
            del self.candidates[min(self.candidates, key=lambda i: (self.candidates[i][1], self.candidates[i][0], i))]
