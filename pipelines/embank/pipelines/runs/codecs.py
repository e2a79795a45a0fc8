"""The codec of each table of a trained model, by what it costs on validation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from embank.ctr_models import CTRModel
from embank.pipelines.runs.coarse_parts import coarse_parts, holds_parts
from embank.pipelines.runs.evaluate import evaluate
from embank.tables import ConfigError, PackedCollection, TableCollection, pack_collection
from embank.tables.collections.held_rows import fp32_rows
from embank.tables.rows.held_bytes import distinct_nbytes, tensors_of
from embank.tables.serving.codecs.registry import codecs_by_table, row_codec
from embank.tables.serving.table import codec_of

AUTO = "auto"
MAX_AUC_LOSS = 0.0005
LADDER = ("fp32", "fp16", "int8", "int6", "int4", "int3", "int2")
"""What is tried of a table, from the most bytes to the fewest."""
_SMALL = 0.01


@dataclass(frozen=True, kw_only=True)
class CodecChoice:
    """What was chosen for the tables of a model.

    Args:
        codecs: of each table.
        valid_auc: with them, on validation.
        fp32_auc: without.
        nbytes: serving bytes with them.
        fp32_nbytes: without.
        num_evaluations: that it took.
    """

    codecs: Mapping[str, str]
    valid_auc: float
    fp32_auc: float
    nbytes: int
    fp32_nbytes: int
    num_evaluations: int

    def facts(self) -> dict[str, Any]:
        """What a bundle says of it."""
        return {
            "valid_auc": self.valid_auc,
            "valid_auc_fp32": self.fp32_auc,
            "serving_bytes": self.nbytes,
            "serving_bytes_fp32": self.fp32_nbytes,
        }


def choose_codecs(
    model: CTRModel, path: Path, *, precision: str = "fp32", max_auc_loss: float = MAX_AUC_LOSS
) -> CodecChoice:
    """The fewest bytes whose loss of AUC on validation stays within a bound.

    Tables are taken from the largest on, those of less than a hundredth of all bytes as one, and as one, too, those
    that read the same rows, which are held once for each codec that they have. Each gets the last codec
    of `LADDER` up to which the model loses no more than the bound, the codecs of the tables before it included; so a
    large table may use up what there is to lose. The test split is not read.

    Args:
        model: settled.
        path: a prepared folder.
        precision: of the network.
        max_auc_loss: against the tables without codec.

    Raises:
        ConfigError: AUC is not defined on validation, or the bound is below 0.
    """
    if not max_auc_loss >= 0:
        raise ConfigError(f"the largest loss of AUC is {max_auc_loss}; it must be 0 or more")
    assert isinstance(model.tables, TableCollection)
    search = _Search(model, model.tables, path, precision=precision)
    plain = pack_collection(model.tables)
    codecs = {spec.name: "fp32" for spec in model.tables.specs}
    fp32_auc = best_auc = search.auc(codecs)
    for tables in _groups(_sharing(plain)):
        level, low, high = 0, 1, len(LADDER) - 1
        while low <= high:  # fewer bits never gain AUC but by chance
            middle = (low + high) // 2
            auc = search.auc(codecs | dict.fromkeys(tables, LADDER[middle]))
            if fp32_auc - auc <= max_auc_loss:
                level, low, best_auc = middle, middle + 1, auc
            else:
                high = middle - 1
        codecs |= dict.fromkeys(tables, LADDER[level])
    return CodecChoice(
        codecs=codecs,
        valid_auc=best_auc,
        fp32_auc=fp32_auc,
        nbytes=pack_collection(model.tables, codec=codecs).nbytes(),
        fp32_nbytes=plain.nbytes(),
        num_evaluations=search.num_evaluations,
    )


def codecs_of(
    codec: str | None, model: CTRModel, path: Path, *, precision: str, max_auc_loss: float
) -> tuple[Mapping[str, str] | str | None, dict[str, Any]]:
    """What a codec's name stands for, and what is to be said of it: `auto` is chosen, see `choose_codecs`."""
    if codec != AUTO:
        return codec, {}
    chosen = choose_codecs(model, path, precision=precision, max_auc_loss=max_auc_loss)
    return chosen.codecs, chosen.facts()


