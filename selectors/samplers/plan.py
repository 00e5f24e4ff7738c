"""The batches of a plan, such as B3's. O(batches) at an epoch's start, O(batch) a step."""

from typing import Any, Literal

import numpy as np

from curation.plan import BatchPlan
from curation.selectors.samplers.base import Fetch, ResumableSampler
from curation.selectors.samplers.cuts import Batches, Cut, Rows
from curation.selectors.samplers.infobatch import Plans, plan_of


class PlanBatchSampler(ResumableSampler):
    """A ``batch_sampler`` over a :class:`~curation.plan.BatchPlan`.

    Args:
        plan: the batches; or a function from the epoch to a plan, which regroups: ``lambda epoch:
            b3.plan(queries, positives, seed=epoch)``. It must give the same plan each time for one epoch.
        shuffle: visit the batches in an order drawn from (seed, epoch); False keeps the plan's.
        seed: of that order.
        split: ``"batches"`` gives each rank a batch of its own; ``"rows"`` shares the rows of one batch among
            the ranks, for a contrastive loss that gathers embeddings from all of them.
        remainder: where batches do not divide by ranks: ``"drop"`` leaves out the last of the order,
            ``"repeat"`` fills up with the first ones of it.
        rank, world_size: None asks torch.distributed at the epoch's start.

    Raises:
        ValueError: an option has another value than those named.
    """

    def __init__(
        self,
        plan: Plans,
        *,
        shuffle: bool = True,
        seed: int = 0,
        split: Literal["batches", "rows"] = "batches",
        remainder: Literal["drop", "repeat"] = "drop",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if split not in ("batches", "rows"):
            raise ValueError(f'split must be "batches" or "rows", not {split!r}')
        if remainder not in ("drop", "repeat"):
            raise ValueError(f'remainder must be "drop" or "repeat", not {remainder!r}')
        cut: Cut = Rows() if split == "rows" else Batches(repeat=remainder == "repeat")
        super().__init__(cut=cut, rank=rank, world_size=world_size)
        self.plan, self.shuffle, self.seed, self.split, self.remainder = plan, shuffle, seed, split, remainder
        self._made: tuple[int, BatchPlan] | None = None

    def _total(self, epoch: int) -> int:
        return len(self._of(epoch))

    def _open(self, epoch: int, start: int, rank: int, world_size: int) -> Fetch:
        plan = self._of(epoch)
        if self.split == "rows" and len(plan) and np.diff(plan.offsets).min() < world_size:
            raise ValueError(f'a batch of the plan has fewer rows than the {world_size} ranks of split="rows"')
        order = np.arange(len(plan))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(order)

        def fetch(low: int, high: int, end: int) -> Any:
            rows = plan[int(order[low])]
            if self.split == "batches":
                return rows
            return rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]

        return fetch

    def _of(self, epoch: int) -> BatchPlan:
        if self._made is None or self._made[0] != epoch:
            self._made = epoch, plan_of(self.plan, epoch)
        return self._made[1]

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "shuffle": self.shuffle}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}
