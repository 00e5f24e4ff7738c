"""Order in which an epoch visits the batches of a plan. Needs no torch: the service's sessions visit them alike."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curation.plan import BatchPlan


def batch_order(batches: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """int64[batches]: the random order of an epoch's batches, a function of (seed, epoch)."""
    return np.random.default_rng((seed, epoch)).permutation(batches)


@dataclass(frozen=True, eq=False)
class PlanOrder:
    """The rows of a plan in the order in which an epoch visits its batches; O(B) memory beside the plan.

    Args:
        plan: the batches.
        order: int64[B], which batch comes when.
        offsets: int64[B + 1], batch b of the order is rows ``offsets[b]`` to ``offsets[b + 1]`` of the epoch.
    """

    plan: BatchPlan
    order: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, plan: BatchPlan, *, seed: int, epoch: int, shuffle: bool) -> "PlanOrder":
        """The order of an epoch: :func:`batch_order`, or the plan's own without ``shuffle``."""
        order = batch_order(len(plan), seed=seed, epoch=epoch) if shuffle else np.arange(len(plan))
        offsets = np.zeros(len(plan) + 1, np.int64)
        np.cumsum(np.diff(plan.offsets)[order], out=offsets[1:])
        return cls(plan, order, offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of the order, the plan's included."""
        arrays = (self.plan.indices, self.plan.offsets, self.order, self.offsets)
        return sum(array.nbytes for array in arrays)

    def rows(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """int64[stop - start]: the candidates at these rows of the epoch. O(stop - start + log B)."""
        if start >= stop:
            return np.empty(0, np.int64)
        first = int(np.searchsorted(self.offsets, start, side="right")) - 1
        if stop <= self.offsets[first + 1]:
            rows = self.plan[int(self.order[first])]
        else:
            last = int(np.searchsorted(self.offsets, stop, side="left"))
            rows = np.concatenate([self.plan[int(batch)] for batch in self.order[first:last]])
        return rows[start - self.offsets[first] : stop - self.offsets[first]]

    def places(self, row: int) -> list[int]:
        """At which rows of the epoch a candidate stands: one, or none where the plan leaves it out. O(rows)."""
        found = np.flatnonzero(self.plan.indices == row)
        batches = np.searchsorted(self.plan.offsets, found, side="right") - 1
        turns = [int(np.flatnonzero(self.order == batch)[0]) for batch in batches]
        places: list[int] = (self.offsets[turns] + found - self.plan.offsets[batches]).tolist() if turns else []
        return places
