"""What rows belong to: of each table its method, options, sizes and addresses. Saved beside rows, and compared before
they are loaded.

Rows by themselves say nothing: the same numbers under another hash, another number of ids or another method are another
table.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from embank.tables.errors import CheckpointError
from embank.tables.ids.hashing import HASH_VERSION
from embank.tables.ids.token_space import refuse_other_token_hash
from embank.tables.method.base import Method
from embank.tables.specs import token_hash_version_of

if TYPE_CHECKING:
    from embank.tables.collections.base import Tables

NUM_PROBES = 256
"""So many ids of a table are addressed, and what comes out is part of its identity."""


def identity_of(tables: "Tables") -> dict[str, Any]:
    """What must agree before rows of one collection are loaded into another, as JSON: of each table by name, and of
    all."""
    return {
        "hash_version": HASH_VERSION,
        "token_hash_version": token_hash_version_of(tables.specs),
        "row_optimizer": tables.optimizer.name,
        "tables": {method.spec.name: table_identity(method) for method in tables.built_methods()},
    }


def as_tensor(facts: Mapping[str, Any], *, form: str) -> Tensor:
    """Facts as bytes of JSON in a tensor, which every format for tensors can hold.

    Args:
        facts: plain values.
        form: whose facts they are.
    """
    return torch.frombuffer(bytearray(json.dumps({"format": form, **facts}).encode()), dtype=torch.uint8)


def of_tensor(value: Any, *, form: str) -> dict[str, Any]:
    """The inverse of `as_tensor`.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        saved = json.loads(bytes(value.cpu().tolist()))
        if saved["format"] == form and isinstance(saved["tables"], dict):
            return dict(saved)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError):  # the fourth: it has no values
        pass
    raise CheckpointError(f"the '_extra_state' in this state_dict was not written by {form}")


def table_identity(method: Method) -> dict[str, Any]:
    """What rows of one table depend on.

    `addresses` is a digest of the rows of a few ids: it tells of what options don't, such as the counts that decide
    which ids have rows of their own.
    """
    spec, options = method.spec, method.options
    facts = {
        "method": spec.method,
        "num_embeddings": spec.num_embeddings,
        "embedding_dim": spec.embedding_dim,
        "options": asdict(options) if is_dataclass(type(options)) else vars(options),
        "budget": spec.budget,
        "stage": spec.stage,
        "found": {name: _digest([value]) for name, value in spec.found.items()},
        "addresses": _digest(method.address(_probes(spec.num_embeddings))),
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return plain


def _probes(num_ids: int) -> Tensor:
    """Some ids, the first ones and others spread over all."""
    half = NUM_PROBES // 2
    chosen = {*range(min(num_ids, half)), *((num_ids - 1) * i // (half - 1) for i in range(half))}
    return torch.tensor(sorted(chosen))


def _digest(tensors: "tuple[Tensor, ...] | list[Tensor]") -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


def refuse_other_hashes(saved: Mapping[str, Any], *, what: str) -> None:
    """Raises CheckpointError if rows were addressed by other hash functions."""
    if saved.get("hash_version") != HASH_VERSION:
        raise CheckpointError(
            f"{what} was addressed by hash version {saved.get('hash_version')}; this embank has version "
            f"{HASH_VERSION}, which gives ids other rows"
        )
    refuse_other_token_hash(saved.get("token_hash_version"), what=what, error=CheckpointError)


def refuse_other_tables(saved: Mapping[str, Any], tables: "Tables", *, what: str) -> None:
    """Compares what was saved beside rows with tables of the same names.

    Args:
        saved: what `identity_of` gave; tables that are only here or only there are left to the caller.
        tables: what the rows are to be loaded into.
        what: what they come from, for messages.

    Raises:
        CheckpointError: names the tables and what differs.
    """
    refuse_other_hashes(saved, what=what)
    mine = identity_of(tables)["tables"]
    differing = {name: _differences(saved["tables"][name], mine[name]) for name in mine if name in saved["tables"]}
    lines = [f"table '{name}' {', '.join(found)}" for name, found in differing.items() if found]
    if lines:
        more = f", and {len(lines) - 3} more tables" if len(lines) > 3 else ""
        raise CheckpointError(
            f"{what} is of other tables: {'; '.join(lines[:3])}{more}. Make the tables as they were when it was saved, "
            "or train anew"
        )


def _differences(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """What differs, in words; the first of the facts that others follow from."""
    flat = [{**facts, **{f"options.{k}": v for k, v in facts["options"].items()}} for facts in (saved, mine)]
    keys = [key for key in dict.fromkeys([*flat[0], *flat[1]]) if key not in ("options", "addresses", "found")]
    found = [
        f"was saved with {key} {flat[0].get(key)!r} and has {flat[1].get(key)!r} here"
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
    ]
    if found and saved["method"] != mine["method"]:
        return found[:1]
    if not found and saved["found"] != mine["found"]:
        return ["is in a stage whose search found something else here (masks, widths or maps)"]
    if not found and saved["addresses"] != mine["addresses"]:
        return [
            "looks its ids up in other rows here: its counts differ, or this version of its method addresses otherwise"
        ]
    return found


def refuse_other_optimizer(saved: Mapping[str, Any], tables: "Tables", *, what: str, cure: str) -> None:
    """Raises CheckpointError if row-optimizer state is of another optimizer."""
    if saved["row_optimizer"] != tables.optimizer.name:
        raise CheckpointError(
            f"{what} has the rows' optimizer state of '{saved['row_optimizer']}'; the tables here are updated by "
            f"'{tables.optimizer.name}'. Use RowOptimizer(name='{saved['row_optimizer']}'), or {cure}"
        )
