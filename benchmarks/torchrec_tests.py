"""TorchRec's own unit tests on embank's collections, names swapped and nothing else.

Takes a checkout of TorchRec at the version that is installed (its wheel has no tests), runs the tests of its embedding
modules and of its DLRM and DeepFM twice, each in a process of its own: as they are, and with `EmbeddingBagCollection`,
`EmbeddingCollection`, `FusedEmbeddingBagCollection` and `fuse_embedding_optimizer` from `embank.tables.torchrec`. One
call is spelled otherwise: `fused_optimizer`, a method there, is the property here that TorchRec's sharded modules have.

Run: python benchmarks/torchrec_tests.py --torchrec CHECKOUT
It needs `parameterized` (pip install parameterized), which TorchRec's tests import. Writes
benchmarks/results/torchrec_tests.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import records

FILES = (
    "modules/tests/test_embedding_modules.py",
    "modules/tests/test_fused_embedding_modules.py",
    "modules/tests/test_fp_embedding_modules.py",
    "models/tests/test_deepfm.py",
    "models/tests/test_dlrm.py",
)


def swap() -> None:
    """Puts embank's collections under TorchRec's names."""
    import torchrec
    import torchrec.models.deepfm
    import torchrec.models.dlrm
    import torchrec.modules.embedding_modules as modules
    import torchrec.modules.fp_embedding_modules
    import torchrec.modules.fused_embedding_modules as fused

    from embank.tables import torchrec as ours

    modules.EmbeddingBagCollection = torchrec.EmbeddingBagCollection = ours.EmbeddingBagCollection
    modules.EmbeddingCollection = torchrec.EmbeddingCollection = ours.EmbeddingCollection
    fused.FusedEmbeddingBagCollection = ours.FusedEmbeddingBagCollection
    fused.fuse_embedding_optimizer = ours.fuse_embedding_optimizer


class Outcomes:
    """A pytest plugin that keeps what became of each test."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest."""
        name = report.nodeid.split("/")[-1].replace("test_copy_", "")
        if report.when == "call" or report.skipped:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.found[name] = {"outcome": report.outcome, "reason": crash.message.split("\n")[0] if crash else ""}


def run_once(checkout: Path, *, ours: bool, out: Path) -> None:
    """Runs the tests in this process and writes what became of them."""
    import pytest
    import torchrec
    import torchrec.distributed.test_utils as utils

    torchrec.__path__.append(str(checkout / "torchrec"))  # helpers that the wheel leaves out
    utils.__path__.append(str(checkout / "torchrec/distributed/test_utils"))
    if ours:
        swap()
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as folder:
        for file in FILES:
            text = (checkout / "torchrec" / file).read_text()
            if ours:
                text = text.replace("fused_ebc.fused_optimizer()", "fused_ebc.fused_optimizer")
            (Path(folder) / f"test_copy_{file.replace('/', '_')}").write_text(text)
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", folder, "-W", "ignore", "--tb=no", "--show-capture=no"]
        pytest.main([*options, folder], plugins=[outcomes])
    out.write_text(json.dumps(outcomes.found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchrec", type=Path, required=True, help="a checkout of TorchRec")
    parser.add_argument("--one", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    records.argument(parser)
    args = parser.parse_args()
    if args.one is not None:
        run_once(args.torchrec, ours=args.one == "ours", out=args.out)
        return
    import torchrec

    run = records.begin(settings={"TorchRec": torchrec.__version__})
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for one in ("theirs", "ours"):
            out = Path(folder) / f"{one}.json"
            command = [sys.executable, __file__, "--torchrec", str(args.torchrec), "--one", one, "--out", str(out)]
            subprocess.run(command, check=True)
            found[one] = json.loads(out.read_text())
    passed = sorted(name for name, of in found["theirs"].items() if of["outcome"] == "passed")
    failed = {name: found["ours"][name]["reason"] for name in passed if found["ours"][name]["outcome"] != "passed"}
    skipped = sorted(name for name, of in found["theirs"].items() if of["outcome"] == "skipped")
    run.records = recorded(num_tests=len(found["theirs"]), num_passed=len(passed), failed=failed)
    run.detail = {"skipped": skipped}
    records.save("torchrec_tests", run, title=TITLE, about=ABOUT, out=args.out)
    for record in run.records:
        print(record.case["tests"], record.value, record.detail)


def recorded(*, num_tests: int, num_passed: int, failed: dict[str, str]) -> list[records.Record]:
    """How many tests there are and pass, on TorchRec and on embank."""

    def count(tests: str, value: int, detail: dict[str, str] | None = None) -> records.Record:
        return records.record("number", "", case={"tests": tests}, value=value, statistic="exact", detail=detail)

    return [
        count("all", num_tests),
        count("pass on TorchRec", num_passed),
        count("of these pass on embank", num_passed - len(failed)),
        count("of these fail on embank", len(failed), failed),
    ]


TITLE = "TorchRec's own unit tests on embank's collections"
ABOUT = (
    "Tests of TorchRec's embedding modules, DLRM and DeepFM, as they are and with embank's collections under "
    "TorchRec's names."
)


if __name__ == "__main__":
    main()
