"""What all samplers share: epochs, ranks, and resuming in the middle.

An epoch is a global order of *units* (examples, or whole batches), the same on all ranks. A
:class:`~curation.selectors.samplers.cuts.Cut` says which units each step of each rank takes. A position is the
number of units that all ranks have taken, so it means the same on another number of ranks: the rest of the order is
cut anew.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, Sampler

from curation.selectors.distributed import world
from curation.selectors.samplers.cuts import Cut
from curation.selectors.state import check_state

Fetch = Callable[[int, int, int], npt.NDArray[np.integer[Any]]]
"""(low, high, end) -> the candidates of units low to high; no rank asks beyond ``end`` in this step."""


class Stateful(Protocol):
    """Anything that can be saved and restored."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class _Run:
    """The latest pass over an epoch: where it began and how it was cut."""

    epoch: int
    start: int
    left: int
    world: int
    cut: Cut

    def after(self, steps: int) -> int:
        """The position after so many steps."""
        return self.start + (self.cut.share(self.left, steps - 1, 0, self.world)[2] if steps else 0)

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return self.cut.steps(self.left, self.world)


class ResumableSampler(Sampler[list[int]]):
    """A ``batch_sampler`` for a DataLoader that resumes to the very next batch.

    A subclass says how many units an epoch has (``_total``, which changes nothing), and begins one
    (``_open``). ``iter()`` may be called at any time: an epoch begins when the first batch is asked for. Once
    all of its batches are handed out, the next ``iter()`` goes on with the next epoch, whether or not
    ``set_epoch`` is called; before that, it begins the same one again.
    """

    def __init__(self, *, cut: Cut, rank: int | None, world_size: int | None) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither (then torch.distributed is asked)")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1} (world_size={world_size}), not {rank}")
        self._cut = cut
        self._rank, self._world_size = rank, world_size
        self._epoch, self._start, self._position = 0, 0, 0
        self._ended = self._loaded_end = False
        self._run: _Run | None = None

    @property
    def ranks(self) -> tuple[int, int]:
        """(rank, world size): as given, or else those of torch.distributed now, or (0, 1)."""
        if self._rank is None or self._world_size is None:
            return world()
        return self._rank, self._world_size

    @property
    def epoch(self) -> int:
        """The epoch that runs, or that comes next: where a resumed training loop goes on."""
        return self._epoch + (self._ended or self._loaded_end)

    @property
    def place(self) -> tuple[int, int]:
        """(epoch, position) of the pass that runs: units that all ranks were given so far."""
        return self._epoch, self._position

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one. Naming the epoch that a loaded state is in keeps its position.

        Raises:
            ValueError: the epoch is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, but is {epoch}")
        if epoch != self._epoch or self._over():
            self._start = self._position = 0
            self._run = None
        self._epoch, self._ended, self._loaded_end = epoch, False, False

    def __len__(self) -> int:
        """Batches that the next ``iter()`` gives this rank: of a whole epoch, or from a loaded position on."""
        return self.steps(self.ranks[1])

    def steps(self, world_size: int) -> int:
        """Batches that the next ``iter()`` gives each of ``world_size`` ranks."""
        over = self._over()
        return self._cut.steps(self._total(self._epoch + over) - (0 if over else self._start), world_size)

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = self.ranks
        for batch in self.batches(rank, world_size):
            yield batch.tolist()

    def batches(self, rank: int, world_size: int) -> Iterator[npt.NDArray[np.int64]]:
        """The epoch's batches as int64 arrays, for a given rank; what ``iter()`` gives as lists."""
        if self._over():
            self.set_epoch(self._epoch + 1)
        epoch, start = self._epoch, self._start
        fetch = self._open(epoch, start, rank, world_size)
        left = self._total(epoch) - start
        self._run = _Run(epoch, start, left, world_size, self._cut)
        self._position = start
        for step in range(self._cut.steps(left, world_size)):
            low, high, end = self._cut.share(left, step, rank, world_size)
            batch = np.asarray(fetch(start + low, start + high, start + end), np.int64)
            self._position = start + end
            yield batch
        self._ended = True

    def state_dict(self, *, consumed: int | None = None) -> dict[str, Any]:
        """Where this sampler stands: small, whatever N is, and the same on all ranks.

        Args:
            consumed: batches of the running pass that were trained on. With ``num_workers > 0`` a DataLoader
                asks for batches ahead of the training, so count your steps and say how many; None means all
                that were handed out, which is right for ``num_workers=0`` and for a StatefulDataLoader.

        Raises:
            ValueError: more are consumed than the pass has.
        """
        epoch, position, over = self._epoch, self._position, self._over() or self._loaded_end
        if self._ended:
            epoch, position, over = self._epoch + 1, 0, False
        if consumed is not None:
            run = self._run or _Run(self._epoch, self._start, 0, 1, self._cut)
            if not 0 <= consumed <= run.steps:
                raise ValueError(f"consumed is {consumed}, but this pass has {run.steps} batches")
            epoch, position, over = run.epoch, run.after(consumed), 0 < consumed == run.steps
        place = {"epoch": epoch, "position": position, "over": over}
        return {"version": 1, **place, **self._identity(), **self._extra(position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, on any number of ranks; the dict is left as it is.

        Raises:
            ValueError: keys are missing or unknown, or the state belongs to other parameters.
        """
        identity = self._identity()
        keys = {"version", "epoch", "position", "over", *identity, *self._extra(0)}
        check_state(state, keys, identity, type(self).__name__)
        self._epoch, self._ended, self._loaded_end = state["epoch"], False, state["over"]
        self._run = None
        self._start = self._position = state["position"]
        self._load_extra(state)

    def _over(self) -> bool:
        """Whether all batches of the running pass were handed out."""
        run = self._run
        return self._ended or (run is not None and run.steps > 0 and self._position == run.after(run.steps))

    def _total(self, epoch: int) -> int:
        """Units of the epoch. Changes nothing."""
        raise NotImplementedError

    def _open(self, epoch: int, start: int, rank: int, world_size: int) -> Fetch:
        """Begin the epoch, or go on with it."""
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        """What a state must agree with."""
        raise NotImplementedError

    def _extra(self, position: int) -> dict[str, Any]:
        """What else the state holds."""
        return {}

    def _load_extra(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`_extra` gave."""


class Indexed(Dataset[tuple[int, Any]]):
    """A map-style dataset whose items come with their positions: ``(index, item)``."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]


def check_batch_size(batch_size: int) -> int:
    """``batch_size``, or ``ValueError`` where it is not positive."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return batch_size
