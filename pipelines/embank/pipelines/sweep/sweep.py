"""A sweep from a plan to a leaderboard."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from embank.pipelines.config.run import Config, parse_config, to_plain
from embank.pipelines.data.schema import Schema
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.folder import is_training
from embank.pipelines.sweep.children import Child, Ended, num_cores, run_children
from embank.pipelines.sweep.coding import Coding
from embank.pipelines.sweep.comparison import CaseResults, validation
from embank.pipelines.sweep.edges import edges
from embank.pipelines.sweep.feasible import Feasibility, Reach
from embank.pipelines.sweep.folder import SweepFolder
from embank.pipelines.sweep.latency import measure
from embank.pipelines.sweep.leaderboard import (
    FAILED,
    Row,
    leaderboard,
    leaderboard_facts,
    write_csv,
)
from embank.pipelines.sweep.page import write_markdown
from embank.pipelines.sweep.plan import Case, Job, Plan
from embank.pipelines.sweep.tuning import Tuning, left_out_text
from embank.pipelines.train.interrupt import stop_on_signals
from embank.tables import ConfigError, EmbankError, WorkError
from embank.tables.storage.refusals import writing


class InterruptedSweepError(WorkError):
    """A signal stopped the sweep; its runs were saved and can be resumed."""


class Sweep:
    """Trains every run of a plan that is not complete yet, several at a time, and compares them.

    Args:
        plan: what is run.
        out: the sweep's directory.
        num_jobs: runs at a time; None takes one per core. The cores are divided among them.
        reporter: is told a line per run.
    """

    def __init__(
        self,
        plan: Plan,
        out: str | Path,
        *,
        num_jobs: int | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        if num_jobs is not None and num_jobs < 1:
            raise ConfigError(f"--jobs is {num_jobs}; it must be at least 1")
        self.plan, self.folder = plan, SweepFolder(out)
        self.reporter = reporter or Reporter()
        self.num_jobs = num_jobs or num_cores()
        self.data = Path(parse_config(plan.config).data.path)
        self.results: dict[Job, dict[str, Any]] = {}
        self.failures: dict[Job, str] = {}
        self.told_busy: set[str] = set()

    def run(self, *, resume: bool = False) -> list[Row]:
        """Runs what is missing; writes leaderboard.csv, leaderboard.md and pareto.png.

        Args:
            resume: go on with what a stopped sweep has left, or with a plan of other methods, budgets or seeds. What is
                complete of earlier plans stays in the leaderboard.

        Returns:
            The leaderboard.

        Raises:
            ConfigError, CheckpointError, DataError: bad input.
            InterruptedSweepError: a signal stopped it.
        """
        feasibility = Feasibility(self.data)
        self._refuse_budgets_without_vocabulary(feasibility.schema)
        with self.folder.opened(self.plan, resume=resume) as all_cases, stop_on_signals() as self.stop:
            self.reach = Reach(self.plan, feasibility)
            asked = self.plan.cases()
            entries = {}
            for case in asked:
                self._refuse_to_go_on(done="before its first run")
                entries[case] = self._feasible(case)
                if entries[case].refusal is None and (told := left_out_text(case, self.reach)):
                    self.reporter.note(told)
            self.tuning = Tuning(
                self.plan,
                [entry.case for entry in entries.values() if entry.refusal is None],
                complete=[case for case in all_cases if case not in entries and self._has_grid(case)],
                reach=self.reach,
                widens=self.folder.widens,
                results=self.results,
                failures=self.failures,
            )
            self._train()
            compared = []
            for case in all_cases:
                self._refuse_to_go_on()
                entry = self._compared(entries[case]) if case in entries else self._earlier(case)
                compared += [] if entry is None else [entry]
            self.kept = [entry.case for entry in compared if entry.case not in entries and entry.point]
            self.made_by = Counter(
                self.folder.made_by(Job(case=entry.case, seed=seed, point=entry.point))
                for entry in compared
                for seed in entry.by_seed
            )
            rows = leaderboard(self._coded(compared, asked=asked) if self.folder.codecs else compared)
            self._write(rows)
            return rows

    def _has_grid(self, case: Case) -> bool:
        """Whether the whole grid of a line was run, points out of reach aside, where that decides for others."""
        if self.plan.grid_budget is None:
            return False
        complete = self.folder.complete_runs(case)
        if not complete:
            return False
        points = self.reach.points(case)
        return bool(points) and all(job.seed in complete.get(job.point, {}) for job in points)

    def _refuse_budgets_without_vocabulary(self, schema: Schema) -> None:
        if any(field.has_vocabulary for field in schema.categorical) or self.plan.budgets == [None]:
            return
        raise ConfigError(
            f"no column of '{self.data}' has a vocabulary (their ids are hashes of tokens), so there are no plain "
            "tables that budgets could be "
            "shares of; leave --budgets out and give sizes with the methods: "
            "--methods hash:num_rows=10000,hash:num_rows=1000,unified:rows=10000"
        )

    def _feasible(self, case: Case) -> CaseResults:
        entry = CaseResults(case=case, point="", by_seed={}, failures={}, failed_points={})
        infeasible = self.reach.infeasible(case)
        if infeasible is None:
            return entry
        floor = infeasible.floor
        self.reporter.note(f"{case.name}: infeasible{'' if floor is None else f', floor {floor:g}'}")
        return replace(entry, refusal=infeasible.refusal, floor=floor)

    def _train(self) -> None:
        self._read_results()
        if self.results:
            num = len(self.results)
            self.reporter.note(f"{num} run{' is' if num == 1 else 's are'} complete already")
        run_children(
            self._waiting,
            self._child,
            self._ended,
            self._busy,
            num_jobs=self.num_jobs,
            stop=self.stop,
        )
        self._refuse_to_go_on()

    def _refuse_to_go_on(self, *, done: str = "", left: str = "those that ran are saved") -> None:
        if self.stop:
            told = done or f"after {len(self.results)} complete runs of {self.tuning.num_jobs()}; {left}"
            raise InterruptedSweepError(
                f"{self.stop.signal}: stopped {told}; go on with the same command and --resume (directory "
                f"'{self.folder.path}')"
            )

    def _read_results(self) -> None:
        """Reads the results of runs that have become complete, until that makes no further runs wanted."""
        while True:
            complete = [
                job for job in self.tuning.wanted() if job not in self.results and self.folder.run(job).result.is_file()
            ]
            if not complete:
                break
            self.results |= {job: self.folder.result_of(self.folder.run(job)) for job in complete}

    def _waiting(self) -> list[str]:
        self._read_results()  # also of runs that another process has ended meanwhile
        self.jobs = {job.name: job for job in self.tuning.wanted()}
        return [name for name, job in self.jobs.items() if job not in self.results and job not in self.failures]

    def _busy(self, names: Sequence[str]) -> set[str]:
        """Runs that another process trains: what a killed sweep has left takes a moment to end."""
        busy = {name for name in names if is_training(self.folder.run(self.jobs[name]).path)}
        for name in sorted(busy - self.told_busy):
            self.reporter.note(f"{name}: another process is training it; waiting for it to end")
        self.told_busy |= busy
        return busy

    def _child(self, name: str) -> Child:
        job = self.jobs[name]
        run, config = self.folder.run(job), self.folder.write_config(job, self.plan)
        arguments = ["train", str(config), "--out", str(run.path), *(["--resume"] if run.is_run else [])]
        return Child(name=name, arguments=arguments, log=self.folder.log(job))

    def _ended(self, end: Ended) -> None:
        job = self.jobs[end.name]
        run = self.folder.run(job)
        if run.result.is_file():
            self.results[job] = self.folder.result_of(run)
            auc = self.results[job]["auc"]
            told = "AUC undefined" if auc is None else f"AUC {auc:.4f}"
            done = f"{len(self.results) + len(self.failures)}/{self.tuning.num_jobs()}"
            self.reporter.note(f"[{done}] {job.name}: {told}, {end.seconds:.0f} s")
        elif self.stop:
            self.reporter.note(f"{job.name}: stopped")
        else:
            self.failures[job] = end.message or "it ended without a result"
            self.reporter.note(f"{job.name}: failed: {self.failures[job]}")

    def _earlier(self, case: Case) -> CaseResults | None:
        """A line that was asked for earlier and not now, as far as it is complete: nothing is trained for it.

        Its point of the grid is the one that is best on validation among the runs of the seed that most points have.
        """
        points = self.folder.complete_runs(case)
        if not points:
            entry = self._feasible(case)
            if entry.refusal is None:
                self.reporter.note(f"{case.name}: not complete and not asked for now, so it is not in the leaderboard")
            return None if entry.refusal is None else entry
        seed = max(
            {seed for runs in points.values() for seed in runs}, key=lambda seed: (_num_points(points, seed), -seed)
        )
        point = max((p for p in points if seed in points[p]), key=lambda p: validation(points[p][seed]))
        return self._with_runs(
            CaseResults(case=case, point=point, by_seed={}, failures={}, failed_points={}), points[point]
        )

    def _with_runs(self, entry: CaseResults, by_seed: Mapping[int, Mapping[str, Any]]) -> CaseResults:
        """A case with results by seed, and the speed of its first run's packed tables."""
        if not by_seed:
            return entry
        first = Job(case=entry.case, seed=next(iter(by_seed)), point=entry.point)
        try:
            latency = measure(self.folder.run(first).path, data=self.data)
        except EmbankError as error:  # its checkpoints may be gone; the figures of the run are there all the same
            self.reporter.note(f"{first.name}: lookups can't be measured: {error}")
            latency = None
        return replace(entry, by_seed=by_seed, latency=latency)

    def _compared(self, entry: CaseResults) -> CaseResults:
        """A case with its results: of the plan's seeds, then of those that were complete before."""
        failed = {job: text for job, text in self.failures.items() if job.case == entry.case}
        point = self.tuning.chosen(entry.case)
        if entry.refusal is not None or point is None:
            return replace(entry, failures={job.name: text for job, text in failed.items()})
        done = self.folder.complete_runs(entry.case).get(point, {})
        seeds = [*(seed for seed in self.plan.seeds if seed in done), *sorted(set(done) - set(self.plan.seeds))]
        compared = replace(
            entry,
            point=point,
            failures={job.name: text for job, text in failed.items() if job.point == point},
            failed_points={job.name: text for job, text in failed.items() if job.point != point},
        )
        return self._with_runs(compared, {seed: done[seed] for seed in seeds})

    def _coded(self, compared: Sequence[CaseResults], *, asked: Sequence[Case]) -> list[CaseResults]:
        """Lines with those of the same runs under codecs; of what was not asked for now as far as it is complete."""
        coding = Coding(self.folder, data=self.data, reporter=self.reporter)
        codecs = {case: coding.codecs_of(case, self.plan.codecs) for case in asked}
        wanted = {
            Job(case=entry.case, seed=seed, point=entry.point): codecs[entry.case]
            for entry in compared
            if entry.case in codecs
            for seed in entry.by_seed
        }
        coding.evaluate(wanted, num_jobs=self.num_jobs, stop=self.stop)
        self._refuse_to_go_on(left=f"codecs of {len(coding.waiting)} runs are still to be evaluated")
        return [
            line
            for entry in compared
            for line in coding.entries(entry, self.folder.codecs, asked=codecs.get(entry.case, ()))
        ]

    def _write(self, rows: list[Row]) -> None:
        from embank.pipelines.sweep.composition import plot_compositions  # matplotlib takes a second to import
        from embank.pipelines.sweep.pareto import plot_pareto

        told_edges = [str(edge) for edge in edges(self.plan, *self.tuning.choices(), reaches=self.tuning.reaches)]
        told_edges += self.tuning.unsettled()
        for told in told_edges:
            self.reporter.note(told)
        title = f"{', '.join(self.plan.models)} on {self.data.name}"
        facts = leaderboard_facts(rows, data=self.data, num_jobs=self.num_jobs, num_cores=num_cores())
        facts += [*self.tuning.facts(), *told_edges]
        if self.kept:
            names = ", ".join([*(case.name for case in self.kept[:3]), *(["..."] if len(self.kept) > 3 else [])])
            facts.append(
                f"Lines of earlier commands, chosen on the grids of those: {len(self.kept)} ({names}). Each has the "
                "point that is best on validation among its runs."
            )
        if len(self.made_by) > 1:
            told = "; ".join(f"{versions}: {num}" for versions, num in self.made_by.most_common())
            facts.append(f"Runs were made by several versions. {told}.")
        with writing(f"the leaderboard in '{self.folder.path}'", cure="Make room and go on with --resume"):
            write_csv(rows, self.folder.csv)
            write_markdown(rows, self.folder.markdown, title=title, facts=facts)
            plot_pareto([row for row in rows if row.is_alone], self.folder.plot, title=title)
            if self.folder.codecs:
                plot_compositions(rows, self.folder.composition, title=title)

    def refuse_failures(self, rows: list[Row]) -> None:
        """Raises WorkError if a line lacks a run that has failed; the leaderboard is there all the same."""
        failed = [row for row in rows if row.status == FAILED]
        if failed:
            raise WorkError(
                f"runs of {len(failed)} of {len(rows)} lines failed, the first one: {failed[0].note}. The leaderboard "
                "is written all the same; "
                f"what the runs printed is in '{self.folder.path / 'logs'}', and --resume tries the failed ones again"
            )


