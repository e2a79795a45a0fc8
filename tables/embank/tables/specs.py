"""What a model asks for (`TableSpec`)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from embank.tables.errors import ConfigError
from embank.tables.ids.token_space import NUM_TOKEN_IDS, TOKEN_HASH_VERSION
from embank.tables.scalars import plain, whole

Pooling = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A logical table: `num_embeddings x embedding_dim`, as the model sees it.

    Args:
        name: unique in its collection; seeds and hash salts come from it, so renaming a table changes its values.
        num_embeddings: number of ids; valid ids are 0 .. num_embeddings - 1. `NUM_TOKEN_IDS` for hashes of tokens,
            where there is no vocabulary (see `embank.tables.ids.token_hash`).
        embedding_dim: width of a logical row.
        feature_names: keys of the KeyedJaggedTensor that are looked up in this table.
        pooling: how the rows of a bag become one: their sum or their mean (an empty bag gives zeros).
        method: name of a registered method; how the table is stored.
        options: the method's own configuration (an instance of its `Config`); None takes its defaults.
        budget: serving bytes / bytes of the plain fp32 table, in (0, 1]; None leaves the size to the options.
        init_std: standard deviation of normal initial values; None draws from U(-b, b), b = num_embeddings ** -0.5, as
            TorchRec does.
        counts: int64 [num_embeddings], occurrences of each id in training, for the methods that use them.
        stage: for methods that train in several stages, the index of the current one.
        found: what the stages before have found (`Advance.found`).
        weighted: whether each id of a bag has a weight (a KeyedJaggedTensor's `weights`), by which its row is
            multiplied before the sum; otherwise weights are ignored.
        init_fn: writes initial values into the table's rows [num_embeddings, embedding_dim] in place, as in TorchRec's
            configs; for tables whose rows are a plain matrix.
        fused_pooling: whether the lookup kernel may pool bags, which it can for methods that are linear in their rows.
            False keeps the ids' rows apart until `TableCollection.look_up` has shown them: for losses per id. Results
            are the same.

    Raises:
        ConfigError: a size below 1, no feature, a budget outside (0, 1], counts of another length or type, values of
            other types.

    Example:
        >>> TableSpec(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item", "last_item"])
        TableSpec(name='item', num_embeddings=1000, embedding_dim=8, feature_names=('item', 'last_item'),
        pooling='sum', method='full', options=None, budget=None, init_std=None, weighted=False, stage=0)
        >>> TableSpec(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"], budget=2)
        Traceback (most recent call last):
            ...
        embank.tables.errors.ConfigError: table 'item' has budget 2; a budget is serving bytes / bytes of the plain
        fp32 table and lies in (0, 1]
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: Sequence[str]
    pooling: Pooling = "sum"
    method: str = "full"
    options: Any = None
    budget: float | None = None
    init_std: float | None = None
    counts: Tensor | None = field(default=None, compare=False, repr=False)
    weighted: bool = False
    init_fn: Callable[[Tensor], Any] | None = field(default=None, compare=False, repr=False)
    stage: int = 0
    found: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    fused_pooling: bool = field(default=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.feature_names, str):
            raise ConfigError(
                f"table '{self.name}' has feature_names {self.feature_names!r}; give a list, [{self.feature_names!r}]"
            )
        object.__setattr__(self, "feature_names", tuple(self.feature_names))
        if len(set(self.feature_names)) < len(self.feature_names):
            raise ConfigError(
                f"table '{self.name}' names a feature twice in {list(self.feature_names)}; name each once"
            )
        for key in ("num_embeddings", "embedding_dim"):
            object.__setattr__(self, key, whole(getattr(self, key), what=f"table '{self.name}' has {key}", least=1))
        for key in ("options", "budget", "init_std"):
            object.__setattr__(self, key, plain(getattr(self, key)))
        if self.num_embeddings > NUM_TOKEN_IDS:
            raise ConfigError(
                f"table '{self.name}' has num_embeddings {self.num_embeddings}; ids are int64, so use at most "
                f"{NUM_TOKEN_IDS} (2**63)"
            )
        if not self.feature_names:
            raise ConfigError(f"table '{self.name}' has no feature_names; name at least one key of the input")
        if self.pooling not in ("sum", "mean"):
            raise ConfigError(f"table '{self.name}' has pooling '{self.pooling}'; use 'sum' or 'mean'")
        if self.weighted and self.pooling != "sum":
            raise ConfigError(
                f"table '{self.name}' pools weighted ids to their {self.pooling}; weights are for pooling 'sum': "
                "divide them by the bag's length, or by their own sum, and use that"
            )
        for key in ("budget", "init_std"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ConfigError(f"table '{self.name}' has {key} {value!r}; it must be a number")
        if self.init_std is not None and not 0 <= self.init_std < math.inf:
            raise ConfigError(f"table '{self.name}' has init_std {self.init_std}; it must be finite and 0 or more")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ConfigError(
                f"table '{self.name}' has budget {self.budget}; a budget is serving bytes / bytes of the plain fp32 "
                "table and lies in (0, 1]"
            )
        if self.counts is not None and self.counts.shape != (self.num_embeddings,):
            raise ConfigError(
                f"table '{self.name}' has counts of shape {tuple(self.counts.shape)} for {self.num_embeddings} ids; "
                "give one per id"
            )
        if self.counts is not None and self.counts.dtype != torch.int64:
            raise ConfigError(f"table '{self.name}' has counts of type {self.counts.dtype}; they must be torch.int64")

    @property
    def plain_nbytes(self) -> int:
        """Bytes of the plain fp32 table, what budgets refer to."""
        return 4 * self.num_embeddings * self.embedding_dim

    @property
    def has_vocabulary(self) -> bool:
        """Whether ids are places in a list of values; False where they are hashes of tokens."""
        return self.num_embeddings < NUM_TOKEN_IDS


def plain_nbytes_of(specs: Iterable[TableSpec]) -> int | None:
    """Bytes of some plain fp32 tables together; None where one has no vocabulary, so that there is no plain table."""
    listed = list(specs)
    return sum(spec.plain_nbytes for spec in listed) if all(spec.has_vocabulary for spec in listed) else None


def token_hash_version_of(specs: Iterable[TableSpec]) -> int | None:
    """The version of the token hash that rows depend on; None where every table has a vocabulary."""
    return None if all(spec.has_vocabulary for spec in specs) else TOKEN_HASH_VERSION