def refuse_codec(codec: str) -> None:
    """Raises ConfigError for a name that is neither `auto` nor that of a codec of rows alone."""
    if codec != AUTO:
        row_codec(codec, also=[AUTO])


def coarse_codes(
    tables: TableCollection, codec: Mapping[str, str] | str, *, widen: str = "Give it rows of"
) -> list[str]:
    """What there is to say of tables whose rows product codes can't cut as asked, see `coarse_parts`: a line for each
    matrix of them.

    Args:
        tables: in the last stage of their methods.
        codec: of all tables, or by table.
        widen: how a table gets another width, the beginning of a sentence.
    """
    codecs = codecs_by_table(codec, [spec.name for spec in tables.specs])
    told: list[str] = []
    rows: dict[str, Tensor] | None = None
    for method in tables.built_methods():
        name, own = method.spec.name, codecs[method.spec.name]
        if not holds_parts(own):
            continue
        rows = fp32_rows(tables) if rows is None else rows
        for matrix in method.served(rows).matrices.values():
            if isinstance(matrix, Tensor):
                num_rows, dim = matrix.shape
                said = coarse_parts(codec_of(own, matrix), num_rows=num_rows, dim=dim, widen=widen)
                told += [] if said is None else [f"table '{name}': {said}"]
    return told


def refuse_coarse_codes(tables: TableCollection, codec: Mapping[str, str] | str, *, widen: str) -> None:
    """Raises ConfigError for the first line of `coarse_codes`."""
    for told in coarse_codes(tables, codec, widen=widen):
        raise ConfigError(told)


def _sharing(collection: PackedCollection) -> dict[tuple[str, ...], int]:
    """Tables that read a matrix in common, and the bytes of them together; most tables are alone."""
    sets: list[tuple[list[str], set[int], list[Tensor]]] = []
    for spec, pack in collection.packed_tables():
        names, matrices, tensors = [spec.name], {id(coded) for coded in pack.coded}, tensors_of(pack)
        for other in [other for other in sets if other[1] & matrices]:
            names, matrices, tensors = other[0] + names, other[1] | matrices, other[2] + tensors
            sets.remove(other)
        sets.append((names, matrices, tensors))
    return {tuple(names): distinct_nbytes(tensors) for names, _, tensors in sets}


def _groups(nbytes: Mapping[tuple[str, ...], int]) -> list[list[str]]:
    """Tables that get one codec, from the largest sets down; the small ones together, last."""
    total = sum(nbytes.values())
    order = sorted(nbytes, key=lambda names: (-nbytes[names], names))
    large = [list(names) for names in order if nbytes[names] >= _SMALL * total]
    small = [name for names in order[len(large) :] for name in names]
    return [*large, *([small] if small else [])]


class _Search:
    """Evaluates codecs on validation."""

    def __init__(self, model: CTRModel, tables: TableCollection, path: Path, *, precision: str) -> None:
        self.network, self.tables = model.network, tables
        self.evaluate: Callable[[CTRModel], dict[str, Any]] = lambda coded: evaluate(
            coded, path, "valid", precision=precision
        )
        self.num_evaluations = 0

    def auc(self, codecs: Mapping[str, str]) -> float:
        self.num_evaluations += 1
        packed: PackedCollection = pack_collection(self.tables, codec=codecs)
        values = self.evaluate(CTRModel(packed, self.network))
        if values["auc"] is None:
            raise ConfigError(
                f"codec 'auto' compares AUC, which is not defined here: {values['auc_undefined']}; name one"
            )
        return float(values["auc"])
