"""The sections `data`, `train` and `rows` of a run's configuration."""

from dataclasses import field
from typing import Literal

from embank.tables import option_class
from embank.tables.rows.store_spec import RowOptimizerName


@option_class
class DataConfig:
    """Which prepared folder, and how it is read.

    Args:
        path: what `embank prepare` wrote.
        batch_size: rows per step, over all ranks.
        shuffle: whether the training rows are shuffled anew in each epoch.
        buffer_rows: rows that are shuffled together; bounds the loader's memory.
        prefetch: batches that the loader prepares ahead on its thread.
    """

    path: str
    batch_size: int = 4096
    shuffle: bool = True
    buffer_rows: int = 262_144
    prefetch: int = 4


FIRST_TABLE_LR = 0.02


@option_class
class TrainConfig:
    """How a model is trained.

    Args:
        epochs: passes over the training split.
        lr: peak learning rate of the dense parameters.
        optimizer: of the dense parameters; adam and adamw are the same, since decay is decoupled in both.
        weight_decay: of the network's weights, decoupled for adam, added to the gradient for sgd and adagrad. Biases,
            norms and what methods learn are left alone, see `embank.pipelines.train.optimizer`.
        clip_grad_norm: largest norm of the gradient of all dense parameters together; a longer one is scaled down to
            it. Rows are
            neither counted nor scaled: their update is part of the backward pass. None clips nothing.
        table_optimizer: of the rows; adam needs `rows.backend: torch`.
        table_lr: peak learning rate of the rows; or auto: the best of several short trainings by validation, see
            `embank.pipelines.train.rates`.
        search_lr: learning rate (Adam) of what methods search for on validation batches, in stages that alternate.
        embedding_l2: adds embedding_l2 / 2 * (sum of squares of all rows) to the loss of each step, spread over the
            lookups: see `embank.pipelines.train.penalty`.
        warmup_steps: steps in which both learning rates rise linearly from 0.
        decay: of both learning rates after the warm-up. linear and cosine go to 0 at the end of the last epoch; plateau
            divides them by 10 after each evaluation without improvement.
        seed: of initial values, shuffling and dropout.
        patience: evaluations without improvement on validation before training stops; None trains all epochs.
        monitor: what is improved on validation; gauc needs data with a group key.
        eval_every: steps between evaluations on validation; None evaluates at the end of each epoch.
        checkpoint_every: steps between checkpoints besides those at evaluations.
        checkpoint_minutes: minutes after which a checkpoint is written in any case.
        precision: fp32, or bf16 (autocast of the network; rows and optimizers stay fp32), or auto: fp32, and in a long
            training bf16 where a step is faster in it.
        compile: run the network through torch.compile; or auto: in a long training, where it pays.
        tensorboard: also write TensorBoard event files (the extra `embank[tensorboard]`).
        num_threads: threads of torch; None leaves torch's own choice.
        straight_through: a codec in the loop: steps and evaluations see rows as it holds them, gradients move the fp32
            rows; it is the one that is served. Tables that have a codec of their own are trained through that. A budget
            does not count it. None trains plain rows.
    """

    epochs: int = 1
    lr: float = 0.001
    optimizer: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    weight_decay: float = 0.0
    clip_grad_norm: float | None = field(default=None, metadata={"may_be_infinite": True})
    table_optimizer: RowOptimizerName = "rowwise_adagrad"
    table_lr: float | Literal["auto"] = 0.02
    search_lr: float = 0.001
    embedding_l2: float = 0.0
    warmup_steps: int = 0
    decay: Literal["none", "linear", "cosine", "plateau"] = "none"
    seed: int = 0
    patience: int | None = None
    monitor: Literal["auc", "gauc", "logloss"] = "auc"
    eval_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_minutes: float = field(default=10.0, metadata={"may_be_infinite": True})
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    tensorboard: bool = False
    num_threads: int | None = None
    straight_through: str | None = None

    @property
    def rows_lr(self) -> float:
        """`table_lr`; where it is still to be found, the first rate that is tried."""
        return FIRST_TABLE_LR if self.table_lr == "auto" else self.table_lr


@option_class
class RowsConfig:
    """Where rows are held.

    Args:
        backend: fbgemm, or its slow twin torch (which has adam).
        device: cpu, or cuda for tables and network on a GPU (with several ranks, each on its own).
        tier: memory of the device, of the host (the same without a GPU), or memory-mapped files.
        dtype: fp32, or fp16 and bf16 in half the memory (on a CPU with backend torch).
        directory: of the disk tier's files; None takes `rows/` in the run directory.
        prefetch: on the disk tier, read the rows of the batches that the loader has made (`data.prefetch`) ahead of
            their use.
        planner: who decides which rank holds what, when there are several: embank, or torchrec's own planner.
        plan: a file with a plan, as `embank plan --out` writes it, instead of a planner.
        memory_per_rank: bytes that rows and their optimizer state may take on each rank; None for no limit.
    """

    backend: Literal["fbgemm", "torch"] = "fbgemm"
    device: Literal["cpu", "cuda"] = "cpu"
    tier: Literal["device", "host", "disk"] = "device"
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    directory: str | None = None
    prefetch: bool = True
    planner: Literal["embank", "torchrec"] = "embank"
    plan: str | None = None
    memory_per_rank: int | None = None
