"""Batches of the examples that InfoBatch keeps. O(N) at an epoch's start, O(batch) a step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.plan import BatchPlan
from curation.selectors.infobatch import InfoBatch
from curation.selectors.infobatch.thinning import thinned
from curation.selectors.samplers.base import Fetch, RowSampler
from curation.selectors.samplers.batch_split import BatchSplit, Remainder, SharedBatchSplit
from curation.selectors.samplers.split import SharedSplit, Split

Plans = BatchPlan | Callable[[int], BatchPlan]


@dataclass
class _Thinned:
    """The plan of an epoch, and what InfoBatch keeps of it by ``mask``, bool[N]."""

    epoch: int
    plan: BatchPlan
    mask: npt.NDArray[np.bool_]
    kept: BatchPlan


class InfoBatchSampler(RowSampler):
    """A ``batch_sampler`` over the epochs of an :class:`~curation.selectors.infobatch.method.InfoBatch`.

    Its state is the position alone (a StatefulDataLoader asks for it at every step); save
    ``info.state_dict()`` beside it, and load both.

    Args:
        info: the losses; call ``info.update`` in the training step.
        batch_size: examples of a step on each rank.
        plan: None visits the kept examples in random order. Or the batches of a plan (B3's), or a function
            from the epoch to one, which must give the same plan each time for one epoch. A step is then a batch of
            the plan for each rank, in the plan's order, without what is skipped. What the plan keeps apart stays
            apart in every epoch: batches are filled up from others, to ``batch_size``, only where the plan says what
            may meet (B3's do, saved ones too: ``BatchPlan.apart``); see
            :mod:`~curation.selectors.infobatch.thinning`.
        drop_last: leave out examples (of a plan: batches) that do not fill a step on all ranks, unless they are the
            whole epoch. Otherwise they are shared out.
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
        self._latest: _Thinned | None = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; see :meth:`ResumableSampler.load_state_dict`.

        Raises:
            ValueError: as there; or an earlier release saved it in the middle of an epoch over a plan, whose batches
                it cut in another way.
        """
        if self.plan is not None and isinstance(state, dict) and "batch_size" not in state and "position" in state:
            if state["position"] and not state["over"]:
                raise ValueError(
                    f"the state was saved by an earlier release in the middle of epoch {state['epoch']} over a plan, "
                    "whose batches are others now: load one that was saved between epochs, or start the epoch anew"
                )
            between = {"epoch": state["epoch"] + state["over"], "position": 0, "over": False}
            state = {**state, **between, "batch_size": self.batch_size}
        super().load_state_dict(state)

    def _rows(self, epoch: int) -> int:
        return self.info.kept(epoch)

    def _split(self, epoch: int, start: int, world_size: int) -> Split:
        if self.plan is None:
            return super()._split(epoch, start, world_size)
        remainder: Remainder = "drop" if self.drop_last else "share"
        return BatchSplit(self._in_plan(epoch).offsets, world_size, remainder, start)

    def _shared_split(self, epoch: int, start: int, world_size: int) -> SharedSplit:
        if self.plan is None:
            return super()._shared_split(epoch, start, world_size)
        return SharedBatchSplit(self._in_plan(epoch).offsets, world_size, start, self.drop_last)

    def _open(self, epoch: int, start: int) -> Fetch:
        if start and self.info.current != epoch:
            raise ValueError(
                f"the sampler stands in epoch {epoch}, at position {start}, but its InfoBatch is in epoch "
                f"{self.info.current}: load the state of both, info.load_state_dict() too"
            )
        self.info.begin(epoch)
        order = self.info.order(epoch) if self.plan is None else self._in_plan(epoch).indices
        return lambda start, stop, end: order[start:stop]

    def _in_plan(self, epoch: int) -> BatchPlan:
        mask = self.info.mask(epoch)
        latest = self._latest
        if latest is None or latest.epoch != epoch or not np.array_equal(latest.mask, mask):
            plan = latest.plan if latest is not None and latest.epoch == epoch else plan_of(self.plan, epoch)
            highest = int(plan.indices.max(initial=-1))
            if highest >= self.info.size:
                raise ValueError(f"the plan names example {highest}, but InfoBatch has size={self.info.size}")
            latest = self._latest = _Thinned(epoch, plan, mask, thinned(plan, mask, self.batch_size))
        return latest.kept

    def _identity(self) -> dict[str, Any]:
        identity = {"size": self.info.size, "seed": self.info.rule.seed, "planned": self.plan is not None}
        # Positions over a plan count its batches, which are filled up to this size.
        return identity if self.plan is None else {**identity, "batch_size": self.batch_size}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": None}


def plan_of(plan: Plans | None, epoch: int) -> BatchPlan:
    """The plan of an epoch.

    Raises:
        TypeError: it is not a :class:`~curation.plan.BatchPlan`.
    """
    made = plan(epoch) if callable(plan) else plan
    if not isinstance(made, BatchPlan):
        raise TypeError(f"plan must be a BatchPlan or a function from the epoch to one, not {type(made).__name__}")
    return made
