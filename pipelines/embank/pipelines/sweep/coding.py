"""Complete runs of a sweep under codecs: what is missing is evaluated, nothing is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.coded import UNCODED, coded_figures, coded_file, evaluate_codecs
from embank.pipelines.sweep.children import Child, Ended, run_children
from embank.pipelines.sweep.comparison import CaseResults
from embank.pipelines.sweep.folder import SweepFolder
from embank.pipelines.sweep.plan import Case, Job
from embank.pipelines.train.interrupt import StopRequest

_METRICS = ("auc", "logloss", "gauc")


class Coding:
    """Evaluates runs under codecs, those of a run one after the other, several runs at a time.

    Args:
        folder: the sweep's.
        data: the prepared folder.
        reporter: is told a line per run.
    """

    def __init__(self, folder: SweepFolder, *, data: Path, reporter: Reporter) -> None:
        self.folder, self.data, self.reporter = folder, data, reporter
        self.failures: dict[Job, str] = {}

    def evaluate(self, wanted: Mapping[Job, Sequence[str]], *, num_jobs: int, stop: StopRequest) -> None:
        """Makes the figures that are missing; a codec that can't hold a run's rows has a refusal in place of them.

        Args:
            wanted: the codecs of each run.
            num_jobs: runs at a time.
            stop: a request to stop.
        """
        missing = {
            job: [codec for codec in codecs if codec != UNCODED and self._figures(job, codec) is None]
            for job, codecs in wanted.items()
        }
        self.waiting = {f"{job.name} under codecs": (job, named) for job, named in missing.items() if named}
        self.num_missing, self.stop = len(self.waiting), stop
        run_children(
            lambda: list(self.waiting), self._child, self._ended, lambda _: set(), num_jobs=num_jobs, stop=stop
        )

    def _child(self, name: str) -> Child:
        job, codecs = self.waiting[name]
        work = partial(evaluate_codecs, self.folder.run(job).path, data=self.data, codecs=codecs)
        return Child(name=name, log=self.folder.log(job, of="codecs"), work=work)

    def _figures(self, job: Job, codec: str) -> dict[str, Any] | None:
        return coded_figures(self.folder.run(job), codec)

    def _ended(self, end: Ended) -> None:
        job, codecs = self.waiting.pop(end.name)
        if end.message is None:
            done = f"{self.num_missing - len(self.waiting)}/{self.num_missing}"
            self.reporter.note(f"[{done}] {job.name} under {', '.join(codecs)}: evaluated, {end.seconds:.0f} s")
        elif self.stop:
            self.reporter.note(f"{job.name} under codecs: stopped")
        else:
            self.failures[job] = end.message
            self.reporter.note(f"{job.name} under codecs: failed: {end.message}")

    def codecs_of(self, case: Case, asked: Sequence[str]) -> list[str]:
        """The codecs of a line: those asked for, and those under which any of its runs was evaluated before, whatever
        the seed and the point of the grid, since a line that was there stays."""
        others = [codec for codec in self.folder.codecs if codec not in asked]
        if not others:
            return [*asked]
        runs = [
            self.folder.run(Job(case=case, seed=seed, point=point))
            for point, by_seed in self.folder.complete_runs(case).items()
            for seed in by_seed
        ]
        return [*asked, *(codec for codec in others if any(coded_file(run, codec).is_file() for run in runs))]

    def entries(self, entry: CaseResults, codecs: Sequence[str], *, asked: Sequence[str]) -> list[CaseResults]:
        """A line without codec, and its lines under codecs: those asked for, and others that are complete."""
        plain = replace(entry, codec=UNCODED)
        if not entry.by_seed:
            return [plain]
        coded = [self._entry(entry, codec) for codec in codecs if codec != UNCODED]
        return [plain, *(one for one in coded if one.is_whole or one.codec in asked)]

    def _entry(self, entry: CaseResults, codec: str) -> CaseResults:
        jobs = {seed: Job(case=entry.case, seed=seed, point=entry.point) for seed in entry.by_seed}
        found = {seed: self._figures(job, codec) for seed, job in jobs.items()}
        missing = "no figures; go on with --resume"
        return replace(
            entry,
            codec=codec,
            by_seed={s: coded_result(entry.by_seed[s], made) for s, made in found.items() if made and "test" in made},
            uncoded=entry.by_seed,
            failures={
                **entry.failures,
                **{jobs[s].name: self.failures.get(jobs[s], missing) for s, made in found.items() if made is None},
            },
            failed_points={},
            refused={jobs[s].name: str(made["refusal"]) for s, made in found.items() if made and "refusal" in made},
            latency=None,
        )


def coded_result(result: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json would hold of a run under a codec.

    Args:
        result: of the run.
        figures: see `coded_figures`.
    """
    nbytes, plain = figures["serving_bytes"], result.get("plain_bytes")
    scores = {name: figures["test"].get(name) for name in _METRICS if name in figures["test"]}
    judged = {f"valid_{name}": figures["valid"].get(name) for name in _METRICS if name in figures["valid"]}
    own = {"serving_bytes": nbytes, "serving_ratio": None if plain is None else nbytes / plain, "nominal_ratio": None}
    return {**result, **scores, **judged, **own, "codec": figures["codec"]}
