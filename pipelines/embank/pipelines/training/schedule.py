"""The learning rate over a run: linear warm-up, then constant, linear or cosine."""

import math


def lr_factor(step: int, *, num_steps: int, warmup_steps: int, decay: str) -> float:
    """What the peak learning rate is multiplied with in a step.

    Args:
        step: 0 for the first one.
        num_steps: steps in the whole run; decay ends at 0 after the last one.
        warmup_steps: steps over which the factor rises to 1.
        decay: "none", "linear" or "cosine".
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay == "none":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return 1.0 - progress if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
