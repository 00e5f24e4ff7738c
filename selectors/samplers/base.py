"""Samplers' shared part: epochs, ranks, and resuming in the middle of an epoch.

An epoch is an order of rows, the same on all ranks, and a :class:`~curation.selectors.samplers.split.Split` says which
of them each rank gets at each step. A position counts what all ranks were given, so it means the same on another
number of ranks: the rest of the order is split anew.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, Sampler

from curation.selectors.distributed import world
from curation.selectors.samplers.split import RowSplit, SharedSplit, Split
from curation.selectors.state import check_state

Fetch = Callable[[int, int, int], npt.NDArray[np.integer[Any]]]
"""(start, stop, end) -> the candidates at rows ``start`` to ``stop`` of the epoch's order; ``end`` is the position
after the step that they belong to, beyond which no rank asks in this step."""

S = TypeVar("S", bound=Split)


class Stateful(Protocol):
    """Anything that can be saved and restored."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SuperBatches(NamedTuple):
    """The steps of an epoch, each for all ranks together: how many, the ``fewest`` and ``most`` rows of one, and the
    batches."""

    steps: int
    fewest: int
    most: int
    batches: Iterator[npt.NDArray[np.int64]]


@dataclass
class _Pass:
    """The latest pass over an epoch: which one, how it was split, and the steps that were handed out of it."""

    epoch: int
    split: Split
    steps: int

    def after(self, steps: int) -> int:
        """The position after so many steps."""
        return self.split.end(steps - 1) if steps else self.split.start


