"""A matrix in the form of a codec, in little memory: codecs that code rows on their own do it block by block."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from embank.pipelines.vectors.matrix import mapped_file
from embank.tables import Coded, ConfigError, encode, named_codec
from embank.tables.method.facts import facts_of, restored

NUMBERS_PER_BLOCK = 1 << 22


def encoded(rows_RD: Tensor, codec: str, scratch: Path, *, numbers: int = NUMBERS_PER_BLOCK) -> Coded:
    """Rows in the form of a codec, equal to the bit to that of `encode`.

    Args:
        rows_RD: fp32; may be mapped.
        codec: a name, see `named_codec`.
        scratch: a folder; buffers of codecs that code blocks are files in it, which must stay.
        numbers: of a block.

    Raises:
        ConfigError: see `encode`.
    """
    num_rows, dim = rows_RD.shape
    multiple = named_codec(codec).cls.rows_per_block(dim)
    size = max(1, numbers // max(1, dim) // max(1, multiple)) * multiple
    if codec == "fp32" or not multiple or num_rows <= size:
        return encode(rows_RD, codec=codec)
    scratch.mkdir(exist_ok=True)
    kinds: dict[str, tuple[torch.dtype, torch.Size]] = {}
    lengths: dict[str, int] = {}
    facts = None
    with ExitStack() as stack:
        files = {}
        for start in range(0, num_rows, size):
            block = encode(rows_RD[start : start + size], codec=codec)
            if facts not in (None, facts_of(block)):
                raise ConfigError(f"codec '{codec}': blocks of rows have unlike facts; mend its rows_per_block")
            facts = facts_of(block)
            for name, buffer in block.named_buffers():
                if name not in files:
                    files[name] = stack.enter_context((scratch / name).open("wb"))
                    kinds[name] = (buffer.dtype, buffer.shape[1:])
                lengths[name] = lengths.get(name, 0) + len(buffer)
                files[name].write(buffer.contiguous().view(torch.uint8).numpy().data)
    tensors = {name: mapped_file(scratch / name, kinds[name][0], (lengths[name], *kinds[name][1])) for name in kinds}
    coded: Coded = restored(named_codec(codec).cls, facts or {}, tensors)
    return coded