def run_sweep(
    config: Config | Mapping[str, Any],
    *,
    methods: Sequence[str],
    out: str | Path,
    budgets: Sequence[float] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    models: Sequence[str] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    grid_budget: float | None = None,
    codecs: Sequence[str] = (),
    widen: bool = False,
    jobs: int | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> list[Row]:
    """Trains methods at budgets with several seeds and compares them: `embank sweep`.

    Runs are child processes, started by `multiprocessing`: a script that calls this keeps the call under
    `if __name__ == "__main__":`.

    Args:
        config: what all runs share.
        methods: names, or "name:key=value" for other options than the configuration's.
        out: the sweep's directory: runs, leaderboard.csv, leaderboard.md, pareto.png.
        budgets: serving bytes / bytes of the plain tables; None takes the configuration's.
        seeds: of each combination.
        models: instead of the configuration's.
        grid: by key, the values to choose from on validation with the first seed.
        grid_budget: run the grid at this budget only.
        codecs: evaluate each run under these too, without training it again; each is a line of its own.
        widen: where the best point lies at an end of the grid, go on beyond it until no neighbour is better.
        jobs: runs at a time; None takes one per core.
        resume: go on with the runs that are missing or were stopped.
        reporter: is told a line per run.

    Returns:
        The leaderboard.

    Raises:
        ConfigError, CheckpointError, DataError: bad input.
        WorkError: a signal stopped it, or runs failed; the leaderboard is written all the same.
    """
    parsed = config if isinstance(config, Config) else parse_config(config)
    plan = Plan(
        config=to_plain(config) if isinstance(config, Config) else config,
        models=[parsed.model["name"]] if models is None else models,
        methods=methods,
        budgets=[parsed.tables.default.budget] if budgets is None else budgets,
        seeds=seeds,
        grid=grid or {},
        grid_budget=grid_budget,
        codecs=codecs,
        widen=widen,
    )
    sweep = Sweep(plan, out, num_jobs=jobs, reporter=reporter)
    rows = sweep.run(resume=resume)
    sweep.refuse_failures(rows)
    return rows


def _num_points(points: Mapping[str, Mapping[int, Any]], seed: int) -> int:
    return sum(seed in runs for runs in points.values())
