"""TorchRec's own programs with embank's tables: the same losses, with a line or two changed.

    git clone https://github.com/pytorch/torchrec; git clone https://github.com/facebookresearch/dlrm
    pip install --no-deps torchmetrics==1.0.3 lightning-utilities click faiss-cpu pandas
    python benchmarks/torchrec_examples.py --torchrec torchrec --dlrm dlrm
    python benchmarks/torchrec_examples.py --torchrec torchrec --dlrm dlrm --only two_tower --ranks 2

Each program is copied, and run as it is and with its lines changed as `PROGRAMS` says, on 1 and 2 gloo ranks, on the
random data that it makes itself. `torchrec_examples_worker.py` runs it: it gives both the same initial values, which
depend on names alone, and notes the training losses. 12 of them must be equal to 6 decimals on every rank. The
programs' own tests are run with their lines changed, too.
Writes benchmarks/results/torchrec_examples.json.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import records

WORKER = Path(__file__).with_name("torchrec_examples_worker.py")
NUM_STEPS, TOLERANCE = 12, 1e-6
MODULES = "from torchrec.modules.embedding_modules import"
OURS = "from embank.tables.torchrec import"


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program of a checkout.

    Args:
        checkout: "torchrec" or "dlrm".
        folder: of the program, in the checkout.
        module, function: what is called.
        arguments: of the call, where it takes a list of words.
        keywords: of the call, where it takes some.
        swaps: lines to change: file, old line, new line or lines.
        for_cpu: lines to change on both sides, since FBGEMM or faiss have no such thing on a CPU.
        tests: modules with the program's own tests.
    """

    checkout: str
    folder: str
    module: str
    function: str
    arguments: Sequence[str] | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    swaps: Sequence[tuple[str, str, str]] = ()
    for_cpu: Sequence[tuple[str, str, str]] = ()
    tests: Sequence[str] = ()

    @property
    def num_changed(self) -> int:
        """Lines that are changed or added."""
        pairs = [(old, new.splitlines()) for _, old, new in self.swaps]
        return sum(len(lines) - (old in lines) for old, lines in pairs)


def _dlrm(*more: str) -> Program:
    sizes = ["--embedding_dim", "16", "--dense_arch_layer_sizes", "32,16", "--over_arch_layer_sizes", "32,1"]
    limits = ["--limit_train_batches", str(NUM_STEPS), "--limit_val_batches", "2", "--limit_test_batches", "2"]
    return Program(
        checkout="dlrm",
        folder="torchrec_dlrm",
        module="dlrm_main",
        function="main",
        arguments=["--num_embeddings", "200", "--learning_rate", "0.1", *sizes, *limits, *more],
        swaps=[("dlrm_main.py", "from torchrec import EmbeddingBagCollection", f"{OURS} EmbeddingBagCollection")],
        tests=() if more else ["tests.test_dlrm_main"],
    )


def _bert4rec(mode: str, *swaps: tuple[str, str, str]) -> Program:
    counts = ["--random_user_count", "60", "--random_item_count", "20", "--random_size", "800"]
    sizes = ["--max_len", "30", "--emb_dim", "32", "--train_batch_size", "16", "--val_batch_size", "32"]
    how = ["--mask_prob", "0.2", "--dupe_factor", "6", "--num_epochs", "1", "--lr", "0.01", "--mode", mode]
    optimizer = '        fused_params["optimizer"] = EmbOptimType.'
    return Program(
        checkout="torchrec",
        folder="examples/bert4rec",
        module="bert4rec_main",
        function="main",
        arguments=["--dataset_name", "random", *counts, *sizes, *how],
        swaps=[("models/bert4rec.py", f"{MODULES} EmbeddingCollection", f"{OURS} EmbeddingCollection"), *swaps],
        for_cpu=[("bert4rec_main.py", f"{optimizer}ADAM", f"{optimizer}EXACT_ADAGRAD")],
    )


_GPU_INDEX, _ANY_INDEX = "Union[faiss.GpuIndexIVFPQ, faiss.IndexIVFPQ]", "faiss.IndexIVFPQ"

