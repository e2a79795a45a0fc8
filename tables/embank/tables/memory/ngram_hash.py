"""Multiplicative-XOR hashing of n-grams: which rows each position reads, a pure function of (compressed) token ids.

Source: Engram (arXiv 2601.07372, section 2.2), bit for bit as released (deepseek-ai/Engram, `NgramHashMapping`): odd
multipliers from PCG64, distinct primes for all heads of all layers, look-backs that stop for good at the first position
that they may not see (as DeepSeek-V4.1's ports have it; the demo knows the sequence's beginning only).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embank.tables.collections.ids import int64_ids
from embank.tables.errors import CheckpointError, ConfigError, DataError
from embank.tables.memory.history import DEAD
from embank.tables.memory.primes import next_prime, refuse_composite
from embank.tables.scalars import whole

LAYER_STRIDE = 10_007
"""Between the seeds of neighbouring layers."""

MAX_INT64 = 2**63 - 1


class NgramHash:
    """Row ids of the n-grams that end at each position, for several layers and heads.

    With w_0 the id at a position and w_k that of k positions before (the pad id where it may not look), the n-gram's 64
    bits are w_0 m_0 ^ ... ^ w_{n-1} m_{n-1}, the same for all heads of an order; a head takes them modulo its prime.

    Args:
        layer_ids: 0-based layers that have a memory. They seed the multipliers: another numbering is another hash.
        max_ngram: N; orders are 2 .. N.
        num_heads: K, heads per order.
        rows_per_order: for each order what its heads have at least, in rows; the heads of all layers get primes from
            there on, each of them once.
        compressed_vocab_size: V', as of `TokenCompression.size`.
        pad_id: the *compressed* id that stands where a look-back ends.
        seed: of the multipliers.
        multipliers: by layer m_0 .. m_{N-1}, where others have drawn them in another way and released them; None draws
            them by the seed.
        end_id: the *compressed* id of a token that ends documents: no look-back reaches it from behind. It has an
            n-gram of its own that looks back as any token's. None knows no such token.

    Attributes:
        primes: rows of each head by layer, order after order.
        multipliers: odd int64 multipliers m_0 .. m_{N-1} by layer.
        seed: None where multipliers were given.
        lookback: N - 1.
        num_columns: (N - 1) K.

    Raises:
        ConfigError: an argument that can't be.

    Example:
        >>> hash = NgramHash(layer_ids=[1, 15], max_ngram=3, num_heads=2, rows_per_order=[100, 100],
        ...                  compressed_vocab_size=50, pad_id=2)
        >>> hash(torch.tensor([[5, 7, 7, 9, 0, 49]]))[1][0, 0].tolist(), hash.primes[1]
        ([22, 44, 66, 33], (101, 103, 107, 109))
    """

    def __init__(
        self,
        *,
        layer_ids: Sequence[int],
        max_ngram: int,
        num_heads: int,
        rows_per_order: Sequence[int],
        compressed_vocab_size: int,
        pad_id: int,
        seed: int | None = 0,
        multipliers: Mapping[int, Sequence[int]] | None = None,
        end_id: int | None = None,
    ) -> None:
        self.layer_ids = tuple(whole(layer, what="a layer with n-grams is", least=0) for layer in layer_ids)
        self.max_ngram = whole(max_ngram, what="max_ngram is", least=2)
        self.num_heads = whole(num_heads, what="num_heads is", least=1)
        self.rows_per_order = tuple(whole(rows, what="rows_per_order has", least=1) for rows in rows_per_order)
        self.compressed_vocab_size = whole(compressed_vocab_size, what="compressed_vocab_size is", least=1)
        self.pad_id = whole(pad_id, what="pad_id is", least=0)
        self.end_id = None if end_id is None else whole(end_id, what="end_id is", least=0)
        self.seed = None if multipliers is not None else whole(seed, what="the seed of the n-gram hash is", least=0)
        self._refuse_impossible()
        if multipliers is None:
            self.multipliers = {layer: self._multipliers(layer) for layer in self.layer_ids}
        else:
            self.multipliers = self._given(multipliers)
        self.primes = self._primes()
        self.lookback = self.max_ngram - 1
        self.num_columns = self.lookback * self.num_heads
        self._flat = [(layer, self.multipliers[layer], self._by_order(layer)) for layer in self.layer_ids]

    def _refuse_impossible(self) -> None:
        if not self.layer_ids or len(set(self.layer_ids)) < len(self.layer_ids):
            raise ConfigError(f"layer_ids are {list(self.layer_ids)}; name at least one layer, and each once")
        if len(self.rows_per_order) != self.max_ngram - 1:
            raise ConfigError(
                f"rows_per_order has {len(self.rows_per_order)} numbers for n-grams of 2 .. {self.max_ngram} tokens; "
                f"give {self.max_ngram - 1}, one for each order"
            )
        if self.pad_id >= self.compressed_vocab_size:
            raise ConfigError(
                f"pad_id {self.pad_id} is outside the {self.compressed_vocab_size:,} compressed ids; give the "
                "compressed id of the pad token, not the token's own"
            )
        if self.end_id is not None and self.end_id >= self.compressed_vocab_size:
            raise ConfigError(
                f"end_id {self.end_id} is outside the {self.compressed_vocab_size:,} compressed ids; give the "
                "compressed id of the token that ends documents"
            )

    def _given(self, multipliers: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
        """Multipliers of others: as many as an n-gram has tokens, and none so large that a product overflows."""
        layers = sorted(self.layer_ids)
        if not isinstance(multipliers, Mapping) or not all(isinstance(m, Iterable) for m in multipliers.values()):
            raise ConfigError(
                f"multipliers are {_short(multipliers)}; give a list for each layer, {{{layers[0]}: [...]}}"
            )
        if set(multipliers) != set(layers):
            raise ConfigError(f"multipliers are given for the layers {list(multipliers)}; give them for {layers}")
        given = {}
        for layer in self.layer_ids:
            numbers = tuple(whole(m, what=f"a multiplier of layer {layer} is", least=1) for m in multipliers[layer])
            if len(numbers) != self.max_ngram:
                raise ConfigError(
                    f"layer {layer} has {len(numbers)} multipliers; n-grams of up to {self.max_ngram} tokens need "
                    f"{self.max_ngram}"
                )
            if max(numbers) * (self.compressed_vocab_size - 1) > MAX_INT64:
                raise ConfigError(
                    f"layer {layer} has a multiplier of {max(numbers)}, whose products with ids below "
                    f"{self.compressed_vocab_size:,} exceed 64 bits; it was released for fewer ids"
                )
            given[layer] = numbers
        return given

    def _multipliers(self, layer: int) -> tuple[int, ...]:
        """Odd, and so small that no product with an id exceeds an int64."""
        assert self.seed is not None
        bound = max(1, MAX_INT64 // self.compressed_vocab_size // 2)
        generator = np.random.Generator(np.random.PCG64(self.seed + LAYER_STRIDE * layer))
        draws = generator.integers(0, bound, size=self.max_ngram, dtype=np.int64)
        return tuple(2 * int(draw) + 1 for draw in draws)

    def _primes(self) -> dict[int, tuple[int, ...]]:
        """Distinct over all layers, orders and heads, so that no two heads agree on what they confuse."""
        taken: set[int] = set()
        primes = {}
        for layer in self.layer_ids:
            chosen: list[int] = []
            for rows in self.rows_per_order:
                candidate = rows - 1
                for _ in range(self.num_heads):
                    candidate = next_prime(candidate, taken)
                    taken.add(candidate)
                    chosen.append(candidate)
            primes[layer] = tuple(chosen)
        return primes

    def _by_order(self, layer: int) -> list[tuple[int, ...]]:
        """The primes of each order."""
        primes, num = self.primes[layer], self.num_heads
        return [primes[start : start + num] for start in range(0, len(primes), num)]

    def __call__(self, ids_BT: Tensor, *, before_BS: Tensor | None = None) -> dict[int, Tensor]:
        """Row ids of each position, without offsets.

        Args:
            ids_BT: compressed ids, marked where positions are dead or documents begin (`mark_tokens`). T may be 0, or
                below N.
            before_BS: marked ids before them, where sequences come in pieces (`TokenHistory.last(hash.lookback)`); more
                than N - 1 of them change nothing.

        Returns:
            By layer int64 [B, T, (N - 1) K], order after order, heads of an order side by side.

        Raises:
            DataError: ids outside the compressed vocabulary, or of another shape or type.
        """
        return self.rows_of(self.windows(ids_BT, before_BS=before_BS))

    def rows_of(self, windows: Sequence[Tensor]) -> dict[int, Tensor]:
        """Row ids of n-grams, given as w_0 .. w_{N-1}, int64 [B, T] each."""
        rows = {}
        for layer, multipliers, orders in self._flat:
            mix_BT = windows[0] * multipliers[0]
            columns = []
            for window_BT, multiplier, primes in zip(windows[1:], multipliers[1:], orders, strict=True):
                mix_BT = mix_BT ^ (window_BT * multiplier)
                columns.append(mix_BT[..., None] % torch.tensor(primes, device=mix_BT.device))
            rows[layer] = torch.cat(columns, dim=-1)
        return rows

    def _joined(self, ids_BT: Tensor, before_BS: Tensor | None) -> Tensor:
        """Marked ids [B, N - 1 + T] with what they look back on."""
        ids_BT = int64_ids(ids_BT)
        if ids_BT.dim() != 2:
            raise DataError(f"ids have shape {tuple(ids_BT.shape)}; give [B, T], one row per sequence")
        if before_BS is None:
            before_BS = ids_BT.new_empty(len(ids_BT), 0)
        before_BS = int64_ids(before_BS).to(ids_BT.device)
        if before_BS.dim() != 2 or len(before_BS) != len(ids_BT):
            raise DataError(
                f"ids of shape {tuple(ids_BT.shape)} do not go on from a history of shape {tuple(before_BS.shape)}; "
                "give one row per sequence"
            )
        before_BS = before_BS[:, max(0, before_BS.shape[1] - self.lookback) :]
        absent = ids_BT.new_full((len(ids_BT), self.lookback - before_BS.shape[1]), DEAD)
        return torch.cat([absent, before_BS, ids_BT], dim=1)

    def windows(self, ids_BT: Tensor, *, before_BS: Tensor | None = None) -> list[Tensor]:
        """w_0 .. w_{N-1}, int64 [B, T] each, of what `__call__` takes."""
        marked_BS, length = self._joined(ids_BT, before_BS), ids_BT.shape[1]
        is_start_BS = marked_BS < DEAD
        ids_BS = torch.where(is_start_BS, -2 - marked_BS, marked_BS)
        self._refuse_outside(int(ids_BS.max()) if ids_BS.numel() else 0)
        is_dead_BS = marked_BS == DEAD
        windows = []
        stopped_BT = torch.zeros_like(is_dead_BS[:, :length])
        for back in range(self.max_ngram):
            here = slice(self.lookback - back, self.lookback - back + length)
            if back:  # past the beginning of a document
                stopped_BT = stopped_BT | is_start_BS[:, here.start + 1 : here.stop + 1]
                if self.end_id is not None:
                    stopped_BT = stopped_BT | (ids_BS[:, here] == self.end_id)
            stopped_BT = stopped_BT | is_dead_BS[:, here]
            windows.append(ids_BS[:, here].masked_fill(stopped_BT, self.pad_id))
        return windows

    def _refuse_outside(self, largest: int) -> None:
        if largest >= self.compressed_vocab_size:
            raise DataError(
                f"id {largest} is outside the {self.compressed_vocab_size:,} compressed ids; hash what "
                "TokenCompression made of token ids"
            )

    def numpy(self, ids_BT: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        """The same in NumPy, for data loaders without torch; marked ids as `__call__` takes them."""
        length = ids_BT.shape[1]
        marked = np.pad(ids_BT, ((0, 0), (self.lookback, 0)), constant_values=DEAD)
        is_start, is_dead = marked < DEAD, marked == DEAD
        ids = np.where(is_start, -2 - marked, marked)
        self._refuse_outside(int(ids.max(initial=0)))
        stopped = np.zeros(ids_BT.shape, dtype=bool)
        mixes: dict[int, NDArray[np.int64]] = {}
        columns: dict[int, list[NDArray[np.int64]]] = {layer: [] for layer in self.layer_ids}
        for back in range(self.max_ngram):
            first = self.lookback - back
            if back:
                stopped = stopped | is_start[:, first + 1 : first + 1 + length]
                if self.end_id is not None:
                    stopped = stopped | (ids[:, first : first + length] == self.end_id)
            stopped = stopped | is_dead[:, first : first + length]
            window = np.where(stopped, self.pad_id, ids[:, first : first + length])
            for layer, multipliers, orders in self._flat:
                mixes[layer] = mixes.get(layer, 0) ^ (window * np.int64(multipliers[back]))
                if back:
                    columns[layer].append(mixes[layer][..., None] % np.array(orders[back - 1]))
        return {layer: np.concatenate(parts, axis=-1) for layer, parts in columns.items()}

    def position(self, marked: Sequence[int]) -> dict[int, list[int]]:
        """Rows of one position in Python's integers, which can't overflow: the slow twin over many positions, the fast
        one for the single position that decoding asks for.

        Args:
            marked: marked ids up to the position, which is the last; the last N of them decide.
        """
        windows = self.window(marked)
        rows: dict[int, list[int]] = {}
        for layer, multipliers, orders in self._flat:
            mix = windows[0] * multipliers[0]
            columns: list[int] = []
            for back, primes in enumerate(orders, start=1):
                mix ^= windows[back] * multipliers[back]
                columns += [mix % prime for prime in primes]
            rows[layer] = columns
        return rows

    def window(self, marked: Sequence[int]) -> list[int]:
        """w_0 .. w_{N-1} of the last position."""
        windows = [self.pad_id] * self.max_ngram
        last = len(marked) - 1
        for back in range(min(self.max_ngram, len(marked))):
            value = marked[last - back]
            if value == DEAD:
                break
            token = value if value >= 0 else -2 - value
            if back and token == self.end_id:
                break
            windows[back] = token
            if value < DEAD:
                break
        return windows

    def offsets(self, layer: int) -> list[int]:
        """The first row of each head where a layer's heads lie one after the other in one table, as released."""
        return [0, *accumulate(self.primes[layer][:-1])]

    def manifest(self) -> dict[str, Any]:
        """Everything that decides on rows, as JSON: derived numbers too, so that a reader need not draw them again."""
        return {
            "layer_ids": list(self.layer_ids),
            "layer_base": 0,
            "max_ngram": self.max_ngram,
            "num_heads": self.num_heads,
            "rows_per_order": list(self.rows_per_order),
            "compressed_vocab_size": self.compressed_vocab_size,
            "pad_id": self.pad_id,
            "end_id": self.end_id,
            "seed": self.seed,
            "stop_rule": "sticky",
            "multipliers": {str(layer): list(m) for layer, m in self.multipliers.items()},
            "primes": {str(layer): list(p) for layer, p in self.primes.items()},
            "offsets": {str(layer): self.offsets(layer) for layer in self.layer_ids},
        }

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any], *, what: str) -> "NgramHash":
        """The hash that rows were trained with.

        Args:
            manifest: what `manifest` gave then.
            what: the sentence's subject, "the memory in 'runs/lm'".

        Raises:
            CheckpointError: it lacks something, or holds other multipliers or primes than this embank makes.
        """
        names = ("layer_ids", "max_ngram", "num_heads", "rows_per_order", "compressed_vocab_size", "pad_id", "seed")
        missing = [name for name in names if name not in manifest]
        if missing:
            raise CheckpointError(f"{what} does not say its n-gram hash's {missing[0]}; export it again")
        try:
            made = cls(
                **{name: manifest[name] for name in names},
                end_id=manifest.get("end_id"),
                multipliers=given_multipliers(manifest, what=what),
            )
        except ConfigError as error:
            raise CheckpointError(f"{what} has an n-gram hash that can't be: {error}") from error
        made.refuse_other(manifest, what=what)
        return made

    def refuse_other(self, manifest: Mapping[str, Any], *, what: str) -> None:
        """Refuses rows that another hash addressed.

        Raises:
            CheckpointError: names the first difference, and a row count that is no prime.
        """
        for name, mine in self.manifest().items():
            theirs = manifest.get(name)
            if name == "primes":
                refuse_composite(theirs, what=what)
            if theirs != mine:
                raise CheckpointError(
                    f"{what} has an n-gram hash with {name} {_short(theirs)}; here it is {_short(mine)}, so that every "
                    "n-gram would read another row. Load it with its own settings, or train anew"
                )


def given_multipliers(manifest: Mapping[str, Any], *, what: str) -> dict[int, list[int]] | None:
    """The multipliers that a manifest's hash was given; None where a seed has drawn them.

    Raises:
        CheckpointError: it has neither.
    """
    if manifest.get("seed") is not None:
        return None
    try:
        return {int(layer): list(numbers) for layer, numbers in manifest["multipliers"].items()}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{what} has neither a seed nor multipliers of its n-gram hash; export it again"
        ) from error


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
