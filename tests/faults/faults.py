"""Faults, each with what must become of it: refused with a clear message, harmless, or gone on with to the same
figures.

Every function puts one fault, drawn from `draw`, into copies of a `Place` and returns how it ended in a word. It raises
`FaultError` for what
must never be: a traceback or a library's words, figures that differ without a word, data that is lost.
"""

import csv
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.faults.commands import Command, Ended, embank
from tests.faults.place import COLUMNS, CONFIG, Place, contents, figures_of, last_evaluation


class FaultError(AssertionError):
    """A fault that went unnoticed, or a message that helps nobody."""


Fault = Callable[[Place, random.Random], str]


def _check(ended: Ended, what: str) -> None:
    if ended.defect is not None:
        raise FaultError(f"{what}: {ended.defect}\n{ended.output}")


def _flip(folder: Path, draw: random.Random) -> str:
    """Flips a bit, cuts, empties or removes a file; every kind of file is as likely as another."""
    kinds: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            kinds.setdefault((path.parent.name.split("-")[0], path.suffix or path.name), []).append(path)
    path = draw.choice(kinds[draw.choice(sorted(kinds))])
    content = bytearray(path.read_bytes())
    how = draw.choice(["flip"] * 6 + ["cut", "empty", "remove"])
    place = draw.randrange(max(1, len(content)))
    if how == "flip" and content:
        content[place] ^= 1 << draw.randrange(8)
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(content if how == "flip" else content[:place] if how == "cut" else b"")
    return f"{how} of '{path.relative_to(folder)}' at {place}"


def _refused_or_harmless(ended: Ended, run: Path, place: Place, what: str) -> str:
    """How a run ended that met a damaged file; other figures without a word are a fault."""
    _check(ended, what)
    if ended.code:
        return "refused"
    if figures_of(run) != place.figures:
        raise FaultError(f"{what}: other figures without a word, {figures_of(run)} instead of {place.figures}")
    return "harmless"


def damaged_data(place: Place, draw: random.Random) -> str:
    """Training on prepared data with a damaged file."""
    data, run = place.copy(place.data, "data"), place.folder / "broken" / "run"
    shutil.rmtree(run, ignore_errors=True)
    what = _flip(data, draw)
    ended = embank(*place.train(run, data=data), log=place.folder / "log.txt")
    return _refused_or_harmless(ended, run, place, what)


def damaged_run(place: Place, draw: random.Random) -> str:
    """Resuming a stopped run with a damaged file."""
    run = place.copy(place.stopped, "run")
    what = _flip(run, draw)
    ended = embank(*place.train(run, "--resume"), log=place.folder / "log.txt")
    return _refused_or_harmless(ended, run, place, what)


def damaged_end(place: Place, draw: random.Random) -> str:
    """Asking a complete run with a damaged file for its figures, evaluating it, or exporting it."""
    run, out = place.copy(place.whole, "run"), place.folder / "broken" / "bundle"
    shutil.rmtree(out, ignore_errors=True)
    what = _flip(run, draw)
    asked = draw.choice(["resume", "evaluate", "export"])
    commands = {
        "resume": place.train(run, "--resume"),
        "evaluate": ["evaluate", run, "--data", place.data],
        "export": ["export", run, "--out", out],
    }
    ended = embank(*commands[asked], log=place.folder / "log.txt")
    _check(ended, f"{asked} after {what}")
    if ended.code:
        return "refused"
    if asked == "resume":
        same = f"{place.figures['auc']:.5f}" in ended.output
    elif asked == "evaluate":
        found = last_evaluation(run / "evaluations.jsonl")
        same = found == {key: place.figures[key] for key in found}
    else:
        same = contents(out) == contents(place.bundle)
    if not same:
        raise FaultError(f"{asked} after {what}: another result without a word\n{ended.output}")
    return "harmless"


