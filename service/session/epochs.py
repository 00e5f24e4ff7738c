"""Epoch in memory: one order of rows, and how it is split into steps and ranks."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from curation.selectors.samplers.split import ElasticSplit, Split
from curation.service.session.protocols import Indices, Keep, Visit, Weights

CHUNK = 1 << 20
"""Rows of an order that are looked through at a time."""


class Ordered:
    """An epoch that is one order of rows.

    Args:
        layout: how the order is split.
        take: int64[stop - start] positions and float32 weights of ``order[start:stop]``.
        find: where in the order a row stands, once or several times; None: the order is looked through.
        nbytes: what ``take`` keeps resident.
        reweighted: rows whose weight is not 1.
        prepare: makes what ``take`` reads, where that takes long.
        move: has what ``take`` reads kept elsewhere, where it is large.
    """

    def __init__(
        self,
        layout: ElasticSplit,
        take: Callable[[int, int], tuple[Indices, Weights]],
        *,
        find: Callable[[int], Sequence[int]] | None = None,
        nbytes: int = 0,
        reweighted: int = 0,
        prepare: Callable[[], None] = lambda: None,
        move: Callable[[Keep], None] | None = None,
    ) -> None:
        self.layout = layout
        self.steps = layout.steps
        self.rows = layout.rows
        self.nbytes = nbytes
        self.reweighted = reweighted
        self.take = take
        self.find = find or self._look_through
        self.prepare = prepare
        self.moves = move

    def move(self, keep: Keep) -> None:
        if self.moves is not None and self.nbytes:
            self.moves(keep)
            self.nbytes = 0

    @property
    def kept(self) -> dict[str, Any]:
        """What another split of the same order has in common with this one, beside ``take``."""
        same = "find", "nbytes", "reweighted", "prepare"
        return {name: getattr(self, name) for name in same} | {"move": self.moves}

    def length(self, rank: int, step: int) -> int:
        start, stop = self.layout.span(rank, step)
        return stop - start

    def batch(self, rank: int, step: int) -> tuple[Indices, Weights]:
        return self.take(*self.layout.span(rank, step))

    def everything(self) -> Indices:
        """int64[rows]: the whole order."""
        return self.take(0, self.rows)[0]

    def visits(self, row: int) -> list[Visit]:
        """Where a row is handed out, by step and rank. O(log steps + log ranks) beside ``find``."""
        return [visit for place in sorted(self.find(row)) for visit in self._visits_of(place)]

    def over(self, layout: ElasticSplit) -> "Ordered":
        """The same order, split otherwise."""
        return Ordered(layout, self.take, **self.kept)

    def _visits_of(self, place: int) -> Iterator[Visit]:
        return visits_of(self.layout, self.steps, place)

    def _look_through(self, row: int) -> list[int]:
        chunks = range(0, self.rows, CHUNK)
        found = [start + np.flatnonzero(self.take(start, min(start + CHUNK, self.rows))[0] == row) for start in chunks]
        return [int(place) for places in found for place in places]


def visits_of(split: Split, steps: int, place: int) -> Iterator[Visit]:
    """Who gets a place of the order in the first steps of a split: nobody where it was left out, several ranks where
    there was too little. O(log steps + log ranks)."""
    span, last = split.span, split.world_size - 1
    step = bisect_right(range(steps), place, key=lambda step: span(last, step)[1])
    if step == steps:
        return
    rank = bisect_right(range(last + 1), place, key=lambda rank: span(rank, step)[1])
    while rank <= last and span(rank, step)[0] <= place:
        yield Visit(step, rank, place - span(rank, step)[0])
        rank += 1


def places_in(order: Indices, row: int) -> list[int]:
    """Where a row stands in an order that is kept whole; a chunk at a time, so that little memory is taken."""
    found = [start + np.flatnonzero(order[start : start + CHUNK] == row) for start in range(0, len(order), CHUNK)]
    return [int(place) for places in found for place in places]
