"""Split of an epoch among ranks: which rows of the epoch's order each rank gets at each step.

One rule, for the local samplers and for the service's sessions:

- every rank has the same number of steps, and together they get every row once;
- a step takes ``batch_size`` rows for each rank, or one batch of a plan for each rank;
- what is left at the end is shared out: of rows, one by one, so that the ranks' batches differ by one row at most; of
  batches, each among ranks of its own, as many as its size asks for. **No rank ever gets rows of two batches at once**:
  what a plan keeps apart (data sets, rows with equal ids) stays apart on each rank;
- where that is fewer rows than ranks, so that a rank would get an empty batch, the step before helps out: of rows, it
  takes in the few (one more for some ranks); of batches, which may be as large as memory allows, the batches of both
  steps are halved and shared out. Either way the number of steps depends on sizes alone and not on the order, so that
  all epochs of a plan have as many;
- what is dropped on request is what does not fill a last step, never a whole epoch: an epoch has at least one step,
  because neither a session, which counts its steps, nor a trainer can do anything with none.

One case remains where a rank has nothing to do: fewer rows than ranks, and no step before (:attr:`Split.scarce`). A
whole epoch then has one step with some empty shares. A session hands those out; a local sampler raises, because
neither a DataLoader nor a mean loss can do anything with an empty batch, and every epoch would be as short. The rest
of an epoch, resumed on more ranks, cannot raise: a training would stop for where it happened to be interrupted. Its
few rows are given to several ranks each: none is lost, and no rank waits for one that has nothing. (So are the last
rows of a plan of such tiny batches that its last two steps cannot be halved.)

A split also describes the *rest* of an epoch, from a position on, so that a sampler resumes on any number of ranks.
Positions count rows, or batches where the split is of batches. Nothing here needs more than numpy.
"""

from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heapreplace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Remainder = Literal["share", "drop", "repeat"]
REMAINDERS: tuple[Remainder, ...] = ("share", "drop", "repeat")


class Split(Protocol):
    """How the rows of an epoch's order, or those from a position on, fall into steps and ranks."""

    @property
    def rows(self) -> int:
        """Rows of the whole epoch."""

    @property
    def world_size(self) -> int:
        """Ranks that share each step."""

    @property
    def start(self) -> int:
        """The position of the first step."""

    @property
    def remaining(self) -> int:
        """Rows from ``start`` on."""

    @property
    def scarce(self) -> bool:
        """Whether there are fewer rows than ranks to share them, so that some ranks have none of their own."""

    @property
    def steps(self) -> int:
        """Steps of each rank."""

    def end(self, step: int) -> int:
        """The position after a step."""

    def span(self, rank: int, step: int) -> tuple[int, int]:
        """Where a rank's batch of a step starts and stops, in rows of the epoch's order."""


class SharedSplit(Split, Protocol):
    """A split whose steps are shared by all ranks, such as super-batches are."""

    @property
    def fewest(self) -> int:
        """Rows of the smallest step, of all ranks together; 0 without steps."""

    def step_span(self, step: int) -> tuple[int, int]:
        """Where a step starts and stops, of all ranks together, in rows of the epoch's order."""


@dataclass(frozen=True)
class RowSplit:
    """The split of an order of rows.

    Args:
        rows: of the whole epoch.
        batch_size: rows of a full step on each rank; with ``together``, on all ranks.
        world_size: ranks.
        drop_last: leave out the rows that do not fill a last step.
        start: rows that were handed out before.
        together: ``batch_size`` counts the rows of all ranks.
    """

    rows: int
    batch_size: int
    world_size: int
    drop_last: bool = False
    start: int = 0
    together: bool = False

    @cached_property
    def stride(self) -> int:
        """Rows of a full step, of all ranks together."""
        return self.batch_size if self.together else self.batch_size * self.world_size

    @cached_property
    def remaining(self) -> int:
        return self.rows - self.start

    @property
    def scarce(self) -> bool:
        return self.steps > 0 and self.remaining < self.world_size

    @cached_property
    def steps(self) -> int:
        full, rest = divmod(self.remaining, self.stride)
        if full == 0:
            return int(self.start == 0 or (rest > 0 and not self.drop_last))
        return full + (rest >= self.world_size and not self.drop_last)

    @property
    def fewest(self) -> int:
        if self.steps == 0:
            return 0
        first, last = self.step_span(0), self.step_span(self.steps - 1)
        return min(first[1] - first[0], last[1] - last[0])

    def end(self, step: int) -> int:
        return self.step_span(step)[1]

    def step_span(self, step: int) -> tuple[int, int]:
        start = self.start + step * self.stride
        if step == self.steps - 1 and not self.drop_last:
            return start, self.rows
        return start, min(start + self.stride, self.rows)

    def span(self, rank: int, step: int) -> tuple[int, int]:
        start, stop = self.step_span(step)
        return share(start, stop, rank, self.world_size, repeat=self.start > 0 and self.scarce)


