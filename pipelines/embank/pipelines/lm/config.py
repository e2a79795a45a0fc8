"""The configuration of a language model's run: YAML in, checked dataclasses out. Unknown keys are refused with their
path."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any, Literal

from embank.pipelines.config.file import read_config, told_origin
from embank.pipelines.config.problems import ORIGIN, refuse_unknown, written_in, wrong_value
from embank.pipelines.config.values import validated
from embank.tables import ConfigError, option_class
from embank.tables.memory.memoryformer import MAX_BITS, Scoring
from embank.tables.rows.store_spec import RowOptimizerName
from embank.tables.scalars import plain

SECTIONS = ("corpus", "model", "memory", "train", "rows")


@option_class
class CorpusConfig:
    """Which text, and its tokenizer.

    Args:
        paths: text files and folders of them; None takes the source text of Python's standard library.
        vocab_size: ids of the byte-level BPE tokenizer, which is trained on the training split only.
        ratios: shares of documents in train, valid and test. A document is a file, or a part of a long one.
        seed: of the split, and of the order of documents.
        folder: where the tokenised corpus is kept for other runs too; None keeps it in the run directory.
    """

    paths: tuple[str, ...] | None = None
    vocab_size: int = 2048
    ratios: tuple[float, float, float] = (0.9, 0.05, 0.05)
    seed: int = 0
    folder: str | None = None


@option_class
class ModelConfig:
    """A decoder: pre-norm, rotary positions, SwiGLU, tied embeddings.

    Args:
        dim: width of the residual stream.
        num_layers: blocks.
        num_heads: attention heads; they divide `dim`.
        hidden: width of the feed-forward layers; None takes 8/3 of `dim`, rounded up to a multiple of 16.
        context: tokens of a training sequence, and the most that attention looks back over.
        embedding_dropout: chance that a position's embedding is left out in training. A model that has read tokens from
            their STEM rows alone takes an edited row for the token.
    """

    dim: int = 64
    num_layers: int = 4
    num_heads: int = 4
    hidden: int | None = None
    context: int = 256
    embedding_dropout: float = 0.0

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward layers."""
        return -(-8 * self.dim // 3 // 16) * 16 if self.hidden is None else self.hidden


@option_class
class MemoryConfig:
    """The memory tables of a decoder; `kind` says which of the other keys count.

    Args:
        kind: none; engram (hashed n-grams, gated into the residual stream); stem (a row per token in place of the
            feed-forward layer's up-projection); bigram (a row per hashed pair of tokens, added to the input, the cheap
            baseline); memoryformer (tables in place of the feed-forward layers' projections, addressed by signs of
            activations).
        layers: blocks that have one, 0-based; None takes block 1 for engram, every second block from 1 on for stem,
            all for memoryformer.
        max_ngram: engram: the longest n-gram; all from 2 on are looked up.
        num_heads: engram: hashes per order.
        rows: engram: rows per head, rounded up to primes; bigram: rows.
        row_dim: engram: width of a row.
        conv: engram: the causal convolution of the paper.
        compress: engram: hash normalised tokens (case, accents, spaces) instead of the tokenizer's own.
        shuffle_ids: engram: a control; each position gets rows of another one, same rows and work, no information.
        added: stem: add rows to the up-projection instead of replacing it.
        bits: memoryformer: activations whose signs address a table.
        scoring: memoryformer: how a lookup is weighed, as the paper has it or as its released code has.
    """

    kind: Literal["none", "engram", "stem", "bigram", "memoryformer"] = "none"
    layers: tuple[int, ...] | None = None
    max_ngram: int = 3
    num_heads: int = 8
    rows: int = 32_768
    row_dim: int = 16
    conv: bool = False
    compress: bool = True
    shuffle_ids: bool = False
    added: bool = False
    bits: int = 8
    scoring: Scoring = "paper"


@option_class
class LmTrainConfig:
    """How a language model is trained.

    Args:
        tokens: to train on; a shorter training split is read again.
        batch_size: sequences per step, over all ranks.
        lr: peak learning rate of the dense parameters (AdamW, betas 0.9 and 0.95).
        weight_decay: of matrices; norms and embeddings are left alone.
        clip_grad_norm: largest norm of the gradient of all dense parameters together; None clips nothing. Rows are
            neither counted nor scaled.
        row_optimizer: of the memory rows; adam needs `rows.backend: torch`.
        row_lr: peak learning rate of the memory rows. It decides more than anything else: try .2, .8 and 3.2 with
            rowwise_adagrad.
        warmup_steps: steps in which both rates rise linearly.
        decay: of both rates after the warm-up.
        seed: of initial values and of the order of sequences.
        eval_every: steps between evaluations on validation; None evaluates at the end.
        eval_tokens: tokens of a split that an evaluation reads at most; None reads all.
        checkpoint_every: steps between checkpoints besides those at evaluations.
        checkpoint_minutes: minutes after which a checkpoint is written in any case.
        tensorboard: also write TensorBoard event files.
        num_threads: threads of torch; None leaves torch's own choice.
    """

    tokens: int = 2_000_000
    batch_size: int = 8
    lr: float = 0.003
    weight_decay: float = 0.1
    clip_grad_norm: float | None = 1.0
    row_optimizer: RowOptimizerName = "rowwise_adagrad"
    row_lr: float = 0.8
    warmup_steps: int = 50
    decay: Literal["none", "linear", "cosine"] = "cosine"
    seed: int = 0
    eval_every: int | None = None
    eval_tokens: int | None = 131_072
    checkpoint_every: int | None = None
    checkpoint_minutes: float = 10.0
    tensorboard: bool = False
    num_threads: int | None = None


@option_class
class LmRowsConfig:
    """Where memory rows are held.

    Args:
        backend: fbgemm, or its slow twin torch (which has adam).
        tier: memory of the device, of the host (the same without a GPU), or memory-mapped files.
        dtype: fp32, or fp16 and bf16 in half the memory (on a CPU with backend torch).
        cut: how several ranks share a table: its rows, the columns of every row (for wide STEM rows; not with
            rowwise_adagrad, whose state is of whole rows), or whole heads.
        directory: of the disk tier's files; None takes `rows/` in the run directory.
        prefetch: on the disk tier, read the rows of the next batch ahead of their use.
    """

    backend: Literal["fbgemm", "torch"] = "fbgemm"
    tier: Literal["device", "host", "disk"] = "device"
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    cut: Literal["rows", "columns", "heads"] = "rows"
    directory: str | None = None
    prefetch: bool = True


@option_class
class LmConfig:
    """A run.

    Args:
        corpus: which text.
        model: the decoder.
        memory: its memory tables.
        train: how it is trained.
        rows: where rows are held.
    """

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    train: LmTrainConfig = field(default_factory=LmTrainConfig)
    rows: LmRowsConfig = field(default_factory=LmRowsConfig)


_CLASSES = {
    "corpus": CorpusConfig,
    "model": ModelConfig,
    "memory": MemoryConfig,
    "train": LmTrainConfig,
    "rows": LmRowsConfig,
}


def load_lm_config(path: str | Path, *, overrides: Sequence[str] = ()) -> LmConfig:
    """Reads and checks a YAML configuration, with keys set as `section.key=value`.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a wrong value.
    """
    return parse_lm_config(read_config(path, overrides=overrides, keys=SECTIONS), origin=told_origin(path, overrides))


def parse_lm_config(raw: Mapping[str, Any], *, origin: str = ORIGIN) -> LmConfig:
    """Checks a configuration that is plain dicts.

    Args:
        raw: as it comes out of YAML.
        origin: what to call it in messages, such as a file name.

    Raises:
        ConfigError: an unknown key (with its path and the nearest right one), a wrong value.
    """
    raw = plain(dict(raw))
    with written_in(origin):
        refuse_unknown(raw, SECTIONS, path="")
        config = LmConfig(**{key: validated(cls, raw.get(key) or {}, path=key) for key, cls in _CLASSES.items()})
        _refuse_bad_numbers(config)
        _refuse_bad_shapes(config)
    return config


def lm_to_plain(config: LmConfig) -> dict[str, Any]:
    """The configuration as plain dicts, every default filled in; `parse_lm_config` reads it back to an equal one."""
    return {
        name: {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(part).items()}
        for name, part in ((f.name, getattr(config, f.name)) for f in fields(config))
    }


def _refuse_bad_numbers(config: LmConfig) -> None:
    at_least_1 = {
        "model": ("dim", "num_layers", "num_heads", "hidden", "context"),
        "memory": ("num_heads", "rows", "row_dim", "bits"),
        "train": ("tokens", "batch_size", "eval_every", "eval_tokens", "checkpoint_every", "num_threads"),
    }
    for name, keys in at_least_1.items():
        for key in keys:
            value = getattr(getattr(config, name), key)
            if value is not None and value < 1:
                raise ConfigError(wrong_value(f"{name}.{key}", value, "it must be at least 1"))
    for key in ("lr", "row_lr", "weight_decay", "warmup_steps", "checkpoint_minutes", "seed"):
        value = getattr(config.train, key)
        if not 0 <= value < float("inf"):
            raise ConfigError(wrong_value(f"train.{key}", value, "it must be finite and 0 or more"))
    clip = config.train.clip_grad_norm
    if clip is not None and not clip > 0:
        raise ConfigError(wrong_value("train.clip_grad_norm", clip, "it must be above 0, or null to clip nothing"))
    if not 257 <= config.corpus.vocab_size <= 65_536:
        raise ConfigError(wrong_value("corpus.vocab_size", config.corpus.vocab_size, "it must be from 257 to 65536"))
    if not 0 <= config.model.embedding_dropout < 1:
        raise ConfigError(f"'model.embedding_dropout' is {config.model.embedding_dropout}; it is a chance below 1")
    ratios = config.corpus.ratios
    if not (min(ratios) > 0 and abs(sum(ratios) - 1) <= 1e-6):  # NaN is refused too
        raise ConfigError(wrong_value("corpus.ratios", list(ratios), "give three positive shares with sum 1"))
    if config.memory.max_ngram < 2:
        raise ConfigError(wrong_value("memory.max_ngram", config.memory.max_ngram, "n-grams begin at 2"))


def _refuse_bad_shapes(config: LmConfig) -> None:
    model, memory = config.model, config.memory
    if model.dim % (2 * model.num_heads):
        raise ConfigError(
            f"model.dim is {model.dim} with {model.num_heads} heads; a head's width must be even, so give a multiple "
            f"of {2 * model.num_heads}"
        )
    if config.train.tokens < config.train.batch_size * model.context:
        raise ConfigError(
            f"train.tokens is {config.train.tokens:,}, less than one batch of {config.train.batch_size} sequences of "
            f"{model.context} tokens; give at least {config.train.batch_size * model.context:,}, or a smaller "
            "train.batch_size or model.context"
        )
    if memory.kind == "memoryformer" and (model.dim % memory.bits or memory.bits + 2 > MAX_BITS):
        raise ConfigError(
            f"memory.bits is {memory.bits} with model.dim {model.dim}; give a divisor of model.dim, at most "
            f"{MAX_BITS - 2}"
        )
    for layer in memory.layers or ():
        if not 0 <= layer < model.num_layers:
            raise ConfigError(
                f"memory.layers has block {layer}, but the model has {model.num_layers} blocks, numbered from 0; "
                f"give numbers from 0 to {model.num_layers - 1}"
            )
    if len(set(memory.layers or ())) != len(memory.layers or ()):
        raise ConfigError(wrong_value("memory.layers", list(memory.layers or ()), "give each block once"))
    if memory.layers == ():
        raise ConfigError("memory.layers is empty; name blocks, or set memory.kind to none")
    if config.train.row_optimizer == "adam" and config.rows.backend == "fbgemm":
        raise ConfigError(
            "train.row_optimizer is 'adam', which the fbgemm backend lacks on a CPU; use rowwise_adagrad, or set "
            "rows.backend to torch"
        )
    if config.rows.dtype != "fp32" and config.rows.backend == "fbgemm":
        raise ConfigError(
            f"rows.dtype is '{config.rows.dtype}', which the fbgemm backend lacks on a CPU; set rows.backend to torch, "
            "or rows.dtype to fp32"
        )
    if config.rows.cut == "columns" and config.train.row_optimizer == "rowwise_adagrad":
        raise ConfigError(
            "rows.cut is 'columns' and train.row_optimizer 'rowwise_adagrad', which keeps a number for each whole row; "
            "set train.row_optimizer to adagrad, sgd or adam (adagrad wants a row_lr of its own), or rows.cut to rows"
        )


def memory_layers(config: LmConfig) -> tuple[int, ...]:
    """The blocks that have a memory of their own, 0-based."""
    memory, num_layers = config.memory, config.model.num_layers
    if memory.layers is not None:
        return memory.layers
    chosen = {
        "engram": range(min(1, num_layers - 1), min(2, num_layers)),
        "stem": range(min(1, num_layers - 1), num_layers, 2),
        "memoryformer": range(num_layers),
    }
    return tuple(chosen.get(memory.kind, ()))
