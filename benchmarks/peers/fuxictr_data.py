"""A prepared folder in FuxiCTR's own layout: `feature_map.json` and one npz a split (runs inside `.venv-fuxictr`).

Same rows, same order, same ids. A multi-valued feature becomes a padded sequence whose padding index is 0, so its ids
move up by one there; numeric values pass as they are. Features get a prefix: FuxiCTR keeps modules under their names,
and one named `type` would hide a method of torch.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import prepared

SPLITS = ("train", "valid", "test")
LABEL = "label"


def convert(folder: Path, cache: Path, *, pooling: str) -> Path:
    """Writes `cache/<fingerprint>-<rows>-<pooling>/` unless it is there; returns it."""
    schema = prepared.schema(folder)
    out = cache / f"{schema['fingerprint'][:16]}-{sum(s['num_rows'] for s in schema['splits'])}-{pooling}"
    if out.exists():
        return out
    unfinished = out.with_name(f"{out.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    splits = {name: prepared.columns(folder, name) for name in SPLITS}
    widths = longest_bags(splits)
    for name, data in splits.items():
        np.savez(unfinished / f"{name}.npz", **{column(key): flat(v, widths.get(key)) for key, v in data.items()})
    description = feature_map(schema, widths, dataset_id=out.name, pooling=pooling)
    (unfinished / "feature_map.json").write_text(json.dumps(description, indent=1))
    try:
        unfinished.rename(out)
    except OSError:  # another process was first, with the same content
        shutil.rmtree(unfinished)
    return out


def column(name: str) -> str:
    """A column's name in FuxiCTR's files."""
    return name if name == LABEL else f"f_{name}"


def longest_bags(splits: dict[str, dict]) -> dict[str, int]:
    """The widest bag of each multi-valued feature over all splits: nothing is cut."""
    widths: dict[str, int] = {}
    for data in splits.values():
        for name, values in data.items():
            if isinstance(values, prepared.Bags):
                widths[name] = max(widths.get(name, 1), values.longest)
    return widths


def flat(values: np.ndarray | prepared.Bags, width: int | None) -> np.ndarray:
    return values.padded(width, shift=1) if isinstance(values, prepared.Bags) else values


def feature_map(schema: dict, widths: dict[str, int], *, dataset_id: str, pooling: str) -> dict:
    """FuxiCTR's description of the columns; fields in the prepared folder's order."""
    encoder = {"sum": "layers.MaskedSumPooling()", "mean": "layers.MaskedAveragePooling()"}[pooling]
    features: list[dict] = []
    for field in schema["categorical"]:
        spec = {"source": "", "type": "categorical", "vocab_size": field["num_embeddings"]}
        if field["multivalued"]:
            spec = {
                "source": "",
                "type": "sequence",
                "vocab_size": field["num_embeddings"] + 1,
                "padding_idx": 0,
                "max_len": widths[field["name"]],
                "feature_encoder": encoder,
            }
        features.append({column(field["name"]): spec})
    features += [{column(field["name"]): {"source": "", "type": "numeric"}} for field in schema["numeric"]]
    return {"dataset_id": dataset_id, "labels": [LABEL], "num_fields": len(features), "features": features}
