"""Batches drawn by running losses, with replacement. O(N) at an epoch's start, O(batch) a step."""

from typing import Any

from curation.selectors.importance import Importance
from curation.selectors.samplers.base import Fetch, RowSampler


class ImportanceSampler(RowSampler):
    """A ``batch_sampler`` over the draws of an :class:`~curation.selectors.importance.Importance`.

    Its state is the position alone; save ``importance.state_dict()`` beside it, and load both.

    Args:
        importance: the losses; call ``importance.update`` in the training step.
        batch_size: draws of a step on each rank.
        draws: draws of an epoch on all ranks, None is N. The probabilities are renewed at each epoch's start,
            so a smaller number follows the losses more closely (and costs O(N) as often).
        rank, world_size: None asks torch.distributed at the epoch's start.

    Raises:
        ValueError: a parameter is out of range; or, where an epoch begins, it has fewer draws than there are ranks.
    """

    def __init__(
        self,
        importance: Importance,
        *,
        batch_size: int,
        draws: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, drop_last=False, rank=rank, world_size=world_size)
        if draws is not None and draws < 1:
            raise ValueError(f"draws must be at least 1, not {draws}")
        self.importance = importance
        self.draws = importance.size if draws is None else draws

    def _rows(self, epoch: int) -> int:
        return self.draws

    def _open(self, epoch: int, start: int) -> Fetch:
        if start and self.importance.current != epoch:
            raise ValueError(
                f"the sampler stands in epoch {epoch}, at draw {start}, but its Importance is in epoch "
                f"{self.importance.current}: load the state of both, importance.load_state_dict() too"
            )
        drawn = self.importance.draw(epoch, self.draws)
        return lambda start, stop, end: drawn[start:stop]

    def _identity(self) -> dict[str, Any]:
        return {"size": self.importance.size, "seed": self.importance.seed, "draws": self.draws}
