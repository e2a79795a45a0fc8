"""A small corpus and small runs for tests."""

import random
from pathlib import Path
from typing import Any

from embank.pipelines.lm.config import LmConfig, parse_lm_config
from embank.pipelines.lm.trainer import LmTrainer

KINDS = ("none", "engram", "stem", "bigram", "memoryformer")


def write_texts(folder: Path, *, documents: int = 60, seed: int = 0) -> Path:
    """Documents of sentences whose words depend on the two before: there is something to learn."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    words = [a + b for a in ("ka", "to", "mi", "su", "re", "no") for b in ("la", "ri", "den", "po")]
    follows = {(a, b): draw.sample(words, 2) for a in words for b in words}
    for number in range(documents):
        text = draw.sample(words, 2)
        while len(text) < 150:
            text.append(draw.choice(follows[text[-2], text[-1]]))
        (folder / f"{number:03}.txt").write_text(" ".join(text) + ".\n")
    return folder


def lm_raw(texts: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration of 24 steps, as YAML would give it; sections are merged over the defaults."""
    defaults: dict[str, dict[str, Any]] = {
        "corpus": {"paths": [str(texts)], "vocab_size": 300, "ratios": [0.7, 0.15, 0.15]},
        "model": {"dim": 16, "num_layers": 2, "num_heads": 2, "context": 16},
        "memory": {"rows": 128, "num_heads": 2, "row_dim": 4, "bits": 4},
        "train": {"tokens": 24 * 64, "batch_size": 4, "lr": 0.01, "warmup_steps": 4, "num_threads": 1},
        "rows": {},
    }
    return {key: {**defaults[key], **sections.get(key, {})} for key in defaults}


def lm_config(texts: Path, **sections: dict[str, Any]) -> LmConfig:
    """The same, checked."""
    return parse_lm_config(lm_raw(texts, **sections))


def train_lm(texts: Path, run: Path, *, resume: bool = False, **sections: dict[str, Any]) -> dict[str, Any]:
    """Trains to the end."""
    return LmTrainer(lm_config(texts, **sections), run).train(resume=resume)


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what depends on the clock."""
    return {key: value for key, value in result.items() if key != "tokens_per_s"}
