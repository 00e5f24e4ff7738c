"""Batches of a plan, such as B3's. O(batches) at an epoch's start, O(batch) a step."""

import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from curation.selectors.samplers.base import Fetch, ResumableSampler
from curation.selectors.samplers.batch_split import REMAINDERS, BatchSplit, Remainder, SharedBatchSplit
from curation.selectors.samplers.infobatch import Plans, plan_of
from curation.selectors.samplers.plan_order import PlanOrder
from curation.selectors.samplers.split import Split


class PlanBatchSampler(ResumableSampler):
    """A ``batch_sampler`` over a :class:`~curation.plan.BatchPlan`.

    Args:
        plan: the batches; or a function from the epoch to a plan, which regroups: ``lambda epoch:
            b3.plan(queries, positives, seed=epoch)``. It must give the same plan each time for one epoch.
        shuffle: visit the batches in an order drawn from (seed, epoch); False keeps the plan's.
        seed: of that order.
        split: ``"batches"`` gives each rank a batch of its own; ``"rows"`` shares the rows of one batch among
            the ranks, for a contrastive loss that gathers embeddings from all of them.
        remainder: what becomes of the last batches of the order, where batches do not divide by ranks: ``"share"``
            shares out the rows of each among some ranks, so that none is lost and no rank gets rows of two batches
            (where they have fewer rows than there are ranks, together with the step before); ``"drop"`` leaves them
            out, unless they are the whole epoch; ``"repeat"`` fills up with the first batches of the order. Where ranks
            share each batch, ``"drop"`` leaves out those that are too small for them. With ``split="rows"`` it also
            leaves out the rows of a batch that do not divide by ranks, and ``"share"`` gives them to some ranks, with
            a warning, because ``torch.distributed.all_gather`` wants as many from all.
        rank, world_size: None asks torch.distributed at the epoch's start.

    Raises:
        ValueError: an option has another value than those named, or ``split="rows"`` is to repeat rows; or, where an
            epoch begins, it has fewer rows than ranks, or a batch has with ``split="rows"``.
    """

    def __init__(
        self,
        plan: Plans,
        *,
        shuffle: bool = True,
        seed: int = 0,
        split: Literal["batches", "rows"] = "batches",
        remainder: Remainder = "share",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if split not in ("batches", "rows"):
            raise ValueError(f'split must be "batches" or "rows", not {split!r}')
        if remainder not in REMAINDERS:
            raise ValueError(f'remainder must be "share", "drop" or "repeat", not {remainder!r}')
        if split == "rows" and remainder == "repeat":
            raise ValueError(
                'with split="rows", remainder must be "share" or "drop": a row that is twice in a batch would be its '
                "own negative"
            )
        super().__init__(rank=rank, world_size=world_size)
        self.plan, self.shuffle, self.seed, self.split, self.remainder = plan, shuffle, seed, split, remainder
        self._latest: tuple[int, PlanOrder] | None = None

    def _split(self, epoch: int, start: int, world_size: int) -> Split:
        if self.split == "batches":
            return BatchSplit(self._order(epoch).offsets, world_size, self.remainder, start)
        shared = self._shared_split(epoch, start, world_size).at_least(world_size)
        if self.remainder == "drop":
            shared = replace(shared, even=True)
        if shared.steps and shared.fewest < world_size:
            raise ValueError(f'a batch of the plan has fewer rows than the {world_size} ranks of split="rows"')
        if not shared.even and np.any(np.diff(shared.offsets) % world_size):
            warnings.warn(
                f"batches of the plan have rows that do not divide by {world_size} ranks, so some ranks get one more, "
                'which all_gather does not take: remainder="drop" leaves those rows out',
                stacklevel=2,
            )
        return shared

    def _shared_split(self, epoch: int, start: int, world_size: int) -> SharedBatchSplit:
        return SharedBatchSplit(self._order(epoch).offsets, world_size, start, self.remainder == "drop")

    def _open(self, epoch: int, start: int) -> Fetch:
        order = self._order(epoch)
        return lambda start, stop, end: order.rows(start, stop)

    def _order(self, epoch: int) -> PlanOrder:
        if self._latest is None or self._latest[0] != epoch:
            plan = plan_of(self.plan, epoch)
            self._latest = epoch, PlanOrder.of(plan, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        return self._latest[1]

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "shuffle": self.shuffle}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": None}
