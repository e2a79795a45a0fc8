"""Memory tables in a small language model: every arm, two corpora, two lengths of training, paired seeds.

    python benchmarks/lm.py --prose /usr/share/vim/vim90/doc --work runs/lm  # all of it
    python benchmarks/lm.py --prose TEXTS... --work runs/lm --small  # does it run? minutes, not figures
    python benchmarks/lm.py --work runs/lm --corpora prose --prose TEXTS...  # one corpus; the other's figures stay
    python benchmarks/lm.py --work runs/lm --render  # the page from the JSON alone

Can be stopped at any time: the same command goes on with the runs that are missing. `--jobs` runs go on side by side,
each on one thread.

What is compared (`ARMS`): a dense decoder; the same with feed-forward layers widened to Engram's multiply-adds per
token; a hashed pair of tokens added to the input; Engram; Engram that gets the rows of another sequence (same rows and
work, no information); STEM in a third and a half of the blocks; MemoryFormer feed-forward layers; interpolated modified
Kneser-Ney of order 5 over the very tokens that were trained on; and Kneser-Ney mixed with the dense decoder and with
Engram, the weight chosen on validation.

Corpora: the source text of Python's standard library (`library`) and the files given with --prose (`prose`), split by
file. Arms of one seed have the same initial decoder, the same sequences in the same order, and the same schedule.

Rates: for each arm and corpus the dense rate and the row rate are climbed on validation at the shortest training with
the first seed: neighbours a factor of 2 (dense) or 4 (rows) apart are tried until both are worse, so that no best value
is at the edge of a grid; on the second corpus an arm begins with what was best on the first (in the JSON too, where
that corpus is not measured again). Then they hold for all lengths and seeds.

Figures are bits per byte on the test split (at most --eval-tokens tokens of it): mean and deviation over seeds, and the
differences between arms paired by seed. They are also split by what training has seen of the last tokens: three of
them, two only, neither. Writes benchmarks/results/lm.json and docs/results/lm.md.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import lm_report
import records

PAGE = Path(__file__).parents[1] / "docs/results/lm.md"
MODEL = {"dim": 48, "num_layers": 6, "num_heads": 4, "hidden": 128, "context": 128}
ENGRAM = {"kind": "engram", "layers": [1], "num_heads": 8, "rows": 32_768, "row_dim": 16}
WIDER = MODEL["hidden"] + round(2 * 16 * 16 / (3 * MODEL["num_layers"]))  # Engram projects 256 numbers to twice `dim`
ARMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense, iso-FLOP": {"model": {"hidden": WIDER}},
    "bigram": {"memory": {"kind": "bigram", "rows": 175_000}},
    "Engram": {"memory": ENGRAM},
    "Engram, shuffled": {"memory": {**ENGRAM, "shuffle_ids": True}},
    "STEM 1/3": {"memory": {"kind": "stem", "layers": [1, 4]}},
    "STEM 1/2": {"memory": {"kind": "stem", "layers": [1, 3, 5]}},
    "MemoryFormer": {"memory": {"kind": "memoryformer", "bits": 8}},
}
NO_ROWS = ("dense", "dense, iso-FLOP", "MemoryFormer")
FACTORS = {"lr": 2.0, "row_lr": 4.0}
START = {"lr": 0.006, "row_lr": 0.8}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training.

    Args:
        arm, corpus, tokens, seed: which.
        lr, row_lr: peak rates.
    """

    arm: str
    corpus: str
    tokens: int
    seed: int
    lr: float
    row_lr: float

    @property
    def name(self) -> str:
        """Of its folder."""
        arm = self.arm.replace(", ", "-").replace("/", "-").replace(" ", "-").lower()
        rows = "" if self.arm in NO_ROWS else f"-rows{self.row_lr:g}"
        return f"{self.corpus}-{arm}-{self.tokens}-seed{self.seed}-lr{self.lr:g}{rows}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all trainings share.

    Args:
        work: folder of runs and corpora.
        prose: paths of the prose corpus.
        vocab_size, eval_tokens: of the configuration.
        small: a decoder and batches for a trial.
    """

    work: Path
    prose: tuple[str, ...]
    vocab_size: int
    eval_tokens: int
    small: bool

    def config(self, job: Job) -> dict[str, Any]:
        """The configuration of a job, as `embank lm train` takes it."""
        arm = ARMS[job.arm]
        model = {**MODEL, **arm.get("model", {})}
        train = {
            "tokens": job.tokens,
            "batch_size": 16,
            "lr": job.lr,
            "row_lr": job.row_lr,
            "warmup_steps": 50,
            "seed": job.seed,
            "eval_tokens": self.eval_tokens,
            "num_threads": 1,
        }
        if self.small:
            model |= {"dim": 16, "hidden": 32, "context": 32}
            train |= {"batch_size": 4, "warmup_steps": 4}
        return {
            "corpus": self.corpus(job.corpus),
            "model": model,
            "memory": arm.get("memory", {}),
            "train": train,
        }

    def corpus(self, name: str) -> dict[str, Any]:
        """The corpus section of a configuration."""
        paths = None if name == "library" else list(self.prose)
        return {"paths": paths, "vocab_size": self.vocab_size, "folder": str(self.work / f"corpus-{name}")}


def run(setting: Setting, job: Job) -> dict[str, Any]:
    """Trains, keeps what the best checkpoint thought of every token, and drops the checkpoint; or finds it done."""
    from embank.pipelines.lm.config import parse_lm_config
    from embank.pipelines.lm.evaluation import predict
    from embank.pipelines.lm.opened import opened_lm
    from embank.pipelines.lm.trainer import LmTrainer
    from embank.pipelines.runs.folder import RunFolder

    folder = setting.work / "runs" / job.name
    done = folder / "scores.json"
    if done.is_file():
        return json.loads(done.read_text())
    result = LmTrainer(parse_lm_config(setting.config(job)), folder).train(resume=RunFolder(folder).is_run)
    with opened_lm(folder) as lm:
        nats = {
            split: predict(lm.model, lm.corpus.ids(split), most=setting.eval_tokens).nats_N.numpy()
            for split in ("valid", "test")
        }
    np.savez(folder / "nats.npz", **nats)
    shutil.rmtree(folder / "checkpoints")
    scores = {**vars(job), **{key: value for key, value in result.items() if key not in vars(job)}}
    temporary = done.with_suffix(".tmp")
    temporary.write_text(json.dumps(scores))
    temporary.rename(done)
    return scores


Train = Callable[[Sequence[Job]], list[dict[str, Any]]]


def climb(first: Job, train: Train, *, known: dict[Job, float], most: int = 100) -> Job:
    """The rates of an arm on a corpus: one after the other to where both neighbours are worse, until neither moves;
    of `most` trainings at most."""
    axes = ["lr"] if first.arm in NO_ROWS else ["row_lr", "lr"]
    best = first

    def tried(jobs: Sequence[Job]) -> None:
        missing = [job for job in jobs if job not in known]
        for job, scores in zip(missing, train(missing), strict=True):
            known[job] = scores["valid_bits_per_byte"]

    while True:
        before = best
        for axis in axes:
            while True:
                around = [_moved(best, axis, step) for step in (-1, 0, 1)]
                tried(around)
                chosen = min(around, key=known.__getitem__)
                if chosen == best:
                    break
                best = chosen
                if len(known) >= most:
                    return best
        if best == before:
            return best


def _moved(job: Job, axis: str, steps: int) -> Job:
    """The job with one rate moved along its grid; rates are rounded, so that steps to and fro meet."""
    return replace(job, **{axis: float(f"{getattr(job, axis) * FACTORS[axis] ** steps:.3g}")}) if steps else job


class Pool:
    """Trains jobs in processes of their own (in this one without any), and says how far it is."""

    def __init__(self, setting: Setting, num_jobs: int) -> None:
        self.setting, self.count = setting, 0
        spawn = get_context("spawn")
        self.executor = ProcessPoolExecutor(num_jobs, mp_context=spawn) if num_jobs else ThreadPoolExecutor(1)

    def __call__(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The scores of each job."""
        waiting = [self.executor.submit(run, self.setting, job) for job in jobs]
        found = []
        for job, future in zip(jobs, waiting, strict=True):
            found.append(future.result())
            self.count += 1
            print(f"{self.count:>4}  {job.name}  valid {found[-1]['valid_bits_per_byte']:.4f}", flush=True)
        return found


