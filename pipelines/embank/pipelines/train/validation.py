"""Rows of validation that candidates of a search are scored on again and again."""

from itertools import islice

from embank.ctr_models import CTRModel
from embank.pipelines.config.run import Config
from embank.pipelines.data.loading.loader import Loader
from embank.pipelines.runs.evaluate import EVAL_BATCH_SIZE, evaluate_batches, refuse_unlabelled
from embank.tables import TableCollection

_PIECES = 8
"""Batches that a sample has at least, if it has so many rows: shares of it are whole batches."""


class ValidationSample:
    """Rows of the validation split, drawn once from all of it in random order; they stay in memory.

    Args:
        config: says which data, and the precision of scores.
        tables: those that the rows will be looked up in, as they address ids now.
        max_samples: about so many rows at most; None takes all.
    """

    def __init__(self, config: Config, tables: TableCollection, *, max_samples: int | None) -> None:
        self.precision, processes = config.train.precision, tables.processes
        loader = self._loader(config, tables, batch_size=1)
        refuse_unlabelled(loader.schema, data=config.data.path)
        self.schema, num_rows = loader.schema, loader.num_rows
        every = 1 if max_samples is None else max(1, -(-num_rows // max_samples))
        rows = max(1, min(EVAL_BATCH_SIZE * processes.count, num_rows // (every * _PIECES)))
        loader = self._loader(config, tables, batch_size=rows)
        self.batches = list(islice(loader.epoch(0), 0, None, every))

    @staticmethod
    def _loader(config: Config, tables: TableCollection, *, batch_size: int) -> Loader:
        return Loader(
            config.data.path,
            "valid",
            batch_size=batch_size,
            shuffle=True,
            buffer_rows=config.data.buffer_rows,
            rank=tables.processes.rank,
            world_size=tables.processes.count,
            address=tables.address,
        )

    def score(self, model: CTRModel, *, share: float = 1.0) -> float:
        """AUC of a model, or its negative log loss where AUC is undefined or only a share of the rows is asked for.

        Args:
            model: tables and network; left in evaluation mode.
            share: of the rows, always the same first ones.
        """
        batches = self.batches[: max(1, round(share * len(self.batches)))]
        values = evaluate_batches(model, batches, split="valid", schema=self.schema, precision=self.precision)
        is_auc = share == 1 and values["auc"] is not None
        return float(values["auc"] if is_auc else -values["logloss"])
