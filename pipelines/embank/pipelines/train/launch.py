"""Several processes for one run: joining them as torchrun starts them, and refusing those that don't belong
together."""

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from embank.pipelines.config.changes import MAY_CHANGE, flat
from embank.pipelines.data.schema import Schema
from embank.tables.errors import ConfigError, WorkError
from embank.tables.sharding.processes import Processes
from embank.tables.storage.resources import refuse_exhausted

_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
"""What gloo says when a process at the other end has ended."""


_LOST = "embank/ranks that have lost another"
"""Under this name the store that the ranks met in counts them. torchrun keeps it; without torchrun the first rank
does."""
_PATIENCE_S = 5.0
"""How long the first rank keeps it for those that have not noticed yet."""


class LostRankError(WorkError):
    """Another process of the run has ended. The first rank that notices tells it (`is_told`)."""


def backends() -> str:
    """What carries tensors between processes: gloo those in host memory, and where there are GPUs nccl those on
    them."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes that torchrun has started for this run, joined; this one alone without torchrun.

    Raises:
        ConfigError: they can't be joined (the port is taken, the address is wrong).
        LostRankError: one of them ended while the context lasted.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    rank = os.environ["RANK"]
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    try:
        dist.init_process_group(backends())
    except (RuntimeError, ValueError) as error:
        refuse_exhausted(error, doing=f"joining the other ranks as rank {rank}")
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConfigError(
            f"rank {rank} can't join the others at {address}: {str(error).splitlines()[0]}. Is the port in use? Let "
            "torchrun choose "
            "one (--standalone), or give another --master-port"
        ) from error
    is_lost, ranks = False, dist.group.WORLD
    assert ranks is not None
    try:
        yield Processes(ranks)
        dist.barrier()
    except BaseException as error:
        is_lost = _comes_from_a_lost_rank(error)
        if not is_lost:
            raise
        lost = LostRankError(
            f"rank {rank} lost the connection to another rank, which has ended; its own message, if it had one, is "
            "above. Go on "
            "from the last checkpoint with the same command and --resume, on any number of ranks"
        )
        lost.is_told = _has_another_told(ranks)
        raise lost from error
    finally:
        if (
            not is_lost
        ):  # it would wait for the rank that has gone, and torchrun may end this one before it has said why
            dist.destroy_process_group()


def _has_another_told(ranks: dist.ProcessGroup) -> bool:
    """Whether another rank has noticed before this one that one has ended. Where nobody can say, none has: the rank
    that has ended may be the one that kept the store."""
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    try:
        socket.create_connection(address, timeout=_PATIENCE_S).close()  # of a store that has gone torch says much
        store = ranks.get_group_store()
        is_first_to_tell = store.add(_LOST, 1) == 1
        if ranks.rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            _await_others(store, count=ranks.size() - 1)
    except (OSError, RuntimeError):
        return False
    return not is_first_to_tell


def _await_others(store: Any, *, count: int) -> None:
    """Keeps the store for a while, until as many ranks have noticed."""
    end = time.monotonic() + _PATIENCE_S
    while store.add(_LOST, 0) < count and time.monotonic() < end:
        time.sleep(0.01)


def _comes_from_a_lost_rank(error: BaseException) -> bool:
    """Whether gloo's complaint is the error, or what has led to it (a checkpoint that could not be written, for
    example)."""
    cause: BaseException | None = error
    while cause is not None:
        if any(sign in str(cause) for sign in _GONE):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def refuse_differences(
    config: Mapping[str, Any], schema: Schema, processes: Processes, *, content: str | None = None
) -> None:
    """All processes of a run need the same configuration and data.

    Raises:
        ConfigError: names what differs, with the values and ranks.
    """
    keys = {key: value for key, value in flat(config) if key not in MAY_CHANGE or key == "rows.device"}
    described = processes.gather((keys, schema.fingerprint, content))
    with processes.together():
        _refuse_other_ranks(described)


def _refuse_other_ranks(described: Sequence[tuple[dict[str, Any], str, str | None]]) -> None:
    """Raises ConfigError if a rank differs from the first one in keys, fingerprint or digest of the rows."""
    first_keys, first_fingerprint, first_content = described[0]
    for rank, (other, fingerprint, rows) in enumerate(described):
        for key in first_keys | other:
            if first_keys.get(key) != other.get(key):
                raise ConfigError(
                    f"rank {rank} has {key} = {other.get(key)!r} where rank 0 has {first_keys.get(key)!r}; "
                    "start all ranks with the same configuration"
                )
        if fingerprint != first_fingerprint:
            raise ConfigError(
                f"rank {rank} sees data with fingerprint {fingerprint[:12]} where rank 0 has "
                f"{first_fingerprint[:12]}: their "
                "vocabularies differ, so their ids mean something else. Give all ranks the same prepared folder"
            )
        if rows != first_content:
            raise ConfigError(
                f"rank {rank} sees rows with digest {str(rows)[:12]} where rank 0 has {str(first_content)[:12]}: "
                "their ids are the same, their "
                "rows, labels or numbers are not. Give all ranks the same prepared folder"
            )
