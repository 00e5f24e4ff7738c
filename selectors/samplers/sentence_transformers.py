"""Batches of a plan in the sentence-transformers trainers, through their ``batch_sampler`` argument."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sentence_transformers.base.sampler import DefaultBatchSampler

from curation.plan import BatchPlan
from curation.selectors.samplers.infobatch import Plans, plan_of
from curation.selectors.samplers.plan_order import batch_order


class MakesBatchSampler(Protocol):
    """What the trainers call, once for each data set."""

    def __call__(self, dataset: Any, batch_size: int, drop_last: bool, **others: Any) -> DefaultBatchSampler: ...


def plan_batch_sampler(plan: Plans, *, shuffle: bool = True) -> MakesBatchSampler:
    """Train on the batches of a plan, such as B3's, with sentence-transformers.

    ::

        plan = BatchPlan.load("out/batches.arrow")
        args = SentenceTransformerTrainingArguments(..., batch_sampler=plan_batch_sampler(plan))
        rows = load_from_disk("out").select_columns(["query", "positive"])
        SentenceTransformerTrainer(model, args, train_dataset=rows)

    The sizes of the plan's batches hold, so ``per_device_train_batch_size`` should be the plan's: the trainer
    computes with it. On several ranks the trainer deals whole batches out. With a dict of data sets every one
    of them gets this plan, so there build the samplers in a function of your own.

    Args:
        plan: a :class:`~curation.plan.BatchPlan` over rows 0..N-1 of the training data, or a function from the
            epoch to one (same number of batches each), which regroups.
        shuffle: visit the batches in an order drawn from (the trainer's seed, epoch). ``dataloader_drop_last``
            leaves out batches that are shorter than the longest.

    Returns:
        A function for ``batch_sampler``; ``ValueError`` from it where the plan names rows that are not there.
    """

    def make(dataset: Any, batch_size: int, drop_last: bool, **others: Any) -> DefaultBatchSampler:
        return _Planned(plan, shuffle, dataset, batch_size, drop_last, **others)

    return make


class _Planned(DefaultBatchSampler):
    def __init__(
        self, plan: Plans, shuffle: bool, dataset: Any, batch_size: int, drop_last: bool, **others: Any
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, **others)
        # Accelerate leaves out, of a sampler that has a size, what it deals out together with a shorter batch.
        self.batch_size = None  # type: ignore[assignment]
        self._plan, self._shuffle = plan, shuffle
        first = plan_of(plan, 0)
        highest = int(first.indices.max(initial=-1))
        if highest >= len(dataset):
            raise ValueError(
                f"the plan names row {highest}, but the dataset has {len(dataset)} rows: "
                "give the dataset that the plan was made for"
            )

    def __iter__(self) -> Iterator[list[int]]:
        # A pure function of (seed, epoch): a resumed trainer asks for the epoch again and skips batches.
        plan = plan_of(self._plan, self.epoch)
        order = self._order(plan)
        if self._shuffle:
            order = order[batch_order(len(order), seed=self.seed or 0, epoch=self.epoch)]
        for number in order.tolist():
            yield plan[number].tolist()

    def __len__(self) -> int:
        return len(self._order(plan_of(self._plan, self.epoch)))

    def _order(self, plan: BatchPlan) -> npt.NDArray[np.int64]:
        sizes = np.diff(plan.offsets)
        return np.flatnonzero(sizes >= sizes.max(initial=0)) if self.drop_last else np.arange(len(plan))
