"""InfoBatch's loader: dataset, losses and sampler in one object, so that a script changes in three lines."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from curation.selectors.infobatch import InfoBatch
from curation.selectors.samplers.base import Indexed
from curation.selectors.samplers.infobatch import InfoBatchSampler, Plans
from curation.selectors.state import check_state

_STATE = ("info", "sampler")


class InfoBatchLoader(DataLoader[Any]):
    """An ordinary DataLoader over what InfoBatch keeps, whose batches are ``(index, batch)``.

    ::

        loader = InfoBatchLoader(dataset, InfoBatch(size=len(dataset), epochs=90), batch_size=64)
        for index, (x, y) in loader:
            loss = loader.info.update(index, cross_entropy(model(x), y, reduction="none")).mean()

    Its state holds the losses and the position in the epoch. The loader counts what it handed out, so the state
    is right with any ``num_workers``.

    Args:
        dataset: map-style, of ``info.size`` items.
        info: the losses.
        batch_size, plan, drop_last, rank, world_size: see :class:`InfoBatchSampler`.
        options: the DataLoader's: ``num_workers``, ``collate_fn`` (it is given pairs ``(index, item)``), ...

    Raises:
        ValueError: the dataset has another size than ``info``, or a parameter is out of range.
    """

    # Accelerate's ``prepare`` leaves a loader alone that has this: it would share the batches out a second time.
    _is_accelerate_prepared = True

    batch_sampler: InfoBatchSampler

    def __init__(
        self,
        dataset: Any,
        info: InfoBatch,
        *,
        batch_size: int,
        plan: Plans | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        **options: Any,
    ) -> None:
        if len(dataset) != info.size:
            raise ValueError(f"the dataset has {len(dataset)} items, but InfoBatch was made for size={info.size}")
        sampler = InfoBatchSampler(
            info, batch_size=batch_size, plan=plan, drop_last=drop_last, rank=rank, world_size=world_size
        )
        super().__init__(Indexed(dataset), batch_sampler=sampler, **options)
        self.info = info
        self._handed_out: int | None = None

    @property
    def epoch(self) -> int:
        """The epoch that runs, or that comes next: where a resumed training loop goes on."""
        progress = self._progress()
        return int(progress["epoch"] + progress["over"])

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one; see :meth:`InfoBatchSampler.set_epoch`. Without it epochs follow each other."""
        self._handed_out = None
        self.batch_sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._handed_out = 0
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The states of ``info`` and of the sampler, after the batches handed out so far."""
        return {
            "version": 1,
            "info": self.info.state_dict(),
            "sampler": self._progress(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, on any number of ranks and of workers.

        Raises:
            ValueError: keys are missing or unknown, or the state belongs to other parameters.
        """
        check_state(state, {"version", *_STATE}, {}, type(self).__name__)
        self.info.load_state_dict(state["info"])
        self.batch_sampler.load_state_dict(state["sampler"])
        # From the end of an epoch the next one follows: no loop wants the rest of the last one, which is empty.
        self.set_epoch(self.epoch)

    def _progress(self) -> dict[str, Any]:
        # Workers ask ahead: the sampler alone knows how far they are, not how far the training is.
        return self.batch_sampler.state_dict(consumed=self._handed_out)
