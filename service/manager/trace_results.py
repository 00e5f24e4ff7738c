"""Results of the flight recorder: rows of a step, visits of a row, spikes."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.service.manager.spikes import Outlier
from curation.service.session.protocols import Indices, Losses, Weights


class StepRows(NamedTuple):
    """Rows of a step, by rank and position in the rank's batch; n of them.

    ``ranks`` int32[n], ``positions`` int64[n], ``rows`` int64[n], ``weights`` float32[n], ``losses`` float32[n] (NaN
    where none was reported), ``reported`` bool[n], ``scores`` float32[n] or None: the logits (nats) they were chosen
    at. ``chosen`` False: a super-batch of which nothing was chosen yet; None: the method chooses from none.
    """

    epoch: int
    step: int
    chosen: bool | None
    ranks: npt.NDArray[np.int32]
    positions: Indices
    rows: Indices
    weights: Weights
    losses: Losses
    reported: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32] | None

    def take(self, which: npt.NDArray[np.int64]) -> "StepRows":
        """Some of them, in the order asked."""
        return self._replace(
            ranks=self.ranks[which],
            positions=self.positions[which],
            rows=self.rows[which],
            weights=self.weights[which],
            losses=self.losses[which],
            reported=self.reported[which],
            scores=None if self.scores is None else self.scores[which],
        )

    def by_loss(self) -> npt.NDArray[np.int64]:
        """int64[n]: the order of falling losses; those that are not finite first, those not reported last."""
        rank = np.where(np.isfinite(self.losses), self.losses, np.inf)
        return np.argsort(-np.where(self.reported, rank, -np.inf), kind="stable")


class RowVisit(NamedTuple):
    """One handing out of a row. ``loss`` None: not reported. ``chosen`` and ``score``: as in :class:`StepRows`;
    of a row of a super-batch that was not chosen, the rank is the one that embeds it."""

    epoch: int
    step: int
    rank: int
    position: int
    weight: float
    loss: float | None
    chosen: bool | None
    score: float | None


class RowVisits(NamedTuple):
    """The visits of a row in the epochs from ``first`` on; ``next``: the first epoch that was not looked at."""

    visits: list[RowVisit]
    first: int
    next: int | None


class Spike(NamedTuple):
    """A step that stands out, and its rows of the highest losses; ``rows`` None: there was no time for them."""

    outlier: Outlier
    epoch: int
    rows: StepRows | None


class Spikes(NamedTuple):
    """Steps that stand out among ``first .. end - 1``; ``next``: the first step that was not read."""

    spikes: list[Spike]
    first: int
    end: int
    next: int | None
