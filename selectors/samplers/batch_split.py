"""Split of a plan's batches among ranks: one to each, and no rank ever gets rows of two. ``split.py`` has the rule."""

from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heapreplace
from typing import Literal

import numpy as np
import numpy.typing as npt

from curation.selectors.samplers.split import Spans, share

Remainder = Literal["share", "drop", "repeat"]
REMAINDERS: tuple[Remainder, ...] = ("share", "drop", "repeat")


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

    def over(self, world_size: int) -> "BatchSplit":
        return replace(self, world_size=world_size)

    def rest(self, world_size: int, left: Spans) -> "BatchSplit":
        """As :class:`ElasticSplit` has it. What is left of a batch is a batch, and so stays apart from the others."""
        lengths = np.diff(left)[:, 0]
        before = np.concatenate([[0], np.cumsum(lengths)])
        # How many of the rows that are left come before each batch: none of it is left where the next has as many.
        spans = np.searchsorted(left[:, 0], self.offsets, side="right") - 1
        inside = np.minimum(self.offsets - np.append(left[:, 0], 0)[spans], np.append(lengths, 0)[spans])
        offsets = np.unique(np.where(spans < 0, 0, before[spans] + inside))
        done = self.rows - int(before[-1])
        if done:
            offsets = np.concatenate([[0], done + offsets])
        return replace(self, offsets=offsets, world_size=world_size, start=int(done > 0))

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
        drop_small: leave out batches of fewer than ``least`` rows, unless they are the whole epoch.
        least: rows that a step needs.
        even: leave out the rows of a batch that do not divide by ranks, so that all ranks have as many.
    """

    offsets: npt.NDArray[np.int64]
    world_size: int
    start: int = 0
    drop_small: bool = False
    least: int = 1
    even: bool = False

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
        return len(self._taken)

    @property
    def fewest(self) -> int:
        return int(np.diff(self.offsets)[self._taken].min()) if self.steps else 0

    @property
    def most(self) -> int:
        return int(np.diff(self.offsets)[self._taken].max(initial=0))

    def end(self, step: int) -> int:
        return len(self.offsets) - 1 if step == self.steps - 1 else int(self._taken[step]) + 1

    def step_span(self, step: int) -> tuple[int, int]:
        batch = int(self._taken[step])
        return int(self.offsets[batch]), int(self.offsets[batch + 1])

    def span(self, rank: int, step: int) -> tuple[int, int]:
        start, stop = self.step_span(step)
        return share(start, stop - (stop - start) % self.world_size * self.even, rank, self.world_size)

    def at_least(self, rows: int) -> "SharedBatchSplit":
        return replace(self, least=rows)

    @cached_property
    def _taken(self) -> npt.NDArray[np.int64]:
        """Which batches are steps."""
        batches = np.arange(self.start, len(self.offsets) - 1)
        large = batches[np.diff(self.offsets)[self.start :] >= self.least]
        return large if self.drop_small and (len(large) or self.start) else batches


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
