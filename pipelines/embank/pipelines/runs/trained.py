"""What the bundle of a training run holds besides tables: its network, and what it says of its data.

Nothing here needs TorchRec or training code, so that a bundle opens quickly where rows are only scored.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from embank.ctr_models import Inputs, Network, build_network
from embank.pipelines.data.schema import Schema
from embank.tables.errors import CheckpointError, ConfigError
from embank.tables.serving.bundle import Bundle
from embank.tables.storage.resources import refuse_exhausted


def network_of(bundle: Bundle) -> Network:
    """The network of a bundle, in evaluation mode.

    Raises:
        ConfigError: the bundle has tables only.
        CheckpointError: another program's facts, or another version's network.
    """
    weights = bundle.network()
    try:
        inputs = dict(bundle.facts["inputs"])
        hyper = dict(bundle.facts["config"]["model"])
        name = hyper.pop("name")
        inputs |= {key: tuple(inputs[key]) for key in ("names", "dims")}
        _refuse_larger_than(weights, inputs, hyper)
        with torch.random.fork_rng(devices=[]):
            network = build_network(name, inputs=Inputs(**inputs), **hyper)
        network.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ConfigError) as error:
        refuse_exhausted(error, doing=f"building the network of bundle '{bundle.path}'")
        raise CheckpointError(
            f"the network of bundle '{bundle.path}' can't be built: {error}. It was written by embank "
            f"{bundle.embank_version}: "
            "load it with that version, or export it again from its run"
        ) from error
    return network.eval()


_PLAIN_SIZE = 4096
"""A width, or a number of layers, that needs no proof."""


def _refuse_larger_than(weights: Mapping[str, torch.Tensor], *facts: Any) -> None:
    """Refuses facts about a network that its tensors belie, before anything is made that large.

    Raises:
        ValueError: a number is larger than any axis of any tensor, and than the number of tensors.
    """
    largest = max(_PLAIN_SIZE, len(weights), *(size for tensor in weights.values() for size in tensor.shape))
    for number in _whole_numbers(facts):
        if number > largest:
            raise ValueError(f"{number:,} of something, and its tensors have at most {largest:,}")


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(part)


def schema_of(bundle: Bundle) -> Schema:
    """The schema of the data that a bundle's model was trained on.

    Raises:
        CheckpointError: the bundle is not one of a training run.
    """
    try:
        values: dict[str, Any] = bundle.facts["schema"]
        return Schema.from_json(values)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"bundle '{bundle.path}' does not say which data it was trained on; give the bundle of a training run"
        ) from error


def precision_of(bundle: Bundle) -> str:
    """The precision that a bundle's network was trained and evaluated in, fp32 or bf16.

    Raises:
        CheckpointError: the bundle is not one of a training run.
    """
    try:
        return str(bundle.facts["config"]["train"]["precision"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"bundle '{bundle.path}' does not say how it was trained; give the bundle of a training run"
        ) from error