class ResumableSampler(Sampler[list[int]]):
    """A ``batch_sampler`` for a DataLoader that resumes to the very next batch.

    A subclass says how an epoch is split (``_split`` and ``_shared_split``, which change nothing), and begins one
    (``_open``). ``iter()`` may be called at any time: an epoch begins when the first batch is asked for. Once
    all of its batches are handed out, the next ``iter()`` goes on with the next epoch, whether or not
    ``set_epoch`` is called; before that, it begins the same one again.

    An epoch of fewer rows than ranks raises ``ValueError`` where it begins, on all ranks.
    """

    def __init__(self, *, rank: int | None, world_size: int | None) -> None:
        check_rank(rank, world_size)
        self._rank, self._world_size = rank, world_size
        self._epoch, self._start, self._position = 0, 0, 0
        self._ended = self._loaded_end = False
        self._pass: _Pass | None = None

    @property
    def ranks(self) -> tuple[int, int]:
        """(rank, world size): as given, or else those of torch.distributed now, or (0, 1)."""
        return ranks_of(self._rank, self._world_size)

    @property
    def epoch(self) -> int:
        """The epoch that runs, or that comes next: where a resumed training loop goes on."""
        return self._epoch + (self._ended or self._loaded_end)

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, position) of the pass that runs: what all ranks were given so far, in rows or in whole batches."""
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
            self._pass = None
        self._epoch, self._ended, self._loaded_end = epoch, False, False

    def __len__(self) -> int:
        """Batches that the next ``iter()`` gives this rank: of a whole epoch, or from a loaded position on."""
        return _steps(*self._ahead(self._split, self.ranks[1]))

    def super_batch_count(self, world_size: int, least: int = 1) -> int:
        """Batches that the next :meth:`super_batches` gives."""
        return _steps(*self._ahead(self._split_together(least), world_size))

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = self.ranks
        for batch in self.batches(rank, world_size):
            yield batch.tolist()

    def batches(self, rank: int, world_size: int) -> Iterator[npt.NDArray[np.int64]]:
        """The epoch's batches as int64 arrays, for a given rank; what ``iter()`` gives as lists."""
        fetch, split, steps = self._begin(self._split, world_size)
        if steps and split.scarce:
            warnings.warn(
                f"{split.remaining} rows are left of epoch {self._epoch} for {world_size} ranks: each is given to "
                "several of them, so that no batch is empty",
                stacklevel=2,
            )
        yield from self._walk(fetch, split, steps, lambda step: split.span(rank, step))

    def super_batches(self, world_size: int, least: int = 1) -> SuperBatches:
        """Begin the epoch with steps for all ranks together, whose rows ``world_size`` ranks are to share.

        ``batch_size`` then counts the rows of all of them; a plan's batch is a step. A rest of fewer than ``least``
        rows is no step of its own: it joins the one before. A plan's batches join no other: ``fewest`` tells of
        one that is smaller.
        """
        fetch, split, steps = self._begin(self._split_together(least), world_size)
        return SuperBatches(steps, split.fewest, split.most, self._walk(fetch, split, steps, split.step_span))

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
            steps = self._pass.steps if self._pass else 0
            if not 0 <= consumed <= steps:
                raise ValueError(f"consumed is {consumed}, but this pass has {steps} batches")
            epoch, position, over = self._epoch, self._start, False
            if self._pass:
                epoch, position, over = self._pass.epoch, self._pass.after(consumed), 0 < consumed == steps
        progress = {"epoch": epoch, "position": position, "over": over}
        return {"version": 1, **progress, **self._identity(), **self._extra(epoch, position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, on any number of ranks; the dict is left as it is.

        Raises:
            ValueError: keys are missing or unknown, or the state belongs to other parameters.
        """
        identity = self._identity()
        keys = {"version", "epoch", "position", "over", *identity, *self._extra(0, 0)}
        check_state(state, keys, identity, type(self).__name__)
        self._epoch, self._ended, self._loaded_end = state["epoch"], False, state["over"]
        self._pass = None
        self._start = self._position = state["position"]
        self._load_extra(state)

    def _over(self) -> bool:
        """Whether all batches of the running pass were handed out."""
        latest = self._pass
        at_end = latest is not None and latest.steps > 0 and self._position == latest.after(latest.steps)
        return self._ended or at_end

    def _ahead(self, split: Callable[[int, int, int], S], world_size: int) -> tuple[int, S]:
        """The epoch that the next ``iter()`` runs, or goes on with, and its split."""
        epoch, start = (self._epoch + 1, 0) if self._over() else (self._epoch, self._start)
        return epoch, split(epoch, start, world_size)

    def _split_together(self, least: int) -> Callable[[int, int, int], SharedSplit]:
        return lambda epoch, start, world_size: self._shared_split(epoch, start, world_size).at_least(least)

    def _begin(self, split_of: Callable[[int, int, int], S], world_size: int) -> tuple[Fetch, S, int]:
        if self._over():
            self.set_epoch(self._epoch + 1)
        fetch = self._open(self._epoch, self._start)
        split = split_of(self._epoch, self._start, world_size)
        steps = _steps(self._epoch, split)
        self._pass, self._position = _Pass(self._epoch, split, steps), self._start
        return fetch, split, steps

    def _walk(
        self, fetch: Fetch, split: Split, steps: int, span: Callable[[int], tuple[int, int]]
    ) -> Iterator[npt.NDArray[np.int64]]:
        for step in range(steps):
            end = split.end(step)
            batch = np.asarray(fetch(*span(step), end), np.int64)
            self._position = end
            yield batch
        self._ended = True

    def _split(self, epoch: int, start: int, world_size: int) -> Split:
        """How an epoch falls into batches of each rank, from a position on. Changes nothing."""
        raise NotImplementedError

    def _shared_split(self, epoch: int, start: int, world_size: int) -> SharedSplit:
        """How an epoch falls into batches that the ranks share, from a position on. Changes nothing."""
        raise NotImplementedError

    def _open(self, epoch: int, start: int) -> Fetch:
        """Begin the epoch, or go on with it."""
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        """What a state must agree with."""
        raise NotImplementedError

    def _extra(self, epoch: int, position: int) -> dict[str, Any]:
        """What else the state of this epoch and position holds."""
        return {}

    def _load_extra(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`_extra` gave."""


class RowSampler(ResumableSampler):
    """A sampler whose epoch is one order of rows, in batches of ``batch_size``.

    A subclass says how many rows an epoch has (``_rows``, which changes nothing).
    """

    def __init__(self, *, batch_size: int, drop_last: bool, rank: int | None, world_size: int | None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        super().__init__(rank=rank, world_size=world_size)
        self.batch_size, self.drop_last = batch_size, drop_last

    def _rows(self, epoch: int) -> int:
        """Rows of the epoch. Changes nothing."""
        raise NotImplementedError

    def _split(self, epoch: int, start: int, world_size: int) -> Split:
        return RowSplit(self._rows(epoch), self.batch_size, world_size, self.drop_last, start)

    def _shared_split(self, epoch: int, start: int, world_size: int) -> SharedSplit:
        return RowSplit(self._rows(epoch), self.batch_size, world_size, self.drop_last, start, together=True)


class Indexed(Dataset[tuple[int, Any]]):
    """A map-style dataset whose items come with their positions: ``(index, item)``."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]


def check_rank(rank: int | None, world_size: int | None) -> None:
    """Raise ``ValueError`` unless both are given and fit, or neither is given."""
    if (rank is None) != (world_size is None):
        raise ValueError("give both rank and world_size, or neither (then torch.distributed is asked)")
    if rank is not None and world_size is not None and not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..{world_size - 1} (world_size={world_size}), not {rank}")


def ranks_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world size): as given, or else those of torch.distributed now, or (0, 1)."""
    return world() if rank is None or world_size is None else (rank, world_size)


def _steps(epoch: int, split: Split) -> int:
    """The steps of a split, all of whose batches have rows.

    Raises:
        ValueError: the epoch has fewer rows than ranks.
    """
    if split.remaining == 0 and split.start > 0:
        return 0
    if split.start == 0 and (split.scarce or split.remaining == 0):
        raise ValueError(
            f"epoch {epoch} has fewer rows than ranks, {split.rows} for {split.world_size}, and no batch may be empty: "
            "train on fewer ranks, or go on with another epoch (set_epoch)"
        )
    return split.steps
