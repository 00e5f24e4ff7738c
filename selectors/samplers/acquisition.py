"""Batches drawn by score without replacement, such as the next ones to label. A draw is O(N)."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from curation.selectors.acquisition import StochasticAcquisition, as_numpy
from curation.selectors.samplers.base import Fetch, RowSampler
from curation.selectors.state import restored

Scores = npt.ArrayLike | Callable[[], npt.ArrayLike]


class AcquisitionSampler(RowSampler):
    """A ``batch_sampler`` that draws from a pool by score, each candidate once an epoch.

    One epoch goes through the pool once, or through ``budget`` of it; ``set_epoch`` to another starts over
    with the whole pool. :attr:`drawn` is what was handed out so far. For training batches weighted by their
    losses, drawn again and again, see :class:`~curation.selectors.samplers.importance.ImportanceSampler`.

    Args:
        scores: [N], higher is sooner: an array, read anew at each draw, so it may be changed in place
            (``info.scores`` of an InfoBatch is one); or a function that returns it. NaN means "not known": drawn
            last, in random order. Infinite scores are scores, as in :class:`StochasticAcquisition`: +inf is drawn
            first.
        acquisition: how to draw.
        size: N.
        batch_size: candidates of a step on each rank; ranks share one draw.
        budget: candidates of an epoch, on all ranks; None is the whole pool.
        redraw: ``"step"`` draws each step's candidates from what remains of the pool, by its scores at that moment:
            O(N) a step, so take large batches. ``"epoch"`` draws the whole epoch's at its start: O(N) once, O(batch)
            a step, and a state of 8 bytes a candidate of the budget; the same as a session ``acquisition`` of the
            service. An epoch that was begun keeps its draw, also where it is resumed or begun again.
        drop_last: leave out candidates that do not fill a step on all ranks, unless they are the whole epoch.
        seed: a draw is a function of the scores, the seed, the epoch and how many were drawn before.
        rank, world_size: None asks torch.distributed at the epoch's start.

    Raises:
        ValueError: a parameter is out of range; or, where an epoch begins, the budget is less than the ranks; or, at a
            draw, the acquisition refuses a score that is left (the first candidate is named).
    """

    def __init__(
        self,
        scores: Scores,
        acquisition: StochasticAcquisition,
        *,
        size: int,
        batch_size: int,
        budget: int | None = None,
        redraw: Literal["step", "epoch"] = "step",
        drop_last: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, drop_last=drop_last, rank=rank, world_size=world_size)
        if budget is not None and not 1 <= budget <= size:
            raise ValueError(f"budget must lie in 1..{size} (the size of the pool), not {budget}")
        if redraw not in ("step", "epoch"):
            raise ValueError(f'redraw must be "step" or "epoch", not {redraw!r}')
        self.scores, self.acquisition, self.size, self.seed = scores, acquisition, size, seed
        self.budget, self.redraw = size if budget is None else budget, redraw
        self._order = np.empty(0, np.int64)
        self._order_epoch, self._handed_out = 0, 0

    @property
    def drawn(self) -> npt.NDArray[np.int64]:
        """int64[n], the candidates handed out in this epoch, in order, on all ranks."""
        return self._order[: self._handed_out]

    def _rows(self, epoch: int) -> int:
        return self.budget

    def _open(self, epoch: int, start: int) -> Fetch:
        if epoch != self._order_epoch:
            self._order, self._order_epoch = np.empty(0, np.int64), epoch
        if self.redraw == "step":
            self._order = self._order[:start]
        self._handed_out = start
        pool = np.ones(self.size, bool)
        pool[self._order] = False

        def fetch(start: int, stop: int, end: int) -> npt.NDArray[np.int64]:
            if end > len(self._order):
                drawn = self._draw(np.flatnonzero(pool), end if self.redraw == "step" else self.budget, epoch)
                pool[drawn] = False
                self._order = np.concatenate([self._order, drawn])
            self._handed_out = end
            return self._order[start:stop]

        return fetch

    def _draw(self, pool: npt.NDArray[np.int64], end: int, epoch: int) -> npt.NDArray[np.int64]:
        """The order's candidates from where it stands up to ``end``, out of the pool."""
        values: Any = self.scores() if callable(self.scores) else self.scores
        scores = as_numpy(values)
        if scores.shape != (self.size,):
            raise ValueError(f"scores has shape {scores.shape}, not ({self.size},), the size of the pool")
        scores, drawn = scores[pool], len(self._order)
        # The service's sessions draw an epoch by (seed, epoch).
        seed = (self.seed, epoch) if self.redraw == "epoch" and drawn == 0 else (self.seed, epoch, drawn)
        known = ~np.isnan(scores)
        refused = np.flatnonzero(self.acquisition.refused(scores) & known)
        if len(refused):
            raise ValueError(
                f"the score of candidate {pool[refused[0]]} is {scores[refused[0]]}, which {self.acquisition.kind} "
                "cannot draw by: give the acquisition a higher `shift`, or another `kind`"
            )
        known_count = min(end - drawn, int(known.sum()))
        picks = self.acquisition.select(scores[known], known_count, seed=seed).indices
        unknown = np.random.default_rng(seed).permutation(pool[~known])
        return np.concatenate([pool[known][picks], unknown[: end - drawn - known_count]])

    def _identity(self) -> dict[str, Any]:
        return {"size": self.size, "seed": self.seed, "budget": self.budget}

    def _extra(self, epoch: int, position: int) -> dict[str, Any]:
        order = self._order if epoch == self._order_epoch else self._order[:0]
        return {"drawn": torch.from_numpy(order[:position] if self.redraw == "step" else order)}

    def _load_extra(self, state: dict[str, Any]) -> None:
        self._order, self._order_epoch = restored(state["drawn"], np.int64), state["epoch"]
        self._handed_out = state["position"]
