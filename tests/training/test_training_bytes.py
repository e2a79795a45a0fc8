"""Training bytes of a run: tables, and what optimizers keep for their rows and methods."""

from pathlib import Path

import pytest
import torch

from embank.pipelines.config.sections import TrainConfig
from embank.pipelines.runs.inspect import inspect_run
from embank.pipelines.train.optimizer import dense_optimizer, training_nbytes
from embank.tables import TableCollection, TableSpec
from tests.tables.batches import random_kjt
from tests.tables.held import held_nbytes
from tests.training.runs import train, write_data


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_training_bytes_count_what_optimizers_keep_for_methods(optimizer: str) -> None:
    """Adam keeps two numbers per parameter and a count of steps, Adagrad one; the network's are not the tables'."""
    specs = [TableSpec(name="t", num_embeddings=50, embedding_dim=6, feature_names=["a"], method="dhe")]
    tables, network = TableCollection(specs), torch.nn.Linear(6, 1)
    parameters = tables.dense_parameters()
    trained = dense_optimizer(network, parameters, config=TrainConfig(optimizer=optimizer))
    network(tables(random_kjt({"a": 50}, batch_size=8, seed=0)).values()).sum().backward()
    trained.step()
    numbers = 4 * sum(parameter.numel() for parameter in parameters)
    kept = {"adam": 2 * numbers + 4 * len(parameters), "adagrad": numbers + 4 * len(parameters), "sgd": 0}[optimizer]
    assert training_nbytes(tables, [trained]) == held_nbytes(tables) + kept


def test_a_run_reports_the_training_bytes_of_its_methods(tmp_path: Path) -> None:
    result = train(write_data(tmp_path / "data"), tmp_path / "run", tables={"method": "dhe"}, train={"epochs": 1})
    assert result["training_bytes"] > inspect_run(tmp_path / "run")["total"]["training_bytes"] > 0
