"""The n-gram hash: golden vectors of the released construction, and a definition in plain integers that all forms agree
with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.memory import DEAD, NgramHash, TokenHistory, mark_tokens
from embank.tables.memory.history import starts_of_positions

IDS = torch.tensor([[5, 7, 7, 9, 0, 49]])
SMALL = {"num_heads": 2, "compressed_vocab_size": 50, "pad_id": 2}


def small(max_ngram: int = 4, layers: tuple[int, ...] = (1, 14)) -> NgramHash:
    return NgramHash(layer_ids=layers, max_ngram=max_ngram, rows_per_order=[100] * (max_ngram - 1), **SMALL)


def by_definition(hash: NgramHash, ids: list[int], dead: list[bool], starts: list[bool]) -> dict[int, list[list[int]]]:
    """Rows of a sequence, position by position, straight from the rule."""
    rows: dict[int, list[list[int]]] = {layer: [] for layer in hash.layer_ids}
    for t in range(len(ids)):
        window = []
        stopped = False
        for k in range(hash.max_ngram):
            stopped = stopped or t - k < 0 or dead[t - k] or (k > 0 and starts[t - k + 1])
            window.append(hash.pad_id if stopped else ids[t - k])
        for layer in hash.layer_ids:
            mixes = [w * m for w, m in zip(window, hash.multipliers[layer], strict=True)]
            assert all(mix < 2**63 for mix in mixes)
            primes = iter(hash.primes[layer])
            row = []
            for n in range(2, hash.max_ngram + 1):
                mix = 0
                for part in mixes[:n]:
                    mix ^= part
                row += [mix % next(primes) for _ in range(hash.num_heads)]
            rows[layer].append(row)
    return rows


def test_golden_a() -> None:
    hash = NgramHash(layer_ids=[1, 15], max_ngram=3, rows_per_order=[100, 100], **SMALL)
    assert hash.primes == {1: (101, 103, 107, 109), 15: (113, 127, 131, 137)}
    assert hash.multipliers == {
        1: (151872553228292665, 9591860036772465, 71266316989379275),
        15: (57313027359375271, 111023410204737633, 106878723212342045),
    }
    rows = hash(IDS)
    first = [[22, 44, 66, 33], [10, 33, 61, 51], [17, 64, 89, 1], [14, 37, 72, 24], [29, 37, 98, 32], [73, 62, 32, 25]]
    assert rows[1][0].tolist() == first
    second = [[33, 87, 63, 65], [34, 55, 70, 50], [23, 0, 104, 102], [108, 32, 19, 103], [38, 56, 73, 103]]
    assert rows[15][0].tolist() == [*second, [94, 105, 127, 110]]


def test_golden_b_the_released_demo() -> None:
    hash = NgramHash(
        layer_ids=[1, 15],
        max_ngram=3,
        num_heads=8,
        rows_per_order=[646_400, 646_400],
        compressed_vocab_size=99_092,
        pad_id=2,
    )
    first = hash.primes[1]
    assert first[:8] == (646403, 646411, 646421, 646423, 646433, 646453, 646519, 646523)
    assert (first[8], first[15]) == (646537, 646619)
    second = hash.primes[15]
    assert (second[0], second[7], second[8], second[15]) == (646631, 646771, 646781, 646879)
    assert [sum(primes) for primes in hash.primes.values()] == [10_344_164, 10_348_242]


def test_golden_c_deepseek() -> None:
    hash = NgramHash(
        layer_ids=[1, 14],
        max_ngram=4,
        num_heads=8,
        rows_per_order=[16_000_000] * 3,
        compressed_vocab_size=99_092,
        pad_id=2,
    )
    assert hash.multipliers == {
        1: (76632096046245, 4839876093313, 35959672319349, 73987337458391),
        14: (67716810739261, 51510806800915, 30921347202721, 82619226485591),
    }
    assert [sum(primes) for primes in hash.primes.values()] == [384_006_168, 384_016_682]
    assert [(p[0], p[-1]) for p in hash.primes.values()] == [(16000057, 16000463), (16000477, 16000889)]


def test_golden_d_look_backs_stop_for_good() -> None:
    hash = small()
    offsets = torch.tensor([0, *hash.primes[1][:-1]]).cumsum(0)
    flags = torch.zeros(1, 6, dtype=torch.bool)
    dead, starts = flags.clone(), flags.clone()
    dead[0, 2], starts[0, 3] = True, True
    plain = [
        [22, 145, 270, 344, 460, 659],
        [10, 134, 265, 362, 421, 594],
        [17, 165, 293, 312, 460, 622],
        [14, 138, 276, 335, 497, 567],
        [29, 138, 302, 343, 517, 624],
        [73, 163, 236, 336, 499, 573],
    ]
    after = [
        [44, 132, 218, 373, 420, 538],
        [29, 138, 279, 385, 443, 642],
        [73, 163, 236, 336, 454, 622],
    ]
    assert (hash(IDS)[1] + offsets)[0].tolist() == plain
    with_dead = hash(mark_tokens(IDS, dead_BT=dead))[1] + offsets
    assert with_dead[0].tolist() == [*plain[:2], [41, 197, 240, 336, 448, 619], *after]
    with_start = hash(mark_tokens(IDS, starts_BT=starts))[1] + offsets
    assert with_start[0].tolist() == [*plain[:3], *after]


@given(data=st.data(), max_ngram=st.integers(2, 5), length=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_all_forms_agree_with_the_definition(data: st.DataObject, max_ngram: int, length: int) -> None:
    hash = small(max_ngram)
    ids = data.draw(st.lists(st.integers(0, 49), min_size=length, max_size=length))
    dead = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    starts = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    wanted = by_definition(hash, ids, dead, starts)
    tensors = torch.tensor([ids], dtype=torch.int64).view(1, length)
    flags = [torch.tensor([f], dtype=torch.bool).view(1, length) for f in (dead, starts)]
    marked = mark_tokens(tensors, dead_BT=flags[0], starts_BT=flags[1])
    in_torch, in_numpy = hash(marked), hash.numpy(marked.numpy())
    for layer in hash.layer_ids:
        assert in_torch[layer][0].tolist() == wanted[layer]
        assert in_numpy[layer][0].tolist() == wanted[layer]
        slow = [hash.position(marked[0, : t + 1].tolist())[layer] for t in range(length)]
        assert slow == wanted[layer]


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_pieces_give_what_the_whole_gives(data: st.DataObject) -> None:
    hash = small(4)
    marked = torch.tensor([data.draw(st.lists(st.integers(-51, 49), min_size=12, max_size=12)) for _ in range(2)])
    whole = hash(marked)
    history, pieces = TokenHistory(2), {layer: [] for layer in hash.layer_ids}
    at = 0
    while at < 12:
        size = data.draw(st.integers(1, 5))
        piece = marked[:, at : at + size]
        for layer, rows in hash(piece, before_BS=history.last(hash.lookback)).items():
            pieces[layer].append(rows)
        history.append(piece)
        at += size
    for layer in hash.layer_ids:
        assert torch.equal(torch.cat(pieces[layer], dim=1), whole[layer])


def test_rollback_and_reorder_forget_what_was_rejected() -> None:
    hash = small(3)
    history = TokenHistory(2)
    history.append(torch.tensor([[1, 2, 3, 4], [5, 6, -9, 8]]))
    history.crop(3)  # two drafted tokens, one of them rejected
    history.reorder([1, 1])
    rows = hash(torch.tensor([[9], [4]]), before_BS=history.last(2))
    assert rows[1][0, 0].tolist() == hash.position([5, 6, -9, 9])[1]
    assert rows[1][1, 0].tolist() == hash.position([5, 6, -9, 4])[1]
    history.rows[0].append(1)
    assert history.rows[1] == [5, 6, -9]  # copies, not the same list
    with pytest.raises(ConfigError, match="a history of 4 positions can't be cut to 5"):
        history.crop(5)
    with pytest.raises(DataError, match=r"ids of shape \(1, 1\) do not go on from 2 sequences"):
        history.append(torch.tensor([[1]]))


def test_a_token_reaches_its_n_grams_only() -> None:
    hash = small(3)
    ids = torch.randint(0, 50, (1, 10), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 4] = (other[0, 4] + 1) % 50
    changed = (hash(ids)[1] != hash(other)[1]).any(-1)[0]
    assert not changed[:4].any()
    assert not changed[7:].any()
    assert changed[4]


def test_sequences_of_a_batch_do_not_meet() -> None:
    hash = small()
    ids = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(1))
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(hash(ids)[1][order], hash(ids[order])[1])


def test_packed_documents_hash_as_if_apart() -> None:
    hash = small()
    one, two = torch.tensor([[3, 4, 5]]), torch.tensor([[6, 7, 8, 9]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    packed = mark_tokens(torch.cat([one, two], dim=1), starts_BT=starts_of_positions(positions))
    assert torch.equal(hash(packed)[1], torch.cat([hash(one)[1], hash(two)[1]], dim=1))
    assert starts_of_positions(positions[:, 3:], last_B=torch.tensor([2])).tolist() == [[True, False, False, False]]
    assert starts_of_positions(positions[:, 1:3], last_B=torch.tensor([0])).tolist() == [[False, False]]


def test_padding_on_the_left_is_no_context() -> None:
    hash = small()
    ids = torch.tensor([[3, 4, 5]])
    padded = torch.tensor([[DEAD, DEAD, 3, 4, 5]])
    assert torch.equal(hash(padded)[1][:, 2:], hash(ids)[1])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 1)])
def test_empty_and_short_batches(shape: tuple[int, int]) -> None:
    hash = small()
    rows = hash(torch.zeros(shape, dtype=torch.int64))
    assert rows[1].shape == (*shape, 6)
    assert hash.numpy(np.zeros(shape, dtype=np.int64))[14].shape == (*shape, 6)


def test_primes_are_distinct_and_rows_below_them() -> None:
    hash = small(5, layers=(0, 3, 9))
    primes = [p for layer in hash.layer_ids for p in hash.primes[layer]]
    assert len(set(primes)) == len(primes) == 3 * 4 * 2
    rows = hash(torch.randint(0, 50, (4, 50)))
    for layer in hash.layer_ids:
        assert int(rows[layer].min()) >= 0
        assert (rows[layer] < torch.tensor(hash.primes[layer])).all()


def test_rows_per_order_may_itself_be_the_first_prime() -> None:
    hash = NgramHash(layer_ids=[0], max_ngram=2, rows_per_order=[101], **SMALL)
    assert hash.primes[0] == (101, 103)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_ids": []}, r"layer_ids are \[\]; name at least one layer, and each once"),
        ({"layer_ids": [1, 1]}, "name at least one layer, and each once"),
        ({"layer_ids": [-1]}, "a layer with n-grams is -1; it must be a whole number of at least 0"),
        ({"max_ngram": 1}, "max_ngram is 1; it must be a whole number of at least 2"),
        ({"rows_per_order": [100]}, "rows_per_order has 1 numbers for n-grams of 2 .. 4 tokens; give 3"),
        ({"pad_id": 50}, "pad_id 50 is outside the 50 compressed ids; give the compressed id of the pad token"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"seed": -1}, "the seed of the n-gram hash is -1"),
    ],
)
def test_refuses_arguments_that_can_not_be(change: dict, message: str) -> None:
    arguments = {"layer_ids": [1], "max_ngram": 4, "rows_per_order": [100] * 3, **SMALL}
    with pytest.raises(ConfigError, match=message):
        NgramHash(**{**arguments, **change})


def test_refuses_ids_that_can_not_be() -> None:
    hash = small()
    with pytest.raises(DataError, match="id 50 is outside the 50 compressed ids"):
        hash(torch.tensor([[1, 50]]))
    with pytest.raises(DataError, match="id 50 is outside the 50 compressed ids"):
        hash.numpy(np.array([[-52]]))
    with pytest.raises(DataError, match=r"ids have shape \(2,\); give \[B, T\]"):
        hash(torch.tensor([1, 2]))
    with pytest.raises(DataError, match=r"do not go on from a history of shape \(2, 3\)"):
        hash(torch.tensor([[1, 2]]), before_BS=torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(DataError, match="id -3 is negative; ids are 0 or more, and padding is marked by dead_BT"):
        mark_tokens(torch.tensor([[1, -3]]))
    with pytest.raises(DataError, match=r"dead_BT is torch.bool of shape \(1, 1\) for ids of shape \(1, 2\)"):
        mark_tokens(torch.tensor([[1, 3]]), dead_BT=torch.zeros(1, 1, dtype=torch.bool))


def test_a_manifest_says_which_rows() -> None:
    hash = small()
    manifest = hash.manifest()
    again = NgramHash.from_manifest(manifest, what="the memory")
    assert torch.equal(again(IDS)[14], hash(IDS)[14])
    for change, message in (
        ({"seed": 1}, "has an n-gram hash with multipliers"),
        ({"layer_ids": [2, 15]}, "has an n-gram hash with multipliers"),
        (
            {"primes": {**manifest["primes"], "1": [100, *manifest["primes"]["1"][1:]]}},
            "has 100 rows, which is no prim",
        ),
        (
            {"primes": {**manifest["primes"], "1": manifest["primes"]["14"]}},
            "the memory has an n-gram hash with primes",
        ),
        ({"compressed_vocab_size": 51}, "has an n-gram hash with multipliers"),
        ({"pad_id": 60}, "the memory has an n-gram hash that can't be: pad_id 60"),
        ({"layer_base": 1}, "has an n-gram hash with layer_base 1; here it is 0"),
        ({"stop_rule": "none"}, "stop_rule none; here it is sticky"),
    ):
        with pytest.raises(CheckpointError, match=message):
            NgramHash.from_manifest({**manifest, **change}, what="the memory")
    with pytest.raises(CheckpointError, match="the memory does not say its n-gram hash's seed"):
        NgramHash.from_manifest({k: v for k, v in manifest.items() if k != "seed"}, what="the memory")