def damaged_bundle(place: Place, draw: random.Random) -> str:
    """Evaluating a bundle with a damaged file."""
    bundle = place.copy(place.bundle, "bundle")
    record = bundle.with_name("bundle.evaluations.jsonl")
    record.unlink(missing_ok=True)
    what = _flip(bundle, draw)
    ended = embank("evaluate", bundle, "--data", place.data, log=place.folder / "log.txt")
    _check(ended, what)
    if ended.code:
        return "refused"
    found = last_evaluation(record)
    if any(abs(found[key] - place.figures[key]) > 1e-6 for key in found):
        raise FaultError(f"{what}: other figures without a word, {found} instead of {place.figures}")
    return "harmless"


def _interrupt(place: Place, draw: random.Random, arguments: list[object], *, seconds: float) -> str | None:
    """Starts a command and ends it at a random moment; the signal's name, or None if the command was quicker."""
    number = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    command = Command(arguments, place.folder / "log.txt")
    if not command.end_after(draw.uniform(0, seconds), number):
        return None
    ended = command.wait()
    # A command that is just being forked dies of the signal itself; else a signal that can be caught is a message.
    if number != signal.SIGKILL and ended.code not in (-number, 0):
        _check(ended, f"{signal.Signals(number).name} during {arguments[0]}")
        if ended.code != 1:
            raise FaultError(
                f"{signal.Signals(number).name} during {arguments[0]}: exit code {ended.code}\n{ended.output}"
            )
    return signal.Signals(number).name


def killed_prepare(place: Place, draw: random.Random) -> str:
    """A preparation that replaces another one is ended: old and new hold the same here, so nothing may be missing."""
    folder = place.folder / "broken" / "prepared"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out, expected = Path(shutil.copytree(place.data, folder / "data")), contents(place.data)
    name = _interrupt(place, draw, place.prepare(out, "--overwrite"), seconds=1.5)
    if contents(out) != expected:
        raise FaultError(f"{name} during prepare --overwrite: what was there is gone")
    beside = {path.name for path in folder.iterdir()} - {"data"}
    if beside and name != "SIGKILL":
        raise FaultError(f"{name} during prepare leaves {beside}")
    place.must(*place.prepare(out, "--overwrite"))
    if contents(out) != expected:
        raise FaultError(f"prepare after {name}: other data")
    return "gone on"


def killed_train(place: Place, draw: random.Random) -> str:
    """A run is ended up to three times, and resumed."""
    run = place.folder / "broken" / "run"
    shutil.rmtree(run, ignore_errors=True)
    for _ in range(draw.randint(1, 3)):
        _interrupt(place, draw, place.train(run, *_resumed(run)), seconds=2.5)
    place.must(*place.train(run, *_resumed(run)))
    if figures_of(run) != place.figures:
        raise FaultError(f"train after kills: {figures_of(run)} instead of {place.figures}")
    return "gone on"


def _resumed(run: Path) -> list[str]:
    return ["--resume"] if (run / "config.yaml").is_file() and (run / "environment.json").is_file() else []


def killed_export(place: Place, draw: random.Random) -> str:
    """An export is ended: the bundle is whole or not there."""
    out = place.folder / "broken" / "bundle"
    shutil.rmtree(out, ignore_errors=True)
    name = _interrupt(place, draw, ["export", place.whole, "--out", out], seconds=0.7)
    if not out.exists():
        place.must("export", place.whole, "--out", out)
    if contents(out) != contents(place.bundle):
        raise FaultError(f"export after {name}: another bundle")
    return "gone on"


def killed_sweep(place: Place, draw: random.Random) -> str:
    """A sweep is ended up to twice and resumed; its leaderboard is that of one that was left alone."""
    out = place.folder / "broken" / "swept"
    shutil.rmtree(out, ignore_errors=True)
    expected = _leaderboard(place, place.folder / "swept")
    names = [_interrupt(place, draw, _sweep(place, out), seconds=8) for _ in range(draw.randint(1, 2))]
    found = _leaderboard(place, out)
    if found != expected:
        raise FaultError(f"sweep after {names}: {found} instead of {expected}")
    return "gone on"


def _sweep(place: Place, out: Path) -> list[object]:
    more = ["--resume"] if (out / "sweep.yaml").is_file() else []
    return ["sweep", place.config, "--methods", "full,hash", "--budgets", "0.5", "--seeds", "0,1", "--out", out, *more]


