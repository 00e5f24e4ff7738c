"""Super-batches: an epoch's order in steps that all ranks share, of each of which a part is chosen to train on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from curation.selectors.samplers.split import RowSplit, Spans, share
from curation.service.session.epochs import Ordered
from curation.service.session.protocols import ChoosingEpoch, Indices, Visit, Weights
from curation.service.session.segments import LaidOut, Layout, Part


@dataclass(frozen=True)
class SuperSplit(RowSplit):
    """The split of an order into super-batches.

    Args:
        smallest: how many rows a super-batch needs for so many ranks; a last one of fewer joins the one before.
    """

    smallest: Callable[[int], int] = lambda world_size: world_size

    def over(self, world_size: int) -> "SuperSplit":
        return replace(self, world_size=world_size, least=self.smallest(world_size))

    def rest(self, world_size: int, left: Spans) -> "SuperSplit":
        return replace(self.over(world_size), start=self.rows - int(np.diff(left).sum()))


class SuperBatches(LaidOut):
    """An epoch of super-batches. A report of losses is about what was chosen, so its length is the share's.

    A super-batch of fewer rows than ranks, such as a resize may leave, gives some of them none to embed.

    Args:
        order: the epoch's.
        layout: how it falls into super-batches and ranks.
        chosen: how many are chosen of so many rows.
    """

    def __init__(self, order: Ordered, layout: Layout, chosen: Callable[[int], int]) -> None:
        super().__init__(order, layout)
        self._chosen = chosen

    def laid_out(self, layout: Layout) -> "SuperBatches":
        """The same order in other super-batches."""
        return SuperBatches(self, layout, self._chosen)

    @property
    def trained(self) -> int:
        """Rows of the epoch that are trained on."""
        trained, begun = 0, self._layout.first_step
        for part in self._layout.parts:
            first, last = part.first_step - begun, part.end - begun - 1
            if last >= first:  # all but the last of the same ranks are as large
                trained += (last - first) * self._chosen_at(first) + self._chosen_at(last)
        return trained

    def length(self, rank: int, step: int) -> int:
        start, stop = self.share(rank, step)
        return stop - start

    def batch(self, rank: int, step: int) -> tuple[Indices, Weights]:
        part = self._part(step)
        return self._rows(part, share(*self.bounds(step), rank, part.split.world_size))

    def part(self, rank: int, step: int) -> int:
        """How many rows of a step's super-batch are this rank's to embed."""
        start, stop = share(*self.bounds(step), rank, self._part(step).split.world_size)
        return stop - start

    def share(self, rank: int, step: int) -> tuple[int, int]:
        """Which of the rows chosen at a step are this rank's, in pick order; where they are fewer than ranks, one of
        them is several ranks'."""
        chosen, ranks = self._chosen_at(step), self._part(step).split.world_size
        return share(0, chosen, rank, ranks, repeat=chosen < ranks)

    def bounds(self, step: int) -> tuple[int, int]:
        """Where a step's super-batch starts and stops in what was left of the epoch's order when its ranks began."""
        part = self._part(step)
        local = step + self._layout.first_step - part.first_step
        return part.split.span(0, local)[0], part.split.span(part.split.world_size - 1, local)[1]

    def super_batch(self, step: int) -> Indices:
        """int64[B]: the rows of all ranks."""
        return self._rows(self._part(step), self.bounds(step))[0]

    def _chosen_at(self, step: int) -> int:
        start, stop = self.bounds(step)
        return self._chosen(stop - start)

    def _part(self, step: int) -> Part:
        return self._layout.part(step + self._layout.first_step)

    def _rows(self, part: Part, span: tuple[int, int]) -> tuple[Indices, Weights]:
        pieces = part.located(np.array([span], np.int64)).tolist() or [(0, 0)]
        rows, weights = zip(*(self.take(start, stop) for start, stop in pieces), strict=True)
        return np.concatenate(rows), np.concatenate(weights)

    def _visits_of(self, place: int) -> Iterator[Visit]:
        return (visit for visit in super()._visits_of(place) if visit.position < self.part(visit.rank, visit.step))


def due_ranks(epoch: ChoosingEpoch, step: int, world_size: int) -> range | list[int]:
    """The ranks that have rows of a step's super-batch, and so send a part."""
    start, stop = epoch.bounds(step)
    if stop - start >= world_size:
        return range(world_size)
    return [rank for rank in range(world_size) if epoch.part(rank, step)]


def weight_of_share(epoch: ChoosingEpoch, rank: int, step: int, world_size: int) -> float:
    """The weight of what a rank trains on: 0 where the next rank trains on the same row, so that it counts once."""
    start, stop = epoch.share(rank, step)
    copied = rank + 1 < world_size and stop > start == epoch.share(rank + 1, step)[0]
    return 0.0 if copied else 1.0