def tune_all(
    arms: Sequence[str],
    corpora: Sequence[str],
    *,
    tokens: int,
    seed: int,
    pool: Pool,
    known: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The rates of every arm on every corpus, and all that was tried; `known` were chosen on others before."""

    def tuned(first: Job) -> tuple[Job, dict[Job, float]]:
        known: dict[Job, float] = {}
        return climb(first, pool, known=known, most=3 if pool.setting.small else 100), known

    found: list[tuple[Job, dict[Job, float]]] = []
    starts = {entry["arm"]: {"lr": entry["lr"], "row_lr": entry["row_lr"] or START["row_lr"]} for entry in known}
    firsts = [Job(arm=arm, corpus=corpora[0], tokens=tokens, seed=seed, **starts.get(arm, START)) for arm in arms]
    for corpus in corpora:  # an arm begins where it ended on the corpus before
        firsts = [replace(job, corpus=corpus) for job in firsts]
        with ThreadPoolExecutor(len(firsts)) as climbers:  # each waits for its own runs; the pool's processes work
            chosen = list(climbers.map(tuned, firsts))
        found += chosen
        firsts = [job for job, _ in chosen]
    return {
        "chosen": [
            {"arm": job.arm, "corpus": job.corpus, "lr": job.lr, "row_lr": None if job.arm in NO_ROWS else job.row_lr}
            for job, _ in found
        ],
        "tried": [
            {**vars(job), "valid_bits_per_byte": value}
            for _, known in found
            for job, value in sorted(known.items(), key=lambda item: (item[0].lr, item[0].row_lr))
        ],
    }


def jobs_of(chosen: Sequence[dict[str, Any]], *, tokens: Sequence[int], seeds: Sequence[int]) -> Iterator[Job]:
    """Every training of the comparison."""
    for entry in chosen:
        row_lr = START["row_lr"] if entry["row_lr"] is None else entry["row_lr"]
        for count in tokens:
            for seed in seeds:
                yield Job(
                    arm=entry["arm"], corpus=entry["corpus"], tokens=count, seed=seed, lr=entry["lr"], row_lr=row_lr
                )


def kneser_ney(setting: Setting, runs: Sequence[dict[str, Any]], jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Kneser-Ney over the tokens of each length, alone and mixed with two arms; and every run split by contexts."""
    from embank.pipelines.lm.kneser_ney import KneserNey, best_mixture
    from embank.pipelines.lm.ngrams import seen_contexts
    from embank.pipelines.lm.tokens import Corpus

    found: list[dict[str, Any]] = []
    for corpus_name, tokens in sorted({(job.corpus, job.tokens) for job in jobs}):
        corpus = Corpus(setting.work / f"corpus-{corpus_name}")
        train = corpus.ids("train", most=tokens + 1).numpy()
        model = KneserNey(train, vocab_size=corpus.vocab_size)
        streams = {split: corpus.ids(split, most=setting.eval_tokens + 1).numpy() for split in ("valid", "test")}
        members = [
            (job, scores)
            for job, scores in zip(jobs, runs, strict=True)
            if (job.corpus, job.tokens) == (corpus_name, tokens)
        ]
        first = np.load(setting.work / "runs" / members[0][0].name / "nats.npz")
        places = {split: np.arange(1, len(first[split]) + 1) for split in streams}
        own = {split: model.probabilities(streams[split], places[split]) for split in streams}
        test = streams["test"]
        sizes = corpus.token_bytes_V.numpy()[test[places["test"]]]
        contexts = seen_contexts(train, test, places["test"], vocab_size=corpus.vocab_size)

        def figures(nats: np.ndarray, contexts: np.ndarray = contexts, sizes: np.ndarray = sizes) -> dict[str, Any]:
            return lm_report.by_context(nats, sizes=sizes, contexts=contexts)

        base = {"corpus": corpus_name, "tokens": tokens}
        found.append({**base, "arm": "Kneser-Ney 5", "seed": None, **figures(-np.log(own["test"]))})
        for job, _scores in members:
            nats = np.load(setting.work / "runs" / job.name / "nats.npz")
            found.append({**base, "arm": job.arm, "seed": job.seed, **figures(nats["test"].astype(np.float64))})
            if job.arm in ("dense", "Engram"):
                weight = best_mixture(np.exp(-nats["valid"].astype(np.float64)), own["valid"])
                mixed = weight * np.exp(-nats["test"].astype(np.float64)) + (1 - weight) * own["test"]
                entry = {**base, "arm": f"{job.arm} + Kneser-Ney", "seed": job.seed, "weight": weight}
                found.append({**entry, **figures(-np.log(mixed))})
    return found


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/lm"), help="folder of runs, kept for going on")
    parser.add_argument("--prose", nargs="+", default=[], help="text files and folders of the prose corpus")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--corpora", nargs="+", choices=["library", "prose"], default=["library", "prose"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1_000_000, 2_000_000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--eval-tokens", type=int, default=131_072)
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side; 0 trains in this process")
    parser.add_argument("--small", action="store_true", help="a trial of everything; its figures mean nothing")
    parser.add_argument("--render", action="store_true", help="write the page from the JSON that is there")
    records.argument(parser)
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Tunes, trains, compares, writes."""
    args = arguments(words)
    if not args.render:
        args.work.mkdir(parents=True, exist_ok=True)
        setting = Setting(
            work=args.work.resolve(),
            prose=tuple(str(Path(path).resolve()) for path in args.prose),
            vocab_size=args.vocab_size,
            eval_tokens=args.eval_tokens,
            small=args.small,
        )
        run = records.begin(settings={"tokens": args.tokens, "seeds": args.seeds})
        run.detail = added(published(args), measure(args, setting))
        run.command = run.detail["command"]
        run.records = lm_report.recorded(run.detail)
        records.save("lm", run, title=TITLE, about=ABOUT, out=args.out)
    (run,) = records.load(args.out / "lm.json").runs
    args.page.write_text(lm_report.page({**run.detail, "machine": run.machine.model_dump()}))
    print(f"written: {args.out / 'lm.json'}, {args.page}")


SAME = ("model", "arms", "tokens", "seeds", "eval_tokens")


def published(args: argparse.Namespace) -> dict[str, Any] | None:
    """What is in the JSON already."""
    path = args.out / "lm.json"
    return records.load(path).runs[0].detail if path.is_file() else None


def added(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """The new figures, and those of other corpora that were measured at the same settings before."""
    kept = [] if before is None else [name for name in before["corpora"] if name not in now["corpora"]]
    if before is None or not kept or any(before[key] != now[key] for key in SAME):
        return now

    def both(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [entry for entry in old if entry["corpus"] in kept] + new

    scores = both(before["scores"], now["scores"])
    return {
        **now,
        "command": f"{before['command']} && {now['command']}",
        "corpora": {name: before["corpora"][name] for name in kept} | now["corpora"],
        "tuned": {key: both(before["tuned"][key], now["tuned"][key]) for key in ("chosen", "tried")},
        "runs": both(before["runs"], now["runs"]),
        "scores": scores,
        "bars": lm_report.bars(scores, tokens=max(now["tokens"])),
    }


TITLE = "Memory tables in a small language model"
ABOUT = "Bits per byte on the test split, mean ± sd over seeds, differences from the dense decoder seed by seed."


def measure(args: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Everything that the page is made from."""
    from embank.pipelines.lm.config import parse_lm_config
    from embank.pipelines.lm.tokens import prepare_corpus

    corpora = [name for name in args.corpora if name == "library" or setting.prose]
    if not corpora:
        raise SystemExit("there is no corpus: name the prose with --prose, or add library to --corpora")
    facts = {}
    for name in corpora:  # before the processes begin, which would all make them
        config = parse_lm_config({"corpus": setting.corpus(name)}).corpus
        facts[name] = {"splits": prepare_corpus(config, setting.work / f"corpus-{name}").facts["splits"]}
    pool = Pool(setting, args.jobs)
    known = (published(args) or {"tuned": {"chosen": []}})["tuned"]["chosen"]
    known = [entry for entry in known if entry["corpus"] not in corpora]
    tuned = tune_all(args.arms, corpora, tokens=min(args.tokens), seed=args.seeds[0], pool=pool, known=known)
    jobs = list(jobs_of(tuned["chosen"], tokens=args.tokens, seeds=args.seeds))
    runs = pool(jobs)
    scores = kneser_ney(setting, runs, jobs)
    named = "" if len(corpora) > 1 else f" --corpora {corpora[0]}"
    prose = f" --prose {' '.join(args.prose)}" if "prose" in corpora else ""
    return {
        "command": f"python benchmarks/lm.py{named}{prose}{' --small' if args.small else ''}",
        "model": setting.config(jobs[0])["model"],
        "arms": ARMS,
        "corpora": facts,
        "tokens": args.tokens,
        "seeds": args.seeds,
        "eval_tokens": args.eval_tokens,
        "tuned": tuned,
        "runs": runs,
        "scores": scores,
        "bars": lm_report.bars(scores, tokens=max(args.tokens)),
    }


if __name__ == "__main__":
    main()
