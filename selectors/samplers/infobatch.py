"""Batches of the examples that InfoBatch keeps. O(N) at an epoch's start, O(batch) a step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.plan import BatchPlan
from curation.selectors.infobatch import InfoBatch
from curation.selectors.samplers.base import Fetch, RowSampler

Plans = BatchPlan | Callable[[int], BatchPlan]


class InfoBatchSampler(RowSampler):
    """A ``batch_sampler`` over the epochs of an :class:`~curation.selectors.infobatch.method.InfoBatch`.

    Its state is the position alone (a StatefulDataLoader asks for it at every step); save
    ``info.state_dict()`` beside it, and load both.

    Args:
        info: the losses; call ``info.update`` in the training step.
        batch_size: examples of a step on each rank.
        plan: None visits the kept examples in random order. Or the batches of a plan (B3's), or a function
            from the epoch to one: kept examples are then visited in the plan's order, so that its
            communities stay together while batches stay full.
        drop_last: leave out examples that do not fill a step on all ranks, unless they are the whole epoch.
        rank, world_size: None asks torch.distributed at the epoch's start.

    Raises:
        ValueError: a parameter is out of range, or the plan is for other candidates; or, where an epoch begins, it
            keeps fewer examples than there are ranks.
    """

    def __init__(
        self,
        info: InfoBatch,
        *,
        batch_size: int,
        plan: Plans | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, drop_last=drop_last, rank=rank, world_size=world_size)
        self.info, self.plan = info, plan

    def _rows(self, epoch: int) -> int:
        return self.info.kept(epoch) if self.plan is None else len(self._in_plan(epoch))

    def _open(self, epoch: int, start: int) -> Fetch:
        if start and self.info.current != epoch:
            raise ValueError(
                f"the sampler stands in epoch {epoch}, at example {start}, but its InfoBatch is in epoch "
                f"{self.info.current}: load the state of both, info.load_state_dict() too"
            )
        self.info.begin(epoch)
        order = self.info.order(epoch) if self.plan is None else self._in_plan(epoch)
        return lambda start, stop, end: order[start:stop]

    def _in_plan(self, epoch: int) -> npt.NDArray[np.int64]:
        indices = plan_of(self.plan, epoch).indices
        if len(indices) and indices.max() >= self.info.size:
            raise ValueError(f"the plan names example {indices.max()}, but InfoBatch has size={self.info.size}")
        return indices[self.info.mask(epoch)[indices]]

    def _identity(self) -> dict[str, Any]:
        return {"size": self.info.size, "seed": self.info.rule.seed, "planned": self.plan is not None}


def plan_of(plan: Plans | None, epoch: int) -> BatchPlan:
    """The plan of an epoch.

    Raises:
        TypeError: it is not a :class:`~curation.plan.BatchPlan`.
    """
    made = plan(epoch) if callable(plan) else plan
    if not isinstance(made, BatchPlan):
        raise TypeError(f"plan must be a BatchPlan or a function from the epoch to one, not {type(made).__name__}")
    return made
