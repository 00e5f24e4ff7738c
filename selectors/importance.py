"""Importance sampling by running losses: draw often what is hard, and weigh it down by as much.

An epoch draws examples with replacement, example i with probability p_i, a mixture of its share of the loss
and of the uniform distribution; its weight is 1 / (N p_i), so E[mean of w · x] is the mean of x over all
(Katharopoulos & Fleuret 2018, arXiv 1803.00942, equations 2 and 3, with the loss as the score).

Cost: O(N + draws) at an epoch's start, O(batch) a step. Memory: 8 bytes a candidate, and 8 a draw.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from curation.gpu.compiled import compiled
from curation.gpu.pruning.cpu import finite_mean
from curation.selectors.infobatch.rule import shuffled_kept
from curation.selectors.losses import RunningLosses, Sync, checked_positions, positions_of, weighted
from curation.selectors.state import check_state, restored

_DRAW, _ORDER = 2, 3
_NOT_COUNTED: dict[str, Any] = {"nonfinite": 0, "pending_indices": [], "pending_losses": []}
_STATE = {"version", "epoch", "scores", "chances", *_NOT_COUNTED}


class Importance:
    """Running losses, and the probabilities that follow from them at each epoch's start.

    An example without a known loss counts as one of mean loss; losses below zero count as zero.

    Args:
        size: N, the number of examples.
        uniform: the share of the uniform distribution in p, in (0, 1]; it bounds weights by 1 / uniform.
        seed: the draws of an epoch are a function of the losses at its start, the seed and the epoch.
        sync: ``"step"`` brings losses to the host, and to all ranks (one all-gather), in every :meth:`update`, which
            therefore waits for the device; ``"epoch"`` leaves them on their device until the next epoch begins, or
            :meth:`synchronize`.
        group: the process group of the ranks that share the examples; None is the default group.

    Raises:
        ValueError: a parameter is out of range.
    """

    def __init__(
        self,
        *,
        size: int,
        uniform: float = 0.2,
        seed: int = 0,
        sync: Sync = "step",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        if not 0 < uniform <= 1:
            raise ValueError(f"uniform must lie in (0, 1], not {uniform}: at 0 some weights are infinite")
        if seed < 0:
            raise ValueError(f"seed must not be negative, but is {seed}")
        self.size, self.uniform, self.seed = size, uniform, seed
        self.current: int | None = None
        self._losses = RunningLosses(size, sync=sync, group=group, owner="Importance")
        self._renew(np.full(size, 1 / size, np.float32))

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """float32[N], the last loss of each example, NaN where none is known; a live view, not to be written."""
        return self._losses.view

    @property
    def nonfinite(self) -> int:
        """How many losses were NaN or infinite."""
        return self._losses.nonfinite

    def begin(self, epoch: int) -> None:
        """Take the present losses as the probabilities of ``epoch``, unless it is the current one already.

        With ``sync="epoch"`` it is collective: pending losses are merged first.

        Raises:
            ValueError: the epoch is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, but is {epoch}")
        if epoch != self.current:
            self.synchronize()
            self._renew(chances(self._losses.values, self.uniform))
            self.current = epoch

    def draw(self, epoch: int, count: int) -> npt.NDArray[np.int64]:
        """int64[count], the draws of an epoch, in random order; begins it."""
        self.begin(epoch)
        rng = np.random.default_rng((self.seed, epoch, _DRAW))
        gaps = rng.standard_exponential(count + 1)
        points = np.cumsum(gaps)
        drawn = _pick(self._chances, points[:-1] / points[-1] * self._total)
        order = shuffled_kept(np.ones(count, np.uint8), (self.seed, epoch, _ORDER))
        return np.asarray(drawn[order], np.int64)

    def weights(self, indices: Any) -> npt.NDArray[np.float32]:
        """float32[b], 1 / (N p_i) in the current epoch."""
        chances = self._chances[checked_positions(indices, self.size)].astype(np.float64)
        return (self._total / (self.size * chances)).astype(np.float32)

    def update(self, indices: Any, losses: Any) -> Any:
        """Record the losses of a batch and return them weighted, as :meth:`InfoBatch.update` does.

        A loss that is NaN or infinite counts as unknown, is counted in :attr:`nonfinite`, and is warned of once.

        Raises:
            ValueError: losses are averaged already, shapes differ, or an index is out of range.
            TypeError: indices are not integers.
        """
        positions = positions_of(indices, losses, self.size)
        weights = self.weights(positions)
        self._losses.take(positions, losses)
        return weighted(losses, weights)

    def synchronize(self) -> None:
        """Merge losses that ``sync="epoch"`` still holds back; collective, and nothing otherwise.

        Call it on all ranks before saving :meth:`state_dict` in the middle of an epoch.
        """
        self._losses.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything: tensors and plain values."""
        return {
            "version": 1,
            **self._identity(),
            "epoch": self.current,
            **self._losses.state(),
            "chances": torch.from_numpy(self._chances.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, also before it counted losses that are not finite.

        Raises:
            ValueError: keys are missing or unknown, or the state belongs to other parameters.
        """
        if isinstance(state, dict):
            state = {**_NOT_COUNTED, **state}
        identity = self._identity()
        check_state(state, {*_STATE, *identity}, identity, "Importance")
        renewed = restored(state["chances"], np.float32)
        if renewed.shape != (self.size,):
            raise ValueError(f"chances has shape {renewed.shape}, not ({self.size},)")
        self._losses.restore(state)
        self._renew(renewed)
        self.current = state["epoch"]

    def _renew(self, chances: npt.NDArray[np.float32]) -> None:
        self._chances, self._total = chances, float(chances.sum(dtype=np.float64))

    def _identity(self) -> dict[str, Any]:
        return {"size": self.size, "uniform": self.uniform, "seed": self.seed}


def chances(scores: npt.NDArray[np.float32], uniform: float) -> npt.NDArray[np.float32]:
    """float32[N]: ``(1 - uniform) · loss share + uniform / N``; uniform where all losses are zero or unknown."""
    share = np.maximum(scores, 0)
    mean = finite_mean(share)
    if np.isnan(mean) or mean <= 0:
        return np.full(len(scores), 1 / len(scores), np.float32)
    share[~np.isfinite(share)] = mean
    # In two steps, because the sum of losses may be beyond what float32 can divide by.
    share /= share.max()
    share *= np.float32((1 - uniform) / share.sum(dtype=np.float64))
    share += np.float32(uniform / len(scores))
    return share


@compiled(nogil=True)
def _pick(chances: npt.NDArray[np.float32], points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """For each of the rising ``points``, the first position whose running sum of ``chances`` exceeds it."""
    picked = np.empty(len(points), np.int64)
    position, reached = 0, float(chances[0])
    for k in range(len(points)):
        while points[k] >= reached and position < len(chances) - 1:
            position += 1
            reached += chances[position]
        picked[k] = position
    return picked
