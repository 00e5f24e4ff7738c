"""The next batch to label, drawn by score without replacement. A draw is O(N), so draw large batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from curation.selectors.acquisition import StochasticAcquisition
from curation.selectors.samplers.base import Fetch, ResumableSampler, check_batch_size
from curation.selectors.samplers.cuts import Examples
from curation.selectors.state import restored

Scores = npt.ArrayLike | Callable[[], npt.ArrayLike]


class AcquisitionSampler(ResumableSampler):
    """A ``batch_sampler`` that draws each batch from what is left of the pool, by its scores at that moment.

    One epoch goes through the pool once, or through ``budget`` of it; ``set_epoch`` to another starts over
    with the whole pool. :attr:`drawn` is what was taken so far. For training batches weighted by their
    losses, drawn again and again, see :class:`~curation.selectors.samplers.importance.ImportanceSampler`.

    Args:
        scores: [N], higher is sooner: an array, read anew at each draw, so it may be changed in place
            (``info.scores`` of an InfoBatch is one); or a function that returns it. Scores that are not
            finite mean "not known" and are drawn last, in random order.
        acquisition: how to draw.
        size: N.
        batch_size: candidates of a step on each rank; ranks share one draw.
        budget: candidates of an epoch, on all ranks; None is the whole pool.
        seed: a draw is a function of the scores, the seed, the epoch and how many were drawn before.
        rank, world_size: None asks torch.distributed at the epoch's start.

    Raises:
        ValueError: a parameter is out of range.
    """

    def __init__(
        self,
        scores: Scores,
        acquisition: StochasticAcquisition,
        *,
        size: int,
        batch_size: int,
        budget: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(cut=Examples(check_batch_size(batch_size)), rank=rank, world_size=world_size)
        if budget is not None and not 1 <= budget <= size:
            raise ValueError(f"budget must lie in 1..{size} (the size of the pool), not {budget}")
        self.scores, self.acquisition, self.size, self.seed = scores, acquisition, size, seed
        self.batch_size, self.budget = batch_size, size if budget is None else budget
        self._drawn = np.empty(0, np.int64)
        self._drawn_in = 0

    @property
    def drawn(self) -> npt.NDArray[np.int64]:
        """int64[n], the candidates drawn in this epoch, in order, for all ranks."""
        return self._drawn

    def _total(self, epoch: int) -> int:
        return self.budget

    def _open(self, epoch: int, start: int, rank: int, world_size: int) -> Fetch:
        if epoch != self._drawn_in:
            self._drawn, self._drawn_in = np.empty(0, np.int64), epoch
        self._drawn = self._drawn[:start]
        left = np.ones(self.size, bool)
        left[self._drawn] = False

        def fetch(low: int, high: int, end: int) -> npt.NDArray[np.int64]:
            if end > len(self._drawn):
                fresh = self._draw(np.flatnonzero(left), end - len(self._drawn), epoch)
                left[fresh] = False
                self._drawn = np.concatenate([self._drawn, fresh])
            return self._drawn[low:high]

        return fetch

    def _draw(self, pool: npt.NDArray[np.int64], count: int, epoch: int) -> npt.NDArray[np.int64]:
        given: Any = self.scores() if callable(self.scores) else self.scores
        scores = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
        if scores.shape != (self.size,):
            raise ValueError(f"scores has shape {scores.shape}, not ({self.size},), the size of the pool")
        scores = scores[pool]
        known = np.isfinite(scores)
        seed, wanted = (self.seed, epoch, len(self._drawn)), min(count, int(known.sum()))
        picks = self.acquisition.select(scores[known], wanted, seed=seed).indices
        unknown = np.random.default_rng(seed).permutation(pool[~known])
        return np.concatenate([pool[known][picks], unknown[: count - wanted]])

    def _identity(self) -> dict[str, Any]:
        return {"size": self.size, "seed": self.seed, "budget": self.budget}

    def _extra(self, position: int) -> dict[str, Any]:
        return {"drawn": torch.from_numpy(self._drawn[:position])}

    def _load_extra(self, state: dict[str, Any]) -> None:
        self._drawn, self._drawn_in = restored(state["drawn"], np.int64), state["epoch"]
