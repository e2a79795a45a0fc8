"""Which positions are padding, as a model of transformers is told: by a mask of tokens, or of queries and keys."""

from typing import Any

import torch
from torch import Tensor

from embank.tables.errors import DataError

_FULL = "full_attention"


def dead_positions(attention_mask: Any, shape: torch.Size, *, before: int) -> Tensor | None:
    """Padding among the new positions, bool [B, T] in host memory; None where there is none.

    Args:
        attention_mask: [B, S] of 0 and 1 over all positions; or what `generate` makes of it for a static cache: a mask
            [B, 1, T, K] of queries and keys, true or 0 where a key is seen, or several by the kind of attention.
        shape: [B, T] of the new positions.
        before: positions before them.

    Raises:
        DataError: a mask from which padding can't be read.
    """
    mask = attention_mask
    if isinstance(mask, dict):
        if _FULL not in mask:
            raise DataError(
                f"the attention masks are of the kinds {sorted(mask)}, and the memory reads padding from that of "
                f"'{_FULL}'; give a mask [B, S] of 0 and 1"
            )
        mask = mask[_FULL]
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        kind = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise DataError(f"the attention mask is {kind}; the memory reads padding from a mask [B, S] of 0 and 1")
    dead_BT = (mask[:, -shape[1] :] == 0).cpu() if mask.dim() == 2 else _unseen(mask.cpu(), shape, before)
    return dead_BT.expand(shape) if bool(dead_BT.any()) else None


def _unseen(mask_B1TK: Tensor, shape: torch.Size, before: int) -> Tensor:
    """New keys that the last query does not see, where the mask is a causal one with padding and nothing else."""
    length = shape[1]
    seen_BTK = mask_B1TK[:, 0, -length:, before : before + length]
    seen_BTK = seen_BTK if seen_BTK.dtype == torch.bool else seen_BTK == 0
    if seen_BTK.shape[1:] != (length, length):
        raise DataError(
            f"the attention mask has shape {tuple(mask_B1TK.shape)} for {length} new positions after {before}; give a "
            "mask [B, S] of 0 and 1"
        )
    alive_BT = seen_BTK[:, -1]
    expected_BTK = torch.ones(length, length, dtype=torch.bool).tril() & alive_BT[:, None, :]
    # Queries of padding see no padding, or, where they would see nothing, everything.
    strange_BT = (seen_BTK & ~alive_BT[:, None, :]).any(-1) & ~seen_BTK.all(-1) & ~alive_BT
    if strange_BT.any() or not torch.equal(seen_BTK & alive_BT[..., None], expected_BTK & alive_BT[..., None]):
        raise DataError(
            "the attention mask is not a causal one with padding, so the memory can't tell which tokens belong "
            "together; give a mask [B, S] of 0 and 1, and position_ids that begin anew with each document"
        )
    return ~alive_BT
