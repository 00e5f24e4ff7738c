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
- a super-batch, of which a method chooses a part for all ranks, is too small where fewer rows would be chosen than
  there are ranks: such a rest of rows joins the step before, too. A plan's batches stay whole here as well;
- what is dropped on request is what does not fill a last step, never a whole epoch: an epoch has at least one step,
  because neither a session, which counts its steps, nor a trainer can do anything with none.

One case remains where a rank has nothing to do: fewer rows than ranks, and no step before (:attr:`Split.scarce`). A
whole epoch then has one step with some empty shares. A session hands those out; a local sampler raises, because
neither a DataLoader nor a mean loss can do anything with an empty batch, and every epoch would be as short. The rest
of an epoch, resumed on more ranks, cannot raise: a training would stop for where it happened to be interrupted. Its
few rows are given to several ranks each: none is lost, and no rank waits for one that has nothing. (So are the last
rows of a plan of such tiny batches that its last two steps cannot be halved.)

A split also describes the *rest* of an epoch, from a position on, so that a sampler resumes on any number of ranks.
Positions count rows, or batches where the split is of batches. Rows are split here, batches in
:mod:`~curation.selectors.samplers.batch_split`; nothing of it needs more than numpy.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

Spans = npt.NDArray[np.int64]
"""int64[m, 2]: where stretches of an order start and stop, rising and apart."""


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


class ElasticSplit(Split, Protocol):
    """A split that can be made anew over other ranks."""

    def over(self, world_size: int) -> "ElasticSplit":
        """The same epoch's split over so many ranks."""

    def rest(self, world_size: int, left: Spans) -> "ElasticSplit":
        """The split of the rows that are left, wherever they lie in the order: as of an order that has first the rows
        that are not left, and then those that are."""


class SharedSplit(Split, Protocol):
    """A split whose steps are shared by all ranks, such as super-batches are."""

    @property
    def fewest(self) -> int:
        """Rows of the smallest step, of all ranks together; 0 without steps."""

    @property
    def most(self) -> int:
        """Rows of the largest step, of all ranks together, where none has taken in a rest; 0 without steps."""

    def step_span(self, step: int) -> tuple[int, int]:
        """Where a step starts and stops, of all ranks together, in rows of the epoch's order."""

    def at_least(self, rows: int) -> "SharedSplit":
        """The same split where a step of fewer rows, of all ranks together, is too small to stand alone."""


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
        least: rows, of all ranks together, that a last step of its own needs, where it is not one for each rank.
    """

    rows: int
    batch_size: int
    world_size: int
    drop_last: bool = False
    start: int = 0
    together: bool = False
    least: int = 1

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
        return full + (rest >= max(self.world_size, self.least) and not self.drop_last)

    @property
    def fewest(self) -> int:
        if self.steps == 0:
            return 0
        first, last = self.step_span(0), self.step_span(self.steps - 1)
        return min(first[1] - first[0], last[1] - last[0])

    @property
    def most(self) -> int:
        if self.steps == 0:
            return 0
        start, stop = self.step_span(0)
        return stop - start

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

    def at_least(self, rows: int) -> "RowSplit":
        return replace(self, least=rows)

    def over(self, world_size: int) -> "RowSplit":
        return replace(self, world_size=world_size)

    def rest(self, world_size: int, left: Spans) -> "RowSplit":
        return replace(self, world_size=world_size, start=self.rows - int(np.diff(left).sum()))


def share(start: int, stop: int, rank: int, world_size: int, *, repeat: bool = False) -> tuple[int, int]:
    """A rank's share of the rows from ``start`` to ``stop``: consecutive, and of sizes that differ by one at most.

    With ``repeat`` a rank whose share would be empty gets the row that it begins at.
    """
    rows = stop - start
    first, last = start + rows * rank // world_size, start + rows * (rank + 1) // world_size
    return first, max(last, first + 1) if repeat else last
