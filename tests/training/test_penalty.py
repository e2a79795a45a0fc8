"""The lazy L2 penalty against the dense one that it stands for."""

import torch
from torchrec import KeyedJaggedTensor

from embank.pipelines.training.penalty import RowPenalty
from embank.tables import TableCollection, TableSpec


def test_one_epoch_of_lazy_penalties_is_the_dense_penalty() -> None:
    """Summed over all batches of an epoch, with rows unchanged: steps times l2 / 2 * ||W||**2 of the seen ids."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 40, (96,), generator=generator)
    counts = torch.bincount(ids, minlength=40)
    specs = [
        TableSpec(name="t", num_embeddings=40, embedding_dim=6, feature_names=["a"], counts=counts),
        TableSpec(name="u", num_embeddings=40, embedding_dim=1, feature_names=["a"], counts=counts),
    ]
    tables = TableCollection(specs, backend="torch")
    penalty = RowPenalty(tables, l2=0.3, num_rows=96, batch_size=32)
    total = torch.zeros(())
    for batch in ids.split(32):
        kjt = KeyedJaggedTensor(keys=["a"], values=batch, lengths=torch.ones(32, dtype=torch.int32))
        prepared = penalty.address(kjt)
        total = total + penalty(tables(prepared.addressed).values(), prepared.weights_BK)
    seen = counts > 0
    dense = 3 * 0.3 / 2 * sum(w[seen].square().sum() for w in tables.weights().values())
    torch.testing.assert_close(total, dense)
    total.backward()
    held = [p for rows in tables.row_stores() for p in rows.parameters()]
    (grad,) = [p.grad.to_dense() for p in held if p.shape[1] == 6]
    torch.testing.assert_close(grad[seen], 3 * 0.3 * tables.weights()["t"][seen])


def test_bags_weigh_by_the_mean_of_their_ids() -> None:
    counts = torch.tensor([1, 2, 4])
    spec = TableSpec(name="t", num_embeddings=3, embedding_dim=4, feature_names=["a"], counts=counts)
    penalty = RowPenalty(TableCollection([spec]), l2=1.0, num_rows=8, batch_size=4)
    kjt = KeyedJaggedTensor(
        keys=["a"], values=torch.tensor([0, 1, 2]), lengths=torch.tensor([2, 0, 1, 0], dtype=torch.int32)
    )
    assert penalty.address(kjt).weights_BK[:, 0].tolist() == [(2 / 1 + 2 / 2) / 2, 0, 2 / 4, 0]