def _leaderboard(place: Place, out: Path) -> list[tuple[str, str]]:
    """Methods and AUC of a sweep, which is brought to its end."""
    if not (out / "leaderboard.csv").is_file():
        place.must(*_sweep(place, out))
    with (out / "leaderboard.csv").open() as file:
        return [(row["method"], row["auc"]) for row in csv.DictReader(file)]


def full_disk(place: Place, draw: random.Random) -> str:
    """Files can't grow beyond a random size; afterwards there is room again."""
    run, out = place.folder / "broken" / "run", place.folder / "broken" / "out"
    for path in (run, out):
        shutil.rmtree(path, ignore_errors=True)
    kind = draw.choice(["prepare", "train", "export"])
    commands = {
        "prepare": place.prepare(out),
        "train": place.train(run),
        "export": ["export", place.whole, "--out", out],
    }
    size = round(2 ** draw.uniform(3, 15))
    ended = embank(*commands[kind], log=place.folder / "log.txt", max_nbytes=size)
    what = f"{kind} with at most {size} bytes a file"
    if ended.code not in (0, -signal.SIGXFSZ):
        _check(ended, what)
        if ended.code == 2:
            raise FaultError(f"{what}: exit code 2, which is for wrong input\n{ended.output}")
    if kind == "train":
        place.must(*place.train(run, *_resumed(run)))
        same = figures_of(run) == place.figures
    else:
        if not out.exists():
            place.must(*commands[kind])
        same = contents(out) == contents(place.data if kind == "prepare" else place.bundle)
    if not same:
        raise FaultError(f"{what}: another result afterwards")
    return "gone on"


VALUES = [
    "null",
    "-1",
    "0",
    "1e400",
    ".nan",
    "true",
    "'x'",
    "[]",
    "{}",
    "[1, [2]]",
    "2024-02-30",
    "9" * 5000,
    "&a [*a]",
    "!!python/object:os.system x",
    '"\\ud800"',
    "~",
    "0x1F",
    "1_000",
    "? x",
]


def fuzzed_yaml(place: Place, draw: random.Random) -> str:
    """A configuration with a part replaced, broken or nested deeply: refused with its name, or taken as it stands."""
    kind = draw.choice(["train", "prepare"])
    whole = CONFIG if kind == "train" else COLUMNS
    lines = yaml.safe_dump({"data": {"path": str(place.data)}, **whole} if kind == "train" else whole).splitlines()
    number = draw.randrange(len(lines))
    how = draw.choice(["value", "value", "value", "byte", "deep", "twice", "cut"])
    if how == "value":
        key, colon, _ = lines[number].partition(":")
        lines[number] = f"{key}{colon or ' -'} {draw.choice(VALUES)}"
    elif how == "deep":
        lines[number] = "x: " + "[" * 3000 + "]" * 3000
    elif how == "twice":
        lines.insert(number, lines[number])
    content = bytearray("\n".join(lines).encode())
    if how == "byte":
        content[draw.randrange(len(content))] = draw.randrange(256)
    if how == "cut":
        content = content[: draw.randrange(len(content))]
    file = place.folder / "fuzzed.yaml"
    file.write_bytes(content)
    try:
        if kind == "train":
            from embank.pipelines.config.run import load_config

            load_config(file)
        else:
            from embank.pipelines.data.prepare.prepare import prepare_from_cli

            prepare_from_cli("csv", [place.log], place.folder / "broken" / "fuzzed", file, overwrite=True)
    except Exception as error:
        from embank.tables.errors import EmbankError

        if isinstance(error, EmbankError):
            return "refused"
        raise FaultError(
            f"{how} in the configuration of {kind}: {type(error).__name__}: "
            f"{str(error)[:500]}\n{bytes(content)[:1000]!r}"
        ) from error
    return "taken"


FAULTS: dict[str, Fault] = {
    function.__name__: function
    for function in (
        damaged_data,
        damaged_run,
        damaged_end,
        damaged_bundle,
        killed_prepare,
        killed_train,
        killed_export,
        killed_sweep,
        full_disk,
        fuzzed_yaml,
    )
}
