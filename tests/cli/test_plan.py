"""`embank plan`: what it prints is what a run would begin with, and what it writes a run takes."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from embank.pipelines.cli.app import plan
from embank.pipelines.config.run import load_config
from embank.pipelines.data.schema import Schema
from embank.pipelines.runs.build import build_tables, id_counts, plan_run, table_specs
from embank.tables import ConfigError
from embank.tables.sharding.plan import load_plan, save_plan
from tests.training.runs import raw_config, write_data


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    data = write_data(folder / "data", single={"user": 5000, "item": 7})
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw_config(data)))
    return path


def tables_of(text: str) -> Iterator[list[str]]:
    """Cells of the printed lines."""
    return (line.split() for line in text.splitlines() if line.strip())


def test_it_shows_tables_and_ranks_with_their_bytes(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(config, ranks=3)
    lines = {cells[0]: cells for cells in tables_of(capsys.readouterr().out)}
    loaded = load_config(config)
    data = Path(loaded.data.path)
    schema = Schema.load(data)
    tables = build_tables(loaded, schema, data=data, rows_folder=config.parent / "rows")
    shapes = {name: rows.shape for name, rows in tables.weights().items()}
    assert set(shapes) <= set(lines)
    nbytes = {}
    for name, (num, dim) in shapes.items():
        width = -(-dim // 4) * 4  # as FBGEMM holds it
        nbytes[name] = num * (4 * width + 4)  # and a float of optimizer state a row
        assert lines[name][-4:-1] == [f"{num:,}", str(dim), f"{nbytes[name]:,}"]
    assert 0 <= tables.nbytes("training") - sum(nbytes.values()) < 1000  # the kernels' constants are not planned
    counts, num_rows = id_counts(schema, data=data), schema.split("train").num_rows
    for feature in ("user", "item", "genre"):
        assert float(lines[feature][-1]) == pytest.approx(int(counts[feature].sum()) / num_rows, abs=6e-4)
    ranks = [int(lines[str(rank)][1].replace(",", "")) for rank in range(3)]
    made, loads = plan_run(loaded, schema, table_specs(loaded, schema, data=data), world_size=3)
    for rank in range(3):
        shards = [made.shard(load.table, rank) for load in loads]
        assert ranks[rank] == sum(
            shard.num_rows * nbytes[shard.table.name] // shard.table.num_embeddings for shard in shards if shard
        ), "none of these tables is cut by columns"
    assert sum(ranks) >= sum(nbytes.values())
    assert f"largest over mean: bytes {max(ranks) / (sum(ranks) / 3):.2f}" in " ".join(lines["largest"])
    assert not (config.parent / "rows").exists(), "nothing is allocated"


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_what_it_writes_is_what_a_run_takes(config: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"plan{suffix}"
    plan(config, ranks=2, out=out)
    loaded = load_config(config, overrides=[f"rows.plan={out}"])
    schema = Schema.load(loaded.data.path)
    specs = table_specs(loaded, schema, data=Path(loaded.data.path))
    made, _ = plan_run(loaded, schema, specs, world_size=2)
    assert made == load_plan(out)
    with pytest.raises(ConfigError, match="2"):
        plan_run(loaded, schema, specs, world_size=3)


def test_what_does_not_fit_is_refused_and_nothing_is_written(config: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"ranks": 2, "memory_per_rank": 100}, "the limit is 100 bytes"),
        ({"ranks": 0}, "--ranks is 0; a plan needs at least 1"),
        ({"ranks": 2, "planner": "embnak"}, "embank"),
        ({"ranks": 2, "set_": ["tabels.dim=8"]}, "[Dd]id you mean 'tables'"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(config, **options, out=tmp_path / "plan.yaml")
        assert not (tmp_path / "plan.yaml").exists()


def test_a_file_is_not_written_over(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"plan.yaml' exists already, .*choose another file, or .* --overwrite"):
        plan(config, ranks=2, out=out)
    assert out.read_text() == "mine"
    plan(config, ranks=2, out=out, overwrite=True)
    edited = load_plan(out)
    with pytest.raises(ConfigError, match="exists already"):
        save_plan(edited, out)
    assert load_plan(out) == edited
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_places_where_no_plan_can_be_written(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is a folder; give a plan the name of a file"):
        plan(config, ranks=2, out=tmp_path)
    with pytest.raises(ConfigError, match=r"there is no folder '.*nodir' to write 'p.yaml' into; make it"):
        plan(config, ranks=2, out=tmp_path / "nodir" / "p.yaml")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(ConfigError, match=r"can't be written: Permission denied. Make it writable, or choose another"):
        plan(config, ranks=2, out=tmp_path / "p.yaml")


def test_less_memory_spreads_rows(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(config, ranks=4, memory_per_rank=55_000)
    lines = {cells[0]: cells for cells in tables_of(capsys.readouterr().out)}
    assert lines["user"][1:3] == ["row_wise", "all"]
    assert all(int(lines[str(rank)][1].replace(",", "")) <= 55_000 for rank in range(4))
