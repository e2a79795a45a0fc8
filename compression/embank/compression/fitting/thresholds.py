"""Fits of tables of which single numbers are kept, those of the largest squares: each times its id's weight, which is
what a number that is not kept adds to the weighted squared error."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from embank.compression.fitting.means import Means
from embank.tables import CurrentRows, Fitted, NewRows, Wanted


class LargestNumbers(Means):
    """Of tables that choose by size which numbers to keep (AutoSrh): while they choose, vectors are scaled by the roots
    of their ids' weights; then what is kept is what is wanted.

    Example:
        >>> options = method_class("autosrh").Config(density=0.5)
        >>> table = build_table(method="autosrh", num_embeddings=2, embedding_dim=4, options=options)
        >>> vectors_ND = torch.tensor([[2.0, 1.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
        >>> report = table.fit(vectors_ND, weights=torch.tensor([100.0, 1.0]))
        >>> table.lookup(torch.arange(2)).int()  # the first id counts for more
        tensor([[2, 1, 2, 1],
                [0, 0, 0, 0]], dtype=torch.int32)
    """

    def guide(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        scaled = [replace(own, vectors_KD=own.vectors_KD * own.weights_K.sqrt()[:, None]) for own in wanted]
        return self.fit(methods, scaled, rows, seed=seed)


class BeyondThresholds(LargestNumbers):
    """While thresholds are searched (PEP's `sign(v) relu(|v| - t)`), each number is its threshold further from 0 than
    what is wanted; a number of 0 stays there. Then the mask that follows keeps the largest numbers, and those that are
    kept are what is wanted.

    Example:
        >>> options = method_class("pep").Config(density=0.5)
        >>> table = build_table(method="pep", num_embeddings=2, embedding_dim=4, options=options)
        >>> report = table.fit(torch.tensor([[1.0, 9.0, 0.0, 3.0], [7.0, 0.0, 5.0, 2.0]]))
        >>> table.lookup(torch.arange(2)).int()
        tensor([[0, 9, 0, 3],
                [7, 0, 5, 0]], dtype=torch.int32)
    """

    def fit(self, methods: Sequence[Any], wanted: Sequence[Wanted], rows: CurrentRows, *, seed: int) -> Fitted:
        (method,), (own,) = methods, wanted
        if method.spec.stage:
            return super().fit(methods, wanted, rows, seed=seed)
        values_KD = own.vectors_KD + own.vectors_KD.sign() * method.thresholds.detach().cpu().sigmoid()
        return Fitted(rows={method.spec.name: NewRows(numbers_U=own.ids_K, values_Uw=values_KD)})
