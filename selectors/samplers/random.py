"""Batches in random order, every candidate once an epoch. No memory in N: the order is computed, O(batch) a step."""

from typing import Any

from curation.gpu.permutation import Permutation
from curation.selectors.samplers.base import Fetch, RowSampler


class RandomBatchSampler(RowSampler):
    """A ``batch_sampler`` over all candidates, in a new order every epoch.

    It keeps no permutation (but for up to 65,536 candidates; see :class:`curation.gpu.permutation.Permutation`), so
    an epoch over 10^9 candidates begins at once. It also makes the super-batches of a
    :class:`~curation.selectors.samplers.jest.JESTBatchSampler`. Sessions ``random`` of the service give the same
    batches.

    Args:
        size: N.
        batch_size: candidates of a step on each rank.
        seed: an epoch's order is a function of the seed and the epoch.
        drop_last: leave out candidates that do not fill a step on all ranks, unless they are the whole epoch.
        rank, world_size: None asks torch.distributed at the epoch's start.

    Raises:
        ValueError: a parameter is out of range; or, where an epoch begins, there are fewer candidates than ranks.
    """

    def __init__(
        self,
        *,
        size: int,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, but is {seed}")
        super().__init__(batch_size=batch_size, drop_last=drop_last, rank=rank, world_size=world_size)
        self.size, self.seed = size, seed

    def _rows(self, epoch: int) -> int:
        return self.size

    def _open(self, epoch: int, start: int) -> Fetch:
        order = Permutation(self.size, (self.seed, epoch))
        return lambda start, stop, end: order[start:stop]

    def _identity(self) -> dict[str, Any]:
        return {"size": self.size, "seed": self.seed}
