"""Epoch in memory: one order of rows, and how it is split into steps and ranks."""

from collections.abc import Callable

from curation.selectors.samplers.split import Split
from curation.service.session.protocols import Indices, Weights


class Ordered:
    """An epoch that is one order of rows.

    Args:
        layout: how the order is split.
        take: int64[stop - start] positions and float32 weights of ``order[start:stop]``.
        nbytes: what ``take`` keeps resident.
        reweighted: rows whose weight is not 1.
    """

    def __init__(
        self,
        layout: Split,
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
