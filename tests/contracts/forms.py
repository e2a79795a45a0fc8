"""Every form in which a method may be served: its options, its stages, what a budget leaves of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from embank.tables import TableSpec, method_class

NUM, DIM = 200, 6
COUNTS = (1e5 / torch.arange(1, NUM + 1) ** 1.1).long()
"""Ids are ranked by frequency, as `embank prepare` leaves them."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a table of a form is made.

    Args:
        method: name of the method.
        budget: of the table.
        options: of the method.
        meets_unknown: whether training met id 0.
        has_counts: whether the table knows how often ids are met.
    """

    method: str
    budget: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    meets_unknown: bool = True
    has_counts: bool = True

    def spec(self, name: str) -> TableSpec:
        """A table of this form, read by a feature of the same name."""
        counts: Tensor | None = COUNTS.clone() if self.has_counts else None
        if counts is not None and not self.meets_unknown:
            counts[0] = 0
        return TableSpec(
            name=name,
            num_embeddings=NUM,
            embedding_dim=DIM,
            feature_names=[name],
            method=self.method,
            budget=self.budget,
            counts=counts,
            options=method_class(self.method).Config(**self.options) if self.options else None,
        )


FORMS = {
    "full": Form(method="full"),
    "hash": Form(method="hash", budget=0.5),
    "frequency_cut": Form(method="frequency_cut", budget=0.5),
    "uniform_dim": Form(method="uniform_dim", budget=0.5),
    "uniform_dim_whole": Form(method="uniform_dim"),
    "mde": Form(method="mde", options={"width": 2}),
    "adapt": Form(method="adapt", budget=0.5),
    "adapt_unknown_shares": Form(method="adapt", budget=0.5, meets_unknown=False),
    "adapt_private_share": Form(method="adapt", budget=0.3, options={"private": 0.4}, has_counts=False),
    "adapt_all": Form(method="adapt"),
    "dedup": Form(method="dedup", budget=0.5, options={"rows_per_block": 8}),
    "dedup_all": Form(method="dedup", options={"similarity": 1.0, "max_difference": 0.0}),
    "hash_embedding": Form(method="hash_embedding", options={"num_hashes": 3, "num_rows": 40}),
    "hash_embedding_shared": Form(method="hash_embedding", options={"table": "pool", "num_rows": 50}),
    "hash_embedding_one": Form(method="hash_embedding", options={"num_hashes": 1, "num_rows": 40}),
    "memcom": Form(method="memcom", budget=0.5),
    "memcom_bias": Form(method="memcom", budget=0.6, options={"bias": True}),
    "memcom_shared": Form(method="memcom", options={"table": "pool", "num_rows": 50, "bias": True}),
    "robe": Form(method="robe", budget=0.5),
    "robe_signs": Form(method="robe", budget=0.5, options={"chunk": 4, "signs": True}),
    "unified": Form(method="unified", options={"rows": 60, "width": 3}),
    "unified_two_tables": Form(method="unified", options={"rows": 30, "width": 3, "num_tables": 2}),
    "unified_projected": Form(method="unified", options={"rows": 60, "width": 4, "lookups": 3}),
    "unified_private": Form(method="unified", budget=0.5),
    "unified_private_projected": Form(method="unified", budget=0.5, options={"width": 5, "lookups": 2}),
    "unified_exact": Form(method="unified", options={"placement": "exact"}),
    "compositional": Form(method="compositional", budget=0.5),
    "compositional_sum": Form(method="compositional", options={"combine": "sum", "divisor": 7}),
    "compositional_three": Form(method="compositional", options={"num_partitions": 3, "divisor": 4}),
    "compositional_shared": Form(method="compositional", options={"table": "pool", "num_rows": 60}),
    "dhe": Form(method="dhe", options={"width": 6, "num_hashes": 10, "num_layers": 3}),
    "dhe_gaussian": Form(method="dhe", options={"width": 6, "num_hashes": 10, "encoding": "gaussian"}),
    "tt_rec": Form(method="tt_rec", budget=0.5),
    "tt_rec_rank_1": Form(method="tt_rec", options={"rank": 1}),
    "low_precision": Form(method="low_precision", options={"bits": 8}),
    "low_precision_wide": Form(method="low_precision", options={"bits": 16}),
    "low_precision_mixed": Form(method="low_precision", budget=0.4),
    "alpt": Form(method="alpt", options={"bits": 8}),
    "alpt_wide": Form(method="alpt", options={"bits": 16}),
    "alpt_mixed": Form(method="alpt", budget=0.55),
    "dpq": Form(method="dpq", options={"num_codebooks": 3, "num_codes": 11}),
    "dpq_bytes": Form(method="dpq", options={"num_codebooks": 2, "num_codes": 16}),
    "mgqe": Form(method="mgqe", options={"num_codebooks": 3, "num_codes": 16, "num_tail_codes": 5}),
    "mgqe_bytes": Form(method="mgqe", options={"num_codebooks": 2, "num_codes": 16, "num_tail_codes": 4}),
    "mgqe_little_head": Form(
        method="mgqe", options={"num_codebooks": 2, "num_codes": 16, "num_tail_codes": 1, "head_share": 0.001}
    ),
    "autodim": Form(method="autodim", budget=0.5),
    "autodim_whole": Form(method="autodim"),
    "optembed": Form(method="optembed", budget=0.5),
    "optembed_kept": Form(method="optembed", budget=0.2),
    "optembed_all": Form(method="optembed"),
    "sparse_dense": Form(method="deeplight", options={"density": 1.0}),
    "sparse_bitmap": Form(method="deeplight", options={"density": 0.3}),
    "sparse_list8": Form(method="pep", options={"density": 0.08}),
    "sparse_list16": Form(method="autosrh", options={"density": 0.005}),
    "deeplight_few": Form(method="deeplight", options={"density": 0.02}),
    "pep": Form(method="pep", budget=0.5),
    "autosrh": Form(method="autosrh", budget=0.5),
}
"""By name. Every registered method has at least one."""
