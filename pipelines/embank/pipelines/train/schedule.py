"""The learning rate over a run: linear warm-up, then constant, linear, cosine, or steps down on plateaus."""

import math

PLATEAU_FACTOR = 0.1
"""What both learning rates are multiplied with after an evaluation without improvement, under decay "plateau"."""


def lr_factor(step: int, *, num_steps: int, warmup_steps: int, decay: str, num_plateaus: int = 0) -> float:
    """What the peak learning rate is multiplied with in a step.

    Args:
        step: 0 for the first one.
        num_steps: steps in the whole run; decay ends at 0 after the last one.
        warmup_steps: steps over which the factor rises to 1.
        decay: "none", "linear", "cosine" or "plateau".
        num_plateaus: evaluations without improvement so far.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay == "none":
        return 1.0
    if decay == "plateau":
        return float(PLATEAU_FACTOR**num_plateaus)
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return 1.0 - progress if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
