"""Which points of a grid a sweep runs, and which of them its lines take."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from embank.pipelines.sweep.comparison import validation
from embank.pipelines.sweep.edges import around
from embank.pipelines.sweep.feasible import Reach
from embank.pipelines.sweep.plan import Case, Job, Plan

_MOST_LEFT_OUT = 3
"""Lines whose points that were left out a page tells."""


def left_out_text(case: Case, reach: Reach) -> str:
    """Which points of the grid are left out of a line, for people; "" if none is."""
    points = [job.point for job in reach.left_out(case)]
    few = f"{' and '.join(points[:3])}{f' and {len(points) - 3} more' if len(points) > 3 else ''}"
    return f"left out of {case.name}, whose budget they can't reach: {few}" if points else ""


class Tuning:
    """The runs of a plan, as far as they are known: what follows a choice is known once its points are compared.

    Args:
        plan: what is run.
        feasible: lines of the plan that can be trained.
        complete: other lines, whose grids were run before; they decide as well what lines take.
        reach: which points reach a line's budget; the others are neither run nor taken.
        widens: where the best point lies at an end of the grid, go on beyond it.
        results: of complete runs; the caller adds those that end.
        failures: messages of runs that have failed, as `results`.
    """

    def __init__(
        self,
        plan: Plan,
        feasible: Sequence[Case],
        *,
        complete: Sequence[Case] = (),
        reach: Reach,
        widens: bool,
        results: Mapping[Job, Mapping[str, Any]],
        failures: Mapping[Job, str],
    ) -> None:
        self.plan, self.feasible, self.results, self.failures = plan, feasible, results, failures
        self.tunable, self.reach = [*feasible, *complete], reach
        self.widens = widens and bool(plan.grid)
        self.neighbours: dict[tuple[Job, ...], list[Job]] = {}  # of a point, by the points that were tried and failed

    def wanted(self) -> list[Job]:
        """Every run that is known to be needed: first seeds of grids, and where their points are compared, what takes
        their choice."""
        wanted: dict[Job, None] = {}
        for case in self.feasible:
            wanted |= dict.fromkeys(self._points(self._tuned_with(case)))
            point = self.chosen(case)
            if point is not None:
                wanted |= dict.fromkeys(Job(case=case, seed=seed, point=point) for seed in self.plan.seeds)
        return list(wanted)

    def num_jobs(self) -> int:
        """Runs in all, those of points that are not known yet aside."""
        grids = {self._tuned_with(case) for case in self.feasible}
        own = sum(case in self.feasible for case in grids)  # whose chosen point is one of the grid's and one of a seed
        return sum(len(self._points(case)) for case in grids) - own + len(self.plan.seeds) * len(self.feasible)

    def chosen(self, case: Case) -> str | None:
        """The point with the best first run on validation, of those that reach the line's own budget; None as long as
        one is missing, or if all have failed."""
        points = self._points(self._tuned_with(case))
        if len(points) == 1 and not self.widens:
            return points[0].point
        if self._best(points) is None:
            return None
        best = self._best([job for job in points if self.reach(replace(job, case=case))])
        return None if best is None else best.point

    def choices(self) -> tuple[dict[str, str], dict[str, list[str]], dict[str, list[str]]]:
        """Of each line whose grid was run its choice, the points that were tried, and those of them that failed."""
        cases = dict.fromkeys(self._tuned_with(case) for case in self.feasible)
        chosen = {case: point for case in cases if (point := self.chosen(case))}
        return (
            {case.name: point for case, point in chosen.items()},
            {case.name: [job.point for job in self._points(case)] for case in chosen},
            {case.name: [job.point for job in self._points(case) if job not in self.results] for case in chosen},
        )

    def unsettled(self) -> list[str]:
        """Of grids that were widened, the choices that have a neighbour that failed, for people: what its runs would
        have said is not known, so that it is no end of the way."""
        found = []
        for line, chosen in (self.choices()[0] if self.widens else {}).items():
            points = self._points(next(case for case in self.tunable if case.name == line))
            failed = [job.point for job in points if job not in self.results]
            beside = [point for point in around(self.plan, chosen, [job.point for job in points]) if point in failed]
            if beside:
                found.append(
                    f"{line}: {' and '.join(beside)}, next to the chosen {chosen}, failed: whether better values lie "
                    "there is not settled; --resume tries again what failed"
                )
        return found

    def reaches(self, line: str, point: str) -> bool:
        """Whether a line of `choices` reaches its budget at a point."""
        cases = {case.name: case for case in self.tunable}
        return self.reach(Job(case=cases[line], seed=self.plan.seeds[0], point=point))

    def facts(self) -> list[str]:
        """What a leaderboard says of its choices; [] without a grid."""
        if not self.plan.grid:
            return []
        grid = "; ".join(f"{key} in {', '.join(map(str, values))}" for key, values in self.plan.grid.items())
        budget = self.plan.grid_budget
        lines = "each line" if budget is None else f"each method at budget {budget:g} or the next that it reaches"
        beyond = ", then from the neighbours of the best point beyond it, until none was better" if self.widens else ""
        left_out = [told for case in self.feasible if (told := left_out_text(case, self.reach))]
        more = [f"and of {len(left_out) - _MOST_LEFT_OUT} more lines"] if len(left_out) > _MOST_LEFT_OUT else []
        return [
            f"Chosen on validation with seed {self.plan.seeds[0]}, separately for {lines}, from the grid "
            f"{grid}{beyond}; test figures are those of the chosen point.",
            *([f"Points {'; '.join([*left_out[:_MOST_LEFT_OUT], *more])}."] if left_out else []),
        ]

    def _tuned_with(self, case: Case) -> Case:
        """`Plan.tuned_with`, where a point of that grid reaches the case's budget as well; else the case itself."""
        other = self.plan.tuned_with(case, self.tunable)
        return other if any(self.reach(replace(job, case=case)) for job in self.reach.points(other)) else case

    def _points(self, case: Case) -> list[Job]:
        """The first seed's runs of a case whose grid is run: the grid, and where it is to be widened, neighbours of the
        best point as far as they are known. Points that don't reach the case's budget are left out."""
        points = self.reach.points(case)
        while self.widens and (best := self._best(points)) is not None:
            missing = [job for job in self._around(best, points) if job not in points]
            if not missing:
                break
            points += missing
        return points

    def _around(self, best: Job, tried: Sequence[Job]) -> list[Job]:
        """`around`, as far as it reaches the budget. That tries configurations, so it is done once for each question:
        it is asked again after every run."""
        failed = [job for job in tried if job not in self.results]
        key = (best, *tried, *failed)
        if key not in self.neighbours:
            beside = around(self.plan, best.point, [job.point for job in tried], failed=[job.point for job in failed])
            self.neighbours[key] = [job for point in beside if self.reach(job := replace(best, point=point))]
        return self.neighbours[key]

    def _best(self, points: Sequence[Job]) -> Job | None:
        """The best run on validation; None as long as one is missing, or if all have failed."""
        if any(job not in self.results and job not in self.failures for job in points):
            return None
        complete = [job for job in points if job in self.results]
        return max(complete, key=lambda job: validation(self.results[job]), default=None)
