"""What is imported, whatever wrote it: tables of vectors, and the parameters of a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
from torch import Tensor

from embank.pipelines.importing.frameworks import FRAMEWORKS, Framework
from embank.pipelines.importing.torch_states import StateVectors, TorchState, open_state
from embank.pipelines.importing.word2vec import Word2VecVectors
from embank.pipelines.runs.model import bundle_of
from embank.pipelines.vectors.files import ParquetVectors, VectorFile, matrices_of, open_vectors, refuse_bad_keys
from embank.pipelines.vectors.sources import TableVectors
from embank.tables import Bundle
from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.storage.json_text import read_json
from embank.tables.wording import listing, nearest_or_all

FIRST_ORDER = "first_order/"
"""What the names of tables of first-order weights begin with, see `embank.pipelines.runs.build`."""


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """A table of a source.

    Args:
        name: ours, once `renamed`.
        vectors: its rows.
        state: of its rows' optimizer: one number a row, or as many as the row has; None where the source has none.
    """

    name: str
    vectors: VectorFile
    state: VectorFile | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is imported.

    Args:
        kind: of the source, as `--from` has it.
        path: of it.
        tables: by name, in its order.
        network: shapes of its other parameters by name; empty where there is no network.
        read: reads one of them.
        fields: the source's order of features, where it is known.
        numeric: those of them that are numbers.
        theirs: the source's names of what was renamed, by ours.
        pooling: how the source pools features of several values, "sum", "mean" or another name, where it says so.
    """

    kind: str
    path: Path
    tables: Mapping[str, SourceTable]
    network: Mapping[str, Sequence[int]] = field(default_factory=dict)
    read: Callable[[str], Tensor] | None = field(default=None, repr=False)
    fields: Sequence[str] | None = None
    numeric: Sequence[str] = ()
    theirs: Mapping[str, str] = field(default_factory=dict)
    pooling: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_model(self) -> bool:
        """Whether its kind is one of models, rather than of vectors."""
        return self.kind in (*FRAMEWORKS, OURS)

    @property
    def has_network(self) -> bool:
        """Whether it is a model, rather than tables alone."""
        return self.is_model and bool(self.network)

    def renamed(self, names: Mapping[str, str]) -> Source:
        """The source under our names.

        Args:
            names: of tables and features: ours to the source's. A table that is not named keeps its name; one that
                several features read becomes as many.

        Raises:
            ConfigError: the source has no such table, or two would have one name.
        """
        theirs = {name.removeprefix(FIRST_ORDER): None for name in self.tables} | dict.fromkeys(self.fields or ())
        for ours, name in names.items():
            if name not in theirs:
                raise ConfigError(
                    f"'{self.path}' has no table '{name}', which --table {ours}={name} names; "
                    f"{nearest_or_all(name, theirs, label='tables')}"
                )
        by_name: dict[str, list[str]] = {}
        for own, name in names.items():
            by_name.setdefault(name, []).append(own)
        tables: dict[str, SourceTable] = {}
        for full, table in self.tables.items():
            prefix = FIRST_ORDER if full.startswith(FIRST_ORDER) else ""
            for own in _ours_of(full.removeprefix(FIRST_ORDER), by_name):
                if prefix + own in tables:
                    raise ConfigError(
                        f"two tables of '{self.path}' would be called '{prefix + own}'; rename one by --table"
                    )
                tables[prefix + own] = replace(table, name=prefix + own)

        def each(listed: Iterable[str]) -> list[str]:
            return [own for name in listed for own in _ours_of(name, by_name)]

        pooling = {own: how for name, how in self.pooling.items() for own in _ours_of(name, by_name)}
        fields = None if self.fields is None else each(self.fields)
        return replace(
            self, tables=tables, fields=fields, numeric=each(self.numeric), theirs=dict(names), pooling=pooling
        )


