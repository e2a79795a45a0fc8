"""Lengths of bags that do not match the ids: every way into the tables refuses them, since kernels would read foreign
memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from embank.tables import DataError, SequenceCollection, TableCollection, TableSpec, pack_collection
from embank.tables.streaming import StreamingCollection, StreamingConfig

FEATURES = ("user", "item")
BAD = {
    "more than there are": ([1, 1, 9, 1], "lengths of feature 'item' sum to 10, but the batch has 2 ids left for it"),
    "far more, in the first": ([2**31 - 1, 1, 1, 1], "lengths of feature 'user' sum to 2,147,483,648, but the batch"),
    "fewer": ([1, 1, 1, 0], "lengths sum to 3 up to the last feature, 'item', but the batch has 4 ids"),
    "negative": ([1, 1, -1, 3], "feature 'item' has a bag of length -1 in row 0"),
    "too few": ([1, 1, 2], "the batch has 3 lengths for 2 features of 2 rows; give 4"),
}


def entries() -> dict[str, Callable[[KeyedJaggedTensor], object]]:
    """Everything that takes jagged ids."""
    specs = [
        TableSpec(name=name, num_embeddings=10, embedding_dim=4, feature_names=[name], pooling="sum")
        for name in FEATURES
    ]
    vocabularies = {"user": StreamingConfig()}
    return {
        "fbgemm": TableCollection(specs),
        "torch": TableCollection(specs, backend="torch"),
        "per id": TableCollection([TableSpec(**{**vars(spec), "method": "alpt"}) for spec in specs]),
        "packed": pack_collection(TableCollection(specs)),
        "sequence": SequenceCollection(specs),
        "sequence in torch": SequenceCollection(specs, backend="torch"),
        "streaming": StreamingCollection(TableCollection(specs), vocabularies),
    }


def batch(lengths: list[int] | Tensor) -> KeyedJaggedTensor:
    lengths = torch.as_tensor(lengths)
    return KeyedJaggedTensor(keys=list(FEATURES), values=torch.tensor([1, 2, 3, 4]), lengths=lengths, stride=2)


@pytest.mark.parametrize("entry", entries())
def test_lengths_must_match_the_ids(entry: str) -> None:
    look_up = entries()[entry]
    look_up(batch([1, 1, 2, 0]))
    for lengths, message in BAD.values():
        with pytest.raises(DataError, match=message):
            look_up(batch(torch.tensor(lengths, dtype=torch.int32)))
    with pytest.raises(DataError, match="the batch has no features; give a key for each feature"):
        look_up(KeyedJaggedTensor.empty())


def test_a_length_per_key_of_the_callers_is_not_believed() -> None:
    """TorchRec lets a caller state each key's number of ids; what counts are the bags."""
    stated = KeyedJaggedTensor(
        keys=list(FEATURES),
        values=torch.tensor([1, 2, 3, 4]),
        lengths=torch.tensor([1, 1, 1, 1]),
        length_per_key=[4, 4],
    )
    tables = entries()["torch"]
    assert torch.equal(tables(stated).values(), tables(batch([1, 1, 1, 1])).values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("packed", [False, True])
def test_an_input_that_is_no_keyed_jagged_tensor_is_refused(packed: bool) -> None:
    tables = TableCollection([TableSpec(name="t", num_embeddings=4, embedding_dim=2, feature_names=["a"])])
    with pytest.raises(DataError, match="the input is a Tensor; give a KeyedJaggedTensor"):
        (pack_collection(tables) if packed else tables)(torch.tensor([1]))