@dataclass(frozen=True, eq=False)
class BatchSplit:
    """The split of a plan's batches: one batch to each rank at each step.

    Args:
        offsets: int64[B + 1], batch b of the epoch's order is its rows ``offsets[b]`` to ``offsets[b + 1]``.
        world_size: ranks.
        remainder: what becomes of the last batches, where they are fewer than ranks: ``"share"`` shares out the
            rows of each among some ranks, ``"drop"`` leaves them out, ``"repeat"`` fills up with the first batches.
        start: batches that were handed out before.
    """

    offsets: npt.NDArray[np.int64]
    world_size: int
    remainder: Remainder = "share"
    start: int = 0

    @property
    def batches(self) -> int:
        """Batches of the whole epoch."""
        return len(self.offsets) - 1

    @property
    def rows(self) -> int:
        return int(self.offsets[-1])

    @property
    def remaining(self) -> int:
        return self.rows - int(self.offsets[self.start])

    @property
    def scarce(self) -> bool:
        return self.steps > 0 and self.remainder != "repeat" and self.remaining < self.world_size

    @cached_property
    def steps(self) -> int:
        full, rest = divmod(self.batches - self.start, self.world_size)
        if self.remainder == "drop":
            return full or int(self.start == 0 and rest > 0)
        return full + (rest > 0)

    def end(self, step: int) -> int:
        return self._first(step + 1)

    def span(self, rank: int, step: int) -> tuple[int, int]:
        first, stop = self._first(step), self._first(step + 1)
        if stop - first == self.world_size:
            batch = first + rank
        elif self.remainder == "repeat":
            batch = self.start + (first - self.start + rank) % (self.batches - self.start)
        elif self.offsets[stop] - self.offsets[first] < self.world_size:
            start, end = int(self.offsets[first]), int(self.offsets[stop])
            return share(start, end, rank, self.world_size, repeat=first > 0)
        else:
            shares = self._shares[step]
            return int(shares[rank]), int(shares[rank + 1])
        return int(self.offsets[batch]), int(self.offsets[batch + 1])

    def _first(self, step: int) -> int:
        """The batch at which a step starts."""
        if step == self.steps - 1:
            return self._last
        return min(self.start + step * self.world_size, self.batches)

    @cached_property
    def _last(self) -> int:
        """The batch at which the last step starts."""
        last, ranks = self.start + (self.steps - 1) * self.world_size, self.world_size
        if self.remainder != "share" or self.steps < 2 or self.rows - self.offsets[last] >= ranks:
            return last
        # Neither half may have more batches than ranks.
        middles = np.arange(self.batches - ranks, last + 1)
        before, after = self.offsets[middles] - self.offsets[last - ranks], self.rows - self.offsets[middles]
        possible = np.flatnonzero(np.minimum(before, after) >= ranks)
        if len(possible) == 0:
            return last
        return int(middles[possible[np.argmin(np.abs(before - after)[possible])]])

    @cached_property
    def _shares(self) -> dict[int, npt.NDArray[np.int64]]:
        """int64[world_size + 1] by step, of those that share out batches: the rows at which the ranks' shares start."""
        firsts = {step: (self._first(step), self._first(step + 1)) for step in range(self.steps)[-2:]}
        return {
            step: share_batches(self.offsets[first : stop + 1], self.world_size)
            for step, (first, stop) in firsts.items()
            if 0 < stop - first < self.world_size <= self.offsets[stop] - self.offsets[first]
        }


@dataclass(frozen=True, eq=False)
class SharedBatchSplit:
    """The split of a plan's batches where a step is one batch, whose rows the ranks share.

    Args:
        offsets: int64[B + 1], as in :class:`BatchSplit`.
        world_size: ranks.
        start: batches that were handed out before.
    """

    offsets: npt.NDArray[np.int64]
    world_size: int
    start: int = 0

    @property
    def rows(self) -> int:
        return int(self.offsets[-1])

    @property
    def remaining(self) -> int:
        return self.rows - int(self.offsets[self.start])

    @property
    def scarce(self) -> bool:
        return 0 < self.remaining < self.world_size

    @property
    def steps(self) -> int:
        return len(self.offsets) - 1 - self.start

    @property
    def fewest(self) -> int:
        return int(np.diff(self.offsets[self.start :]).min()) if self.steps else 0

    def end(self, step: int) -> int:
        return self.start + step + 1

    def step_span(self, step: int) -> tuple[int, int]:
        return int(self.offsets[self.start + step]), int(self.offsets[self.start + step + 1])

    def span(self, rank: int, step: int) -> tuple[int, int]:
        return share(*self.step_span(step), rank, self.world_size)


def share(start: int, stop: int, rank: int, world_size: int, *, repeat: bool = False) -> tuple[int, int]:
    """A rank's share of the rows from ``start`` to ``stop``: consecutive, and of sizes that differ by one at most.

    With ``repeat`` a rank whose share would be empty gets the row that it begins at.
    """
    rows = stop - start
    first, last = start + rows * rank // world_size, start + rows * (rank + 1) // world_size
    return first, max(last, first + 1) if repeat else last


def share_batches(offsets: npt.NDArray[np.int64], world_size: int) -> npt.NDArray[np.int64]:
    """Where the ranks' shares of some batches start, in rows: no share has rows of two batches, and none is empty.

    The largest share is as small as it can be so.

    Args:
        offsets: int64[k + 1], of k ≤ ``world_size`` batches, rising, with at least ``world_size`` rows in all.
        world_size: ranks.

    Returns:
        int64[world_size + 1], rising from ``offsets[0]`` to ``offsets[k]``.
    """
    sizes = np.diff(offsets).tolist()
    ranks = [1] * len(sizes)
    # Each further rank helps where the shares are largest: they have two rows or more, as long as a rank is left over.
    shares = [(-float(size), batch) for batch, size in enumerate(sizes)]
    heapify(shares)
    for _ in range(world_size - len(sizes)):
        batch = shares[0][1]
        ranks[batch] += 1
        heapreplace(shares, (-sizes[batch] / ranks[batch], batch))
    starts = [
        first + size * np.arange(count) // count
        for first, size, count in zip(offsets[:-1].tolist(), sizes, ranks, strict=True)
    ]
    return np.concatenate([*starts, offsets[-1:]])
