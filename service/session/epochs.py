"""What an epoch's order is cut from: one long order of rows, or the batches of a plan."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from curation.plan import BatchPlan
from curation.service.session.protocols import Indices, Weights
from curation.service.session.session import Layout
from curation.service.session.spec import SessionSpec


class Ordered:
    """An epoch that is one long order of rows, cut into steps and shares by a :class:`Layout`.

    Args:
        layout: how the order is cut.
        take: int64[stop - start] positions and float32 weights of ``order[start:stop]``.
        nbytes: what ``take`` keeps resident.
        reweighted: rows whose weight is not 1.
    """

    def __init__(
        self,
        layout: Layout,
        take: Callable[[int, int], tuple[Indices, Weights]],
        *,
        nbytes: int = 0,
        reweighted: int = 0,
    ) -> None:
        self.layout = layout
        self.steps = layout.steps
        self.rows = layout.rows
        self.nbytes = nbytes
        self.reweighted = reweighted
        self.take = take

    def length(self, rank: int, step: int) -> int:
        start, stop = self.layout.span(rank, step)
        return stop - start

    def batch(self, rank: int, step: int) -> tuple[Indices, Weights]:
        return self.take(*self.layout.span(rank, step))

    def everything(self) -> Indices:
        """int64[rows]: the whole order."""
        return self.take(0, self.rows)[0]


class Batches:
    """An epoch of a :class:`BatchPlan`: step s gives rank r the batch ``order[s * world_size + r]``, whole.

    Batches left over at the end (fewer than ranks) are joined and their rows shared out, so that every rank has the
    same number of steps and no row is lost; ``drop_last`` leaves them out.
    """

    def __init__(self, plan: BatchPlan, order: npt.NDArray[np.int64], spec: SessionSpec) -> None:
        self.plan, self.order, self.world = plan, order, spec.world_size
        full, rest = divmod(len(plan), self.world)
        self._tail: Indices | None = None
        if rest and (full == 0 or not spec.drop_last):
            self._tail = np.concatenate([plan[int(b)] for b in order[full * self.world :]])
        self.steps = full + (self._tail is not None)
        self.rows = len(plan.indices)
        self.nbytes = plan.indices.nbytes + plan.offsets.nbytes + order.nbytes
        self.reweighted = 0

    def length(self, rank: int, step: int) -> int:
        return len(self._rows(rank, step))

    def batch(self, rank: int, step: int) -> tuple[Indices, Weights]:
        rows = self._rows(rank, step)
        return rows.astype(np.int64), np.ones(len(rows), np.float32)

    def _rows(self, rank: int, step: int) -> Indices:
        if self._tail is not None and step == self.steps - 1:
            n = len(self._tail)
            return self._tail[n * rank // self.world : n * (rank + 1) // self.world]
        return self.plan[int(self.order[step * self.world + rank])]
