"""Data, training, evaluation, sweeps and the command line.

    config              `load_config`, `parse_config`, `Config`, `TrainConfig`
    data                `prepare`, `PrepareConfig`, `synth`, `synth_prepared`, `Schema`, `Loader`, `verify_prepared`
    training            `Trainer`, `run_sweep`, `Reporter`
    a run or a bundle   `evaluate_saved`, `inspect_saved`, `export_run`
    raw rows            `load_model`, `ServedModel`, `predict`
    new bundles         `make_delta`, `apply_delta`
    other systems       `convert_bundle`, `Conversion`; `import_source`, `Imported`, `ImportedTable`
    new days            `drift_report`, `Drift`
    vectors             `compress_vectors`, `load_vectors`, `Compressed`, `StoredVectors`
    new trainings       `align_vectors`, `apply_alignment`, `load_alignment`, `AlignReport`, `LoadedAlignment`
    language models     `add_engram`, `add_stem`, `load_memory`, `ModelMemory`

Names are imported when they are first used, so that a command loads what it needs and no more.
"""

from typing import TYPE_CHECKING, Any

from embank.tables.libraries import lazy_imports, public_name

if TYPE_CHECKING:
    from embank.pipelines.config.columns import PrepareConfig
    from embank.pipelines.config.run import Config, load_config, parse_config
    from embank.pipelines.config.sections import TrainConfig
    from embank.pipelines.convert.convert import Conversion, convert_bundle
    from embank.pipelines.data.loading.integrity import verify_prepared
    from embank.pipelines.data.loading.loader import Loader
    from embank.pipelines.data.prepare.prepare import prepare
    from embank.pipelines.data.schema import Schema
    from embank.pipelines.data.synth import synth, synth_prepared
    from embank.pipelines.deltas.deltas import DeltaReport, apply_delta, make_delta
    from embank.pipelines.diagnosis.drift import Drift, drift_report
    from embank.pipelines.importing.importing import import_source
    from embank.pipelines.importing.report import Imported, ImportedTable
    from embank.pipelines.lm.adapters.attach import add_engram, add_stem
    from embank.pipelines.lm.adapters.folder import load_memory
    from embank.pipelines.lm.adapters.model_memory import ModelMemory
    from embank.pipelines.reporting import Reporter
    from embank.pipelines.runs.evaluate import evaluate_saved
    from embank.pipelines.runs.export import export_run
    from embank.pipelines.runs.inspect import inspect_saved
    from embank.pipelines.runs.model import ServedModel, load_model
    from embank.pipelines.runs.predict import predict
    from embank.pipelines.search.read import search_config
    from embank.pipelines.sweep.sweep import run_sweep
    from embank.pipelines.train.trainer import Trainer
    from embank.pipelines.vectors.align import AlignReport, align_vectors
    from embank.pipelines.vectors.compress import Compressed, compress_vectors
    from embank.pipelines.vectors.mapping import LoadedAlignment, apply_alignment, load_alignment
    from embank.pipelines.vectors.store import StoredVectors, load_vectors

__all__ = [
    "AlignReport",
    "Compressed",
    "Config",
    "Conversion",
    "DeltaReport",
    "Drift",
    "Imported",
    "ImportedTable",
    "LoadedAlignment",
    "Loader",
    "ModelMemory",
    "PrepareConfig",
    "Reporter",
    "Schema",
    "ServedModel",
    "StoredVectors",
    "TrainConfig",
    "Trainer",
    "add_engram",
    "add_stem",
    "align_vectors",
    "apply_alignment",
    "apply_delta",
    "compress_vectors",
    "convert_bundle",
    "drift_report",
    "evaluate_saved",
    "export_run",
    "import_source",
    "inspect_saved",
    "load_alignment",
    "load_config",
    "load_memory",
    "load_model",
    "load_vectors",
    "make_delta",
    "parse_config",
    "predict",
    "prepare",
    "run_sweep",
    "search_config",
    "synth",
    "synth_prepared",
    "verify_prepared",
]

_HOME = lazy_imports(__file__)


def __getattr__(name: str) -> Any:
    found = globals()[name] = public_name(__name__, name, homes=_HOME)
    return found


def __dir__() -> list[str]:
    return __all__