PROGRAMS: dict[str, Program] = {
    "dlrm": _dlrm(),
    "dlrm, Adagrad": _dlrm("--adagrad"),
    "dlrm, DCN": _dlrm("--interaction_type", "dcn", "--dcn_num_layers", "2", "--dcn_low_rank_dim", "8"),
    "golden_training": Program(
        checkout="torchrec",
        folder="examples/golden_training",
        module="train_dlrm",
        function="train",
        keywords={"num_embeddings": 200, "embedding_dim": 16, "num_iterations": NUM_STEPS},
        swaps=[("train_dlrm.py", f"{MODULES} EmbeddingBagCollection", f"{OURS} EmbeddingBagCollection")],
        tests=["tests.test_train_dlrm"],
    ),
    "two_tower": Program(
        checkout="torchrec",
        folder="examples/retrieval",
        module="two_tower_train",
        function="train",
        keywords={
            "num_embeddings": 512,
            "embedding_dim": 16,
            "layer_sizes": [16],
            "num_iterations": NUM_STEPS,
            "num_centroids": 4,
            "num_probe": 4,
        },
        swaps=[("two_tower_train.py", f"{MODULES} EmbeddingBagCollection", f"{OURS} EmbeddingBagCollection")],
        for_cpu=[
            ("knn_index.py", f") -> {_GPU_INDEX}:", f") -> {_ANY_INDEX}:"),
            ("modules/two_tower.py", f"        faiss_index: {_GPU_INDEX},", f"        faiss_index: {_ANY_INDEX},"),
        ],
        tests=["tests.test_two_tower_train", "modules.tests.test_two_tower"],
    ),
    "bert4rec, DDP": _bert4rec("ddp"),
    "bert4rec, DMP": _bert4rec(
        "dmp",
        (
            "bert4rec_main.py",
            "from torchrec.distributed.embedding import EmbeddingCollectionSharder",
            "from torch.distributed.optim import _apply_optimizer_in_backward\n"
            "from torchrec.distributed.embedding import EmbeddingCollectionSharder",
        ),
        (
            "bert4rec_main.py",
            "        fused_params: Dict[str, Any] = {}",
            "        rows, chosen = model_bert4rec.history.ec.parameters(), {'lr': args.lr, 'eps': 1e-8}\n"
            "        _apply_optimizer_in_backward(torch.optim.Adagrad, rows, chosen)\n"
            "        fused_params: Dict[str, Any] = {}",
        ),
    ),
}


def changed_copy(program: Program, checkout: Path, target: Path, *, swapped: bool) -> Path:
    """The program's folder in a copy, with its lines changed.

    Raises:
        SystemExit: the checkout has other lines.
    """
    source = checkout / program.folder
    if not source.is_dir():
        sys.exit(f"'{source}' is not there; give a checkout of {program.checkout} that has {program.folder}")
    shutil.copytree(source, target)
    for name, old, new in [*program.for_cpu, *(program.swaps if swapped else ())]:
        lines = (target / name).read_text().splitlines()
        if lines.count(old) != 1:
            sys.exit(f"'{source / name}' has {lines.count(old)} lines {old!r}, not one; it is of another version")
        place = lines.index(old)
        lines[place : place + 1] = new.splitlines()
        (target / name).write_text("\n".join(lines) + "\n")
    return target


