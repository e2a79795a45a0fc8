"""A search from a plan to a trained model."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from embank.pipelines.config.run import Config, to_plain
from embank.pipelines.data.schema import Schema
from embank.pipelines.reporting import Reporter
from embank.pipelines.runs.bundle import write_bundle
from embank.pipelines.runs.folder import RunFolder
from embank.pipelines.runs.records import RESUME
from embank.pipelines.search.clashes import Clashes
from embank.pipelines.search.configspace import ConfigSpace, TrainedSpace, config_space
from embank.pipelines.search.cut import cut_model
from embank.pipelines.search.fields import FieldSpace, candidate_config
from embank.pipelines.search.folder import JOURNAL, SearchFolder
from embank.pipelines.search.frozen import frozen_setting, scorer_of, space_of
from embank.pipelines.search.job import Job, Setting, SettingOf
from embank.pipelines.search.pictures import complete, plot_history, plot_importance, plot_pareto, plot_slices
from embank.pipelines.search.plan import SearchPlan
from embank.pipelines.search.report import markdown, write_csv
from embank.pipelines.search.retrain import Entry, Retraining, best_entry, candidates_of, trained_entries
from embank.pipelines.search.shapes import profile_shapes, write_shapes
from embank.pipelines.search.storage import open_storage, storage_errors
from embank.pipelines.search.supernet import open_supernet, refuse_other_run, train_supernet
from embank.pipelines.search.training import training_setting
from embank.pipelines.search.trials import StoppedSearchError, num_done, quiet_optuna, recover_named, run_trials
from embank.pipelines.search.unreached import CLASH, is_unreached, unreached
from embank.pipelines.search.workers import helpers
from embank.pipelines.sweep.children import num_cores
from embank.pipelines.train.interrupt import StopRequest, stop_on_signals
from embank.search.profile import profile_plan
from embank.tables import BudgetError, ConfigError, WorkError
from embank.tables.storage.atomic import remove_folder, replace_text
from embank.tables.storage.refusals import writing
from embank.tables.wording import human_bytes

SAY_SECONDS = 10.0


class Search:
    """Finds shapes of tables, or whole configurations, and trains the best of them.

    Args:
        plan: what is searched.
        out: the search's directory.
        reporter: is told a line now and then, and how the supernet's training goes.
        opened: is called with the storage once it is there and the directory is this search's.
    """

    def __init__(
        self,
        plan: SearchPlan,
        out: str | Path,
        *,
        reporter: Reporter | None = None,
        opened: Callable[[str], None] = lambda storage: None,
    ) -> None:
        self.plan, self.folder, self.reporter = plan, SearchFolder(out), reporter or Reporter()
        self.opened = opened
        self.config = plan.parsed
        self.studies: dict[float | None, optuna.Study] = {}

    def run(self, *, resume: bool = False) -> dict[float | None, optuna.Study]:
        """Searches, trains the best candidates anew, and writes results.md, candidates.csv, pictures and best.yaml.

        Args:
            resume: go on with what a stopped search has left, or with more trials.

        Returns:
            The study of each budget; with `front` it is the same for all.

        Raises:
            ConfigError, CheckpointError, DataError, BudgetError: bad input.
            StoppedSearchError: a signal stopped it.
            WorkError: the storage can't be written, or trainings have failed.
        """
        self.is_resumed = resume
        self._refuse_space()
        self._refuse_short_profile()
        if self.plan.supernet is not None:  # before anything is written
            refuse_other_run(RunFolder(self.plan.supernet), config=self.config)
        if self.is_shared:
            self._refuse_storage()
        with self.folder.opened(self.plan, resume=resume), stop_on_signals() as stop:
            self.stop = stop
            self._refuse_storage()
            self.opened(self.plan.storage)
            self._tell_clashes()
            supernet = None if self.plan.trains else self._supernet()
            self._profile()
            for budget in self.plan.budgets[:1] if self.plan.front else self.plan.budgets:
                self.studies[budget] = self._search(budget, supernet)
            for budget in self.plan.budgets:
                self.studies.setdefault(budget, self.studies[self.plan.budgets[0]])
            unreached = self._unreached()
            if len(unreached) == len(self.studies):  # nothing to train again or to write
                raise unreached[0]
            entries = self._trained_again() if supernet is None else self._retrained(supernet)
            self._write(entries)
        self._refuse_failures(entries)
        if unreached:
            raise unreached[0]
        return self.studies

    @cached_property
    def space(self) -> FieldSpace | TrainedSpace:
        """What is searched."""
        if not self.plan.trains:
            return space_of(self.plan, self.config)
        return config_space(self.plan, budget=None, shapes=self.folder.shapes)

    def _refuse_space(self) -> None:
        """Makes every study's space, and asks it for the budget, before anything is written. What the methods of whole
        configurations reach is known once they are tried, see `_unreached`."""
        for budget in self.plan.budgets:
            space = self.space
            if isinstance(space, ConfigSpace) and not self.plan.front:
                space = config_space(self.plan, budget=budget, shapes=self.folder.shapes)
            if budget is not None:
                space.allowed_nbytes(budget)

    def _tell_clashes(self) -> None:
        """Tells of values of the space that can't be together; a search that is resumed has told."""
        if isinstance(self.space, ConfigSpace) and not self.is_resumed:
            for line in Clashes(self.space, told=self.plan.told_space).found(self.plan.options):
                self.reporter.note(line)

    def _unreached(self) -> list[BudgetError | ConfigError]:
        """Of each study none of whose candidates could be trained, the smallest budget that one would keep, or what
        their values say together."""
        if not self.plan.trains:
            return []
        return [
            unreached(
                study,
                config_space(self.plan, budget=budget, shapes=self.folder.shapes),
                config=self.config,
                budget=budget,
            )
            for budget, study in self.studies.items()
            if is_unreached(study)
        ]

    @property
    def is_shared(self) -> bool:
        """Whether the study is stored outside the search's directory, so that others may have begun it."""
        return self.plan.storage != str(self.folder.path / JOURNAL)

    def _refuse_storage(self) -> None:
        """Opens the storage before anything is trained."""
        with storage_errors(self.plan.storage):
            open_storage(self.plan.storage)

    def _refuse_short_profile(self) -> None:
        """A profile says nothing before it has measured every table."""
        if self.plan.sampler == "profile" and (num := len(profile_plan(self.space))) >= self.plan.num_trials:
            raise ConfigError(
                f"--sampler profile measures {num:,} forms of tables, one after the other, before it combines them, "
                f"and --trials is {self.plan.num_trials:,}; give more than {num:,}, or the space fewer values"
            )

    def _supernet(self) -> Path:
        if self.plan.supernet is not None:
            return Path(self.plan.supernet)
        self.reporter.note("training the supernet: random widths in every step")
        train_supernet(self.config, self.folder.supernet, reporter=self.reporter)
        return self.folder.supernet

    def _profile(self) -> None:
        """For whole configurations: the shapes that a supernet's profile finds, one of what they are compared to."""
        if not isinstance(self.space, ConfigSpace) or not self.space.needs_shapes or self.folder.shapes.is_file():
            return
        budgets = [budget for budget in self.plan.budgets if budget is not None]
        shapes = profile_shapes(self.config, supernet=self._supernet(), budgets=budgets)
        write_shapes(shapes, self.folder.shapes)

    def _search(self, budget: float | None, supernet: Path | None) -> optuna.Study:
        """Makes one study's trials, with the plan's workers."""
        job = Job(
            plan=self.plan,
            budget=None if self.plan.front else budget,
            out=self.folder.path,
            supernet=supernet,
            num_threads=max(1, num_cores() // self.plan.workers),
        )
        setting_of: SettingOf = training_setting if self.plan.trains else frozen_setting
        told = Progress(job, self.stop, self.reporter)
        with setting_of(job, self.stop) as setting:
            run_trials(job, setting, joins=self.is_resumed or self.is_shared, num_trials=0)  # others find it begun
            with helpers(job, setting_of, logs=self.folder.path / "logs") as others:
                study = run_trials(job, setting, joins=True, told=told)
            for process, log in others:
                if process.exitcode:
                    said = log.last_words(code=process.exitcode)
                    self.reporter.note(f"{job.study_name}: {process.name} has ended early: {said}")
            study = self._completed(study, job, setting, told)
        self.reporter.note(told.summary(study))
        return study

    def _completed(self, study: optuna.Study, job: Job, setting: Setting, told: "Progress") -> optuna.Study:
        """The study with what a worker has left that was killed last of all."""
        with storage_errors(self.plan.storage):
            recover_named(open_storage(self.plan.storage), job.study_name)
            is_left = bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
            is_missing = num_done(study) < self.plan.num_trials and is_left
        return run_trials(job, setting, joins=True, told=told) if is_missing else study

    def _retrained(self, supernet: Path) -> list[Entry]:
        """The best candidates of each budget, trained; or the best one cut out of the supernet."""
        assert isinstance(self.space, FieldSpace)
        num = max(1, self.plan.num_retrained)
        entries = [e for b, s in self.studies.items() for e in candidates_of(s, self.space, budget=b, num=num)]
        if not self.plan.num_retrained:
            self._cut(supernet, entries)
            return entries
        num_distinct = len({tuple(sorted(entry.candidate.items())) for entry in entries})
        self.reporter.note(
            f"training {num_distinct} candidates anew, seeds {', '.join(map(str, self.plan.train_seeds))}"
        )
        return self._training(self.plan.train_seeds).run(entries)

    def _trained_again(self) -> list[Entry]:
        """The best trials of a search that trains; with several seeds, trained with the others as well: the best of
        many by one seed is the luckiest."""
        entries = trained_entries(self.plan, self.studies, self.space)
        seeds = [seed for seed in self.plan.train_seeds if seed != self.config.train.seed]
        if len(self.plan.train_seeds) < 2 or not seeds:
            return entries
        self.reporter.note(f"training {len(entries)} candidates again, seeds {', '.join(map(str, seeds))}")
        return self._training(seeds).run(entries)

    def _training(self, seeds: Sequence[int]) -> Retraining:
        return Retraining(self.plan, self.folder, self._config_of, seeds=seeds, stop=self.stop, reporter=self.reporter)

    def _cut(self, supernet: Path, entries: Sequence[Entry]) -> None:
        """Writes the best candidate of each budget as a bundle, with the supernet's numbers."""
        assert isinstance(self.space, FieldSpace)
        schema = Schema.load(self.config.data.path)
        with open_supernet(supernet, config=self.config) as net:
            scorer = scorer_of(self.plan, net, config=self.config)
            for budget, best in self._best(entries).items():
                shapes = self.space.shapes(best.candidate)
                model, config = cut_model(scorer, shapes, config=self.config), self._config_of(best)
                bundle = self._best_file(budget).with_name(f"{self._best_file(budget).stem}-bundle")
                if bundle.exists():  # of a search that had fewer trials
                    remove_folder(bundle)
                write_bundle(
                    bundle, model, config=config, schema=schema, step=net.step, data=Path(self.config.data.path)
                )

    def _best(self, entries: Sequence[Entry]) -> dict[float | None, Entry]:
        found = {b: best_entry([entry for entry in entries if entry.budget == b]) for b in self.plan.budgets}
        return {budget: entry for budget, entry in found.items() if entry is not None}

    def _best_file(self, budget: float | None) -> Path:
        return self.folder.best(budget, is_only=len(self.plan.budgets) == 1)

    def _config_of(self, entry: Entry) -> Config:
        """The configuration that trains a candidate."""
        if isinstance(self.space, FieldSpace):
            return candidate_config(self.config, self.space.shapes(entry.candidate))
        space = config_space(self.plan, budget=entry.budget, shapes=self.folder.shapes)
        return space.config(entry.candidate)

    def _write(self, entries: Sequence[Entry]) -> None:
        """Everything for people, and the best configurations."""
        plan, folder, data = self.plan, self.folder, Path(self.config.data.path).name
        title = f"{self.config.model['name']} on {data}: {plan.space}"
        names = plan.study_names()
        studies: Mapping[str, optuna.Study] = {names[budget]: study for budget, study in self.studies.items()}
        metric = self.config.train.monitor if plan.trains else plan.metric
        score = f"{'negative log loss' if metric == 'logloss' else metric.upper()} on validation"
        pictures = [folder.pareto, folder.history, folder.importance, folder.slices]
        with writing(f"the results in '{folder.path}'", cure="Make room and go on with --resume"), quiet_optuna():
            write_csv(entries, folder.csv, plain_nbytes=self.space.plain_nbytes)
            plot_pareto(studies, entries, folder.pareto, title=title, score=score)
            plot_history(studies, folder.history, title=title, score=score)
            plot_importance(studies, folder.importance, title=title)
            plot_slices(studies, folder.slices, title=title, score=score)
            facts, names_of = self._facts(), [path.name for path in pictures]
            text = markdown(entries, title=title, facts=facts, plain_nbytes=self.space.plain_nbytes, pictures=names_of)
            replace_text(folder.markdown, text, cure=RESUME)
            for budget, best in self._best(entries).items():
                text = yaml.safe_dump(to_plain(self._config_of(best)), sort_keys=False)
                replace_text(self._best_file(budget), text, cure=RESUME)
                self.reporter.note(f"best{budget_text(budget)}: candidate {best.name}, {self._size(best.nbytes)}")

    def _facts(self) -> list[str]:
        """Sentences on how the figures were made."""
        plan = self.plan
        num = {num_done(study) for study in self.studies.values()}
        objectives = "score and bytes" if plan.front else "score"
        plain_nbytes, dim = self.space.plain_nbytes, self.config.tables.default.dim
        facts = [
            f"Budgets and shares are of the plain fp32 tables of dim {dim}, {plain_nbytes:,} bytes; a run of a "
            "candidate tells its bytes against plain tables of its own dims.",
            f"Space `{plan.space}`, sampler `{plan.sampler}` (seed {plan.seed}), {max(num)} trials by {objectives}; "
            f"studies in `{plan.storage}`.",
        ]
        if plan.trains:
            facts.append(
                "Each trial is a training; its score is its best on validation, and the test split is read once."
            )
        elif plan.num_retrained:
            seeds = ", ".join(map(str, plan.train_seeds))
            facts.append(
                f"Scores are those of masks on one supernet; the best {plan.num_retrained} that differ and the simple "
                f"ones (`uniform` widths, and those of the `mde` rule) were trained anew (seeds {seeds}), and the best "
                "is chosen by validation; test figures are means ± sample deviation over seeds."
            )
        else:
            facts.append("Scores are those of masks on one supernet; the best candidate was cut out of it, untrained.")
        return facts

    def _size(self, nbytes: int) -> str:
        """Bytes, and their share of what budgets refer to."""
        plain_nbytes, dim = self.space.plain_nbytes, self.config.tables.default.dim
        return f"{nbytes:,} serving bytes, {nbytes / plain_nbytes:.4f} of the plain tables of dim {dim}"

    def _refuse_failures(self, entries: Sequence[Entry]) -> None:
        failed = [(entry, seed, said) for entry in entries for seed, said in entry.failures.items()]
        if failed:
            entry, seed, said = failed[0]
            raise WorkError(
                f"{len(failed)} trainings failed, the first one (candidate {entry.name}, seed {seed}): {said}. The "
                f"results are written all the same; what they printed is in '{self.folder.path / 'logs'}', and "
                "--resume tries them again"
            )


def budget_text(budget: float | None) -> str:
    """A budget within a sentence."""
    return "" if budget is None else f" within budget {budget:g}"


class Progress:
    """Tells how a study goes: trials, the best score, speed, and how long it will take.

    Args:
        job: the study.
        stop: a request to stop, which it turns into an error between trials.
        reporter: is told a line every few seconds.
    """

    def __init__(self, job: Job, stop: StopRequest, reporter: Reporter) -> None:
        self.job, self.stop, self.reporter = job, stop, reporter
        self.begun = self.said = time.monotonic()
        self.num_before: int | None = None

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """After a trial.

        Raises:
            StoppedSearchError: a signal asked for it.
        """
        if self.num_before is None:
            self.num_before = num_done(study) - 1
        if said := trial.user_attrs.get(CLASH):
            self.reporter.note(f"{self.job.study_name}: trial {trial.number} is pruned, its values clash: {said}")
        now = time.monotonic()
        if now - self.said >= SAY_SECONDS or self.job.plan.trains:
            self.said = now
            self.reporter.note(self.line(study))
        if self.stop:
            raise StoppedSearchError(
                f"{self.stop.signal}: stopped after {num_done(study)} of {self.job.plan.num_trials} trials of study "
                f"'{self.job.study_name}', which are stored; go on with the same command and --resume (directory "
                f"'{self.job.out}')"
            )

    def line(self, study: optuna.Study) -> str:
        """Where a study stands."""
        done, num = num_done(study), self.job.plan.num_trials
        seconds = time.monotonic() - self.begun
        speed = (done - (self.num_before or 0)) / seconds if seconds else 0.0
        left = f", {(num - done) / speed:.0f} s to go" if speed and done < num else ""
        return f"{self.job.study_name}: {done}/{num} trials, {self._best(study)}, {speed:.3g} trials/s{left}"

    def summary(self, study: optuna.Study) -> str:
        """What came out."""
        return f"{self.job.study_name}: {num_done(study)} trials, {self._best(study)}"

    def _best(self, study: optuna.Study) -> str:
        trials = complete(study)
        if not trials:
            return "none scored yet"
        if self.job.plan.front:
            return f"{len(study.best_trials)} on the front, best {max(t.values[0] for t in trials):.4f}"
        try:
            best = study.best_trial
        except ValueError:
            return "none within the budget yet"
        return f"best {best.values[0]:.4f} ({human_bytes(best.user_attrs['nbytes'])})"