def _ours_of(name: str, ours: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Our names of a table or feature: several features may read one table."""
    return ours.get(name, [name])


def open_source(
    kind: str,
    path: str | Path,
    *,
    name: str | None = None,
    feature_map: Path | None = None,
    column: str | None = None,
    id_column: str | None = None,
    tensor: str | None = None,
) -> Source:
    """Opens what is imported.

    Args:
        kind: torchrec, fuxictr, deepctr, parquet, safetensors, npy, word2vec; or embank, a run or a bundle.
        path: of it.
        name: of the table of a file that has one; None takes the file's name.
        feature_map: FuxiCTR's feature_map.json, which has the order of features.
        column, id_column, tensor: see `embank.pipelines.vectors.files.open_vectors`.

    Raises:
        ConfigError: another kind, or options of another one.
        DataError: the file can't be read as that, or has no table.
    """
    path = Path(path)
    if kind not in KINDS:
        raise ConfigError(f"there is no source '{kind}'; {nearest_or_all(kind, KINDS, label='there are')}")
    takes = {"parquet": ("column", "id_column"), "safetensors": ("tensor",)}.get(kind, ())
    given = {"column": column, "id_column": id_column, "tensor": tensor}
    for option, value in given.items():
        if value is not None and option not in takes:
            raise ConfigError(f"--{option.replace('_', '-')} {value!r} is of other sources than '{kind}'; leave it out")
    if kind in FRAMEWORKS:
        return _framework_source(FRAMEWORKS[kind], open_state(path), feature_map=feature_map)
    if kind == OURS:
        return _our_source(path)
    if kind == "parquet" and path.is_dir():
        return _converted(path, id_column=id_column)
    if kind == "safetensors" and tensor is None and path.is_file():
        return _all_tensors(path, name)
    own = name or path.stem
    if kind == "word2vec":
        vectors: VectorFile = Word2VecVectors(path)
    else:
        if path.suffix != f".{kind}":
            raise DataError(f"'{path}' is not named .{kind}, as files of --from {kind} are; name the kind that it is")
        vectors = open_vectors(path, **{option: given[option] for option in takes})
    return Source(kind=kind, path=path, tables={own: SourceTable(name=own, vectors=vectors)})


OURS = "embank"
KINDS = (*FRAMEWORKS, "parquet", "safetensors", "npy", "word2vec", OURS)


def _framework_source(framework: Framework, state: TorchState, *, feature_map: Path | None) -> Source:
    told = None if feature_map is None or framework.name != "fuxictr" else _feature_map(feature_map)
    fields = None if told is None else list(told)
    numeric = [] if told is None else [name for name, kind in told.items() if kind == NUMERIC]
    tables: dict[str, SourceTable] = {}
    used: set[str] = set()
    for tensor, shape in state.shapes.items():
        found = framework.table_of(tensor)
        if found is None:
            continue
        name, prefix = found
        if name in numeric or (framework.has_numeric_vectors and shape in ((1, 1), (shape[0], 0 if prefix else 1))):
            continue  # the vector of a number, which belongs to the network
        used.add(tensor)
        moments = framework.moment_of(tensor, list(state.shapes))
        used.update([] if moments is None else [moments])
        full = prefix + name
        if full in tables:
            theirs = tables[full].vectors.column
            raise state.refused(f"it has two tables '{full}': {theirs} and '{tensor}'. Save one of them")
        tables[full] = SourceTable(
            name=full,
            vectors=StateVectors(state, tensor, what=f"table '{full}'"),
            state=None
            if moments is None
            else _MomentVectors(state, moments, what=f"optimizer state of table '{full}'"),
        )
    if not tables:
        raise state.refused(
            f"it has no tables of {framework.title}, whose names are like '{framework.example}'. It has "
            f"{listing(list(state.shapes)[:5])}. Name the source that it is with --from"
        )
    rest = {name: shape for name, shape in state.shapes.items() if name not in used and not framework.is_ignored(name)}
    if fields is None and framework.keeps_order:
        fields = _in_order(framework, state)
    return Source(
        kind=framework.name,
        path=state.path,
        tables=tables,
        network=rest,
        read=state.read,
        fields=fields,
        numeric=numeric,
        pooling={} if told is None else {name: kind for name, kind in told.items() if kind not in (NUMERIC, SINGLE)},
    )


def _in_order(framework: Framework, state: TorchState) -> list[str]:
    """Features in the order of a state_dict."""
    found = [framework.table_of(tensor) for tensor in state.shapes]
    embeddings = [name for name, prefix in (pair for pair in found if pair is not None) if not prefix]
    first_order = [name for name, prefix in (pair for pair in found if pair is not None) if prefix]
    return list(dict.fromkeys(embeddings or first_order))


class _MomentVectors(StateVectors):
    """Optimizer state of rows: a number for each is a matrix of one column."""

    def __init__(self, state: TorchState, tensor: str, *, what: str) -> None:
        self.is_flat = len(state.shapes[tensor]) == 1
        if self.is_flat:
            self.path, self.state, self.tensor = state.path, state, tensor
            self.column = f"{what} ('{tensor}')"
            (self.num_rows,), self.dim = state.shapes[tensor], 1
        else:
            super().__init__(state, tensor, what=what)

    def chunks(self) -> Iterator[Tensor]:
        if not self.is_flat:
            yield from super().chunks()
            return
        for start in range(0, self.num_rows, self.rows_per_chunk):
            rows_r = self.state.rows(self.tensor, start, min(self.num_rows, start + self.rows_per_chunk)).float()
            self.refuse_non_finite(rows_r.unsqueeze(1), start=start)
            yield rows_r.unsqueeze(1)

    def mapped(self) -> Tensor | None:
        return None if self.is_flat else super().mapped()


def _our_source(path: Path) -> Source:
    """The tables of a bundle, or a run's, as they are served, and the network."""
    home = bundle_of(path)
    bundle = Bundle(home, verify="small")
    tables = {
        entry.name: SourceTable(name=entry.name, vectors=TableVectors(home, table=entry.name))
        for entry in bundle.entries
    }
    weights = bundle.network() if "inputs" in bundle.facts else {}
    return Source(
        kind=OURS,
        path=path,
        tables=tables,
        network={name: tuple(value.shape) for name, value in weights.items()},
        read=weights.__getitem__,
        fields=list(bundle.facts.get("inputs", {}).get("names", [])) or None,
    )


NUMERIC, SINGLE = "numeric", "categorical"
_ENCODERS = {"MaskedAveragePooling": "mean", "MaskedSumPooling": "sum"}


def _feature_map(path: Path) -> dict[str, str]:
    """Features in FuxiCTR's order: "numeric", "categorical", or how several values are pooled."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        specs = {name: dict(spec) for entry in values["features"] for name, spec in entry.items()}
        kinds = {name: str(spec["type"]) for name, spec in specs.items() if spec["type"] != "meta"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' can't be read as FuxiCTR's feature_map.json ({error}); write it again") from error
    for name, kind in kinds.items():
        if kind not in (NUMERIC, SINGLE, "sequence"):
            raise DataError(f"'{path}': feature '{name}' is of type '{kind}', which has no counterpart here")
        if kind == "sequence":
            encoder = str(specs[name].get("feature_encoder"))
            kinds[name] = next((how for text, how in _ENCODERS.items() if text in encoder), encoder)
    return kinds


def _all_tensors(path: Path, name: str | None) -> Source:
    """All matrices of a safetensors file, a table each; one that has the file's only matrix may have another name."""
    found = matrices_of(path)
    if name is not None and len(found) > 1:
        raise ConfigError(
            f"'{path}' has {len(found)} matrices ({listing(found)}), and --table {name} does not say which; give "
            f"--tensor, or --table {name}=TENSOR"
        )
    names = {(name or one): one for one in found}
    tables = {own: SourceTable(name=own, vectors=open_vectors(path, tensor=one)) for own, one in names.items()}
    return Source(kind="safetensors", path=path, tables=tables)


def _converted(path: Path, *, id_column: str | None) -> Source:
    """The folder that `embank convert --to parquet` wrote."""
    try:
        told = read_json(path / "manifest.json")["tables"]
        parts = {str(table["name"]): [path / str(part) for part in table["parts"]] for table in told}
    except (CheckpointError, KeyError, TypeError) as error:
        raise DataError(
            f"'{path}' is no folder that `embank convert --to parquet` wrote ({error}); give that, or a file"
        ) from error
    tables = {
        name: SourceTable(name=name, vectors=PartsVectors(files, what=f"table '{name}'", id_column=id_column))
        for name, files in parts.items()
    }
    return Source(kind="parquet", path=path, tables=tables)


class PartsVectors(VectorFile):
    """A table that `embank convert --to parquet` wrote, in parts; its keys are tokens, or ids where it has none.

    Args:
        parts: files.
        what: what to call it in messages.
        id_column: of the keys; None takes tokens where they are.
    """

    def __init__(self, parts: Sequence[Path], *, what: str, id_column: str | None) -> None:
        opened = [open_vectors(part, column="vector", id_column=id_column or "id") for part in parts]
        self.parts = [part for part in opened if isinstance(part, ParquetVectors)]
        self.path, self.column = parts[0].parent, what
        self.num_rows = sum(part.num_rows for part in self.parts)
        self.dim, self.dtype = self.parts[0].dim, self.parts[0].dtype
        has_tokens = "token" in self.parts[0].file.schema_arrow.names
        self.key_name = self.key_column = id_column or ("token" if has_tokens else "id")

    def chunks(self) -> Iterator[Tensor]:
        for part in self.parts:
            if part.dim != self.dim:
                raise part.refused(f"its vectors have {part.dim} numbers, those of the first part {self.dim}")
            yield from part.chunks()

    def keys(self) -> pl.Series | None:
        """Tokens; null for the unknown value (the first row) and for a missing one."""
        frames = [pl.read_parquet(part.path, columns=[self.key_name], glob=False) for part in self.parts]
        series = pl.concat(frames)[self.key_name].alias("key")
        refuse_bad_keys(series.drop_nulls() if self.key_name == "token" else series, what=self.column)
        return series