def losses_of(program: Program, folder: Path, *, ranks: int) -> list[list[float]]:
    """The training losses of each rank.

    Raises:
        SystemExit: the program failed; with what it said last.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call = {"module": program.module, "function": program.function, "keywords": dict(program.keywords)}
    call |= {"arguments": None if program.arguments is None else list(program.arguments)}
    started = []
    for rank in range(ranks):
        out, log = folder / f"losses{rank}.json", folder / f"log{rank}.txt"
        facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        environment = {**os.environ, **{key: str(value) for key, value in facts.items()}}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(WORKER), str(folder), json.dumps(call), str(out), str(NUM_STEPS)]
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
        started.append((process, out, log))
    for rank, (process, _, log) in enumerate(started):
        if process.wait() != 0:
            for other, _, _ in started:
                other.kill()
            sys.exit(f"{program.module} on rank {rank} of {ranks} failed:\n{log.read_text()[-6000:]}")
    return [json.loads(out.read_text()) for _, out, _ in started]


def measure(name: str, program: Program, checkout: Path, *, ranks: int) -> dict[str, Any]:
    """Runs a program both ways."""
    losses = {}
    for side in ("torchrec", "embank"):
        with tempfile.TemporaryDirectory() as scratch:
            folder = changed_copy(program, checkout, Path(scratch) / "program", swapped=side == "embank")
            losses[side] = losses_of(program, folder, ranks=ranks)
    pairs = zip(losses["torchrec"], losses["embank"], strict=True)
    difference = max(abs(a - b) for theirs, ours in pairs for a, b in zip(theirs, ours, strict=True))
    return {
        "program": name,
        "ranks": ranks,
        "lines_changed": program.num_changed,
        "steps": len(losses["embank"][0]),
        "first_loss": losses["torchrec"][0][0],
        "last_loss": losses["torchrec"][0][-1],
        "largest_difference": difference,
        "equal": difference <= TOLERANCE,
    }


def own_tests(program: Program, checkout: Path) -> list[dict[str, Any]]:
    """Runs a program's own tests with its lines changed: of each module how many there are, and whether they passed."""
    found = []
    for tests in program.tests:
        with tempfile.TemporaryDirectory() as scratch:
            changed_copy(program, checkout, Path(scratch) / program.folder, swapped=True)
            name = ".".join([*Path(program.folder).parts, tests])
            # Their processes are spawned, and begin with what PYTHONPATH says.
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([scratch, *_path()])}
            command = [sys.executable, "-m", "unittest", name]
            told = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
        count = re.search(r"Ran (\d+) test", told.stderr)
        passed = told.returncode == 0
        if not passed:
            print(told.stderr[-6000:])
        found.append({"tests": name, "number": int(count[1]) if count else 0, "passed": passed})
    return found


def _path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def recorded(lines: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]]) -> list[records.Record]:
    """Losses of each program and number of ranks, then the programs' own tests."""
    found = []
    for line in lines:
        case = {"program": line["program"], "ranks": line["ranks"], "lines changed": line["lines_changed"]}
        losses = {key: line[key] for key in ("steps", "first_loss", "last_loss", "equal")}
        largest = {"value": line["largest_difference"], "statistic": "once", "detail": losses}
        name = "largest difference of a loss"
        found.append(records.record(name, "", case=case, better="lower", **largest))
    for line in tests:
        case = {"their own tests": line["tests"], "all passed": line["passed"]}
        found.append(records.record("tests", "", case=case, value=line["number"], statistic="exact"))
    return found


TITLE = "TorchRec's own programs with embank's tables"
ABOUT = (
    "Each program as it is and with the lines changed, on random data of its own, on gloo ranks, from the same initial "
    f"values: the training losses of {NUM_STEPS} steps must be equal to 6 decimals."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchrec", type=Path, required=True, help="a checkout of pytorch/torchrec")
    parser.add_argument("--dlrm", type=Path, required=True, help="a checkout of facebookresearch/dlrm")
    parser.add_argument("--only", nargs="*", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2])
    records.argument(parser)
    args = parser.parse_args()
    settings = {"only": args.only, "ranks": args.ranks, "steps": NUM_STEPS, "tolerance": TOLERANCE}
    run = records.begin(settings=settings)
    checkouts = {"torchrec": args.torchrec, "dlrm": args.dlrm}
    lines, tests = [], []
    for name in args.only:
        tests += own_tests(PROGRAMS[name], checkouts[PROGRAMS[name].checkout].resolve())
        for line in tests[-len(PROGRAMS[name].tests) :] if PROGRAMS[name].tests else ():
            print(line, flush=True)
        for ranks in args.ranks:
            lines.append(measure(name, PROGRAMS[name], checkouts[PROGRAMS[name].checkout].resolve(), ranks=ranks))
            print(lines[-1], flush=True)
    run.records = recorded(lines, tests)
    records.save("torchrec_examples", run, title=TITLE, about=ABOUT, out=args.out)
    if not all(line["equal"] for line in lines) or not all(line["passed"] for line in tests):
        sys.exit("some losses differ, or some tests failed")


if __name__ == "__main__":
    main()
