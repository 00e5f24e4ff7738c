"""Ranks of torch.distributed: work that fails on all of them or on none, and losses brought to all."""

import hashlib
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

T = TypeVar("T")
_FAILED, _KNOWS_NOTHING, _KNOWS = range(3)


def world(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """(rank, world size) of torch.distributed; (0, 1) where it is not up."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(group), dist.get_world_size(group)
    return 0, 1


class Done(NamedTuple, Generic[T]):
    """What one rank's part of common work came to.

    Args:
        result: what the rank goes on with.
        facts: what has to be the same on all ranks, compared by its repr; None where this rank knows none.
        mark: an int64 for all ranks to see.
    """

    result: T
    facts: object
    mark: int = 0


def together(work: Callable[[], Done[T]], group: dist.ProcessGroup | None = None) -> tuple[T, npt.NDArray[np.int64]]:
    """Do a part of common work on every rank: it succeeds on all of them, or raises the same error on all. Collective.

    Costs one all-gather of 24 bytes a rank, for which the ranks wait for each other; texts travel only where something
    is wrong.

    Returns:
        this rank's result, and int64[world size], every rank's mark.

    Raises:
        ValueError: ``work`` raised on some rank, or facts differ. It names the rank and says why; on the rank itself
            the cause is its own error.
    """
    done: Done[T] | None = None
    fault: Exception | None = None
    try:
        done = work()
    except Exception as error:
        fault = error
    facts = None if done is None or done.facts is None else repr(done.facts)
    row = np.array([_state(done), digest((facts or "").encode()), done.mark if done else 0], np.int64)
    rows = _gather_rows(row, group)
    knows = rows[:, 0] == _KNOWS
    if done is not None and (rows[:, 0] != _FAILED).all() and len(np.unique(rows[knows, 1])) < 2:
        return done.result, rows[:, 2]
    texts: list[Any] = [None] * len(rows)
    dist.all_gather_object(texts, _text(fault) if fault else facts, group=group)
    raise ValueError(_disagreement(rows[:, 0], texts)) from fault


def digest(data: bytes) -> int:
    """An int64 that is another one for other bytes, but for one chance in 2^64."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def from_first_rank(value: T) -> T:
    """Rank 0's value, on all ranks of the default group. Collective."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def _state(done: Done[Any] | None) -> int:
    if done is None:
        return _FAILED
    return _KNOWS_NOTHING if done.facts is None else _KNOWS


def _text(fault: Exception) -> str:
    return str(fault) if isinstance(fault, (ValueError, TypeError)) else f"{type(fault).__name__}: {fault}"


def _disagreement(states: npt.NDArray[np.int64], texts: list[str]) -> str:
    failed = np.flatnonzero(states == _FAILED)
    if len(failed):
        return "; ".join(f"rank {rank}: {texts[rank]}" for rank in failed)
    first, *others = np.flatnonzero(states == _KNOWS)
    other = next(rank for rank in others if texts[rank] != texts[first])
    return f"rank {other} disagrees with rank {first}: {texts[other]} against {texts[first]}"


def _gather_rows(row: npt.NDArray[np.int64], group: dist.ProcessGroup | None) -> npt.NDArray[np.int64]:
    """int64[world size, k], from the int64[k] of each rank."""
    nccl = dist.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    part = torch.from_numpy(row).to(device)
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part, group=group)
    return torch.stack(parts).cpu().numpy()


class PairGather:
    """Gathers (position, loss) pairs, of different counts on different ranks, in rank order.

    One all-gather of ``int64[1 + 2·capacity]`` a call: the count, the positions and the losses' bits. All
    ranks see all counts, so when one outgrows the capacity all of them notice, and gather once more with
    room for it; with batches of a steady size that happens on the first call alone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.capacity = 0

    def __call__(
        self, indices: npt.NDArray[np.int64], losses: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """int64[n] and float32[n] of this rank in; the same, of all ranks one after the other, out.

        Collective: every rank calls it, with an empty array where it has nothing.
        """
        if world(self.group)[1] == 1:
            return indices, losses
        while True:
            rows = self._exchange(indices, losses)
            counts = rows[:, 0]
            if counts.max() <= self.capacity:
                break
            self.capacity = int(counts.max())
        positions = rows[:, 1 : 1 + self.capacity]
        values = rows[:, 1 + self.capacity :].astype(np.int32).view(np.float32)
        present = np.arange(self.capacity) < counts[:, None]
        return positions[present], values[present]

    def _exchange(self, indices: npt.NDArray[np.int64], losses: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        row = np.zeros(1 + 2 * self.capacity, np.int64)
        row[0] = len(indices)
        if len(indices) <= self.capacity:
            row[1 : 1 + len(indices)] = indices
            row[1 + self.capacity : 1 + self.capacity + len(indices)] = losses.view(np.int32)
        return _gather_rows(row, self.group)

    def __getstate__(self) -> dict[str, int]:
        # A process group belongs to its process; a copy elsewhere uses the default one.
        return {"capacity": 0}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.group, self.capacity = None, state["capacity"]
