"""Batches chosen jointly out of super-batches. A step costs the scoring, and JEST's selection."""

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from curation.pair import Pair
from curation.selectors.distributed import Done, digest, from_first_rank, together
from curation.selectors.samplers.base import ResumableSampler, check_rank, ranks_of
from curation.selectors.samplers.split import share
from curation.selectors.state import check_state

if TYPE_CHECKING:
    from curation.selectors.jest import JEST

T = TypeVar("T")
Pairs = tuple[Pair | None, Pair | None]
Score = Callable[[npt.NDArray[np.int64]], Pairs]


class JESTBatchSampler(Sampler[list[int]]):
    """A ``batch_sampler`` that asks the model which part of each super-batch to train on.

    It runs in the main process, where the model is: workers of the DataLoader only load what was chosen. With
    ``num_workers > 0`` the loader asks ahead, so a choice is made by a model some steps old
    (``prefetch_factor · num_workers`` of them).

    All ranks walk through the same super-batches, make the same choice, and train on their shares of it. The
    choice at a position is a function of (seed, epoch, position) and of what ``score`` returns.

    Ranks of torch.distributed check that of each other: as an epoch begins, that their samplers are alike, and at
    each step, that their super-batches are. What fails on one rank, in ``score`` too, raises the same error on all, so
    that none waits for another that has gone. It costs an all-gather of 24 bytes a rank a step (0.2 to 0.7 ms between
    two processes of a busy machine), for which they wait for each other. Where every rank scores all of a super-batch
    and their choices differ nevertheless, if only by rounding, all take rank 0's, and a warning says so.

    A last super-batch of which fewer rows would be chosen than there are ranks is none of its own: its rows join the
    one before. A plan's batches join no other; of one that is too small, as of too few rows that are left of an epoch
    that is resumed on more ranks, what is chosen goes to several ranks each, and a warning says so.

    Args:
        source: any other sampler of this package, which makes the super-batches: its ``batch_size`` is B, on all
            ranks together. Its own rank and world size are not used. A plan's batches are super-batches as they are,
            so that what is chosen keeps the plan's promises; with ``remainder="drop"`` (``drop_last`` of
            ``InfoBatchSampler``) those that are too small for the ranks are left out.
        jest: how to choose.
        score: int64[B] positions -> (learner, reference), the embeddings of both models in that order; None for
            one that the criterion does not read.
        seed: of the choice.
        sharded: with several ranks of torch.distributed, give ``score`` only this rank's part of the
            super-batch, and choose together. Otherwise every rank scores all of it.
        rank, world_size: None asks torch.distributed at the epoch's start. With other ranks than those nothing is
            checked between them.

    Raises:
        ValueError: rank or world size is out of range; or, on all ranks alike, as an epoch begins fewer rows would be
            chosen of each super-batch than there are ranks, or a rank fails, or ranks are not alike.
    """

    def __init__(
        self,
        source: ResumableSampler,
        jest: "JEST",
        score: Score,
        *,
        seed: int = 0,
        sharded: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        check_rank(rank, world_size)
        self.source, self.jest, self.score, self.seed, self.sharded = source, jest, score, seed, sharded
        self._rank, self._world_size = rank, world_size

    @property
    def epoch(self) -> int:
        """The epoch that the next ``iter()`` runs, or goes on with."""
        return self.source.epoch

    @property
    def ranks(self) -> tuple[int, int]:
        """(rank, world size): as given, or else those of torch.distributed now, or (0, 1)."""
        return ranks_of(self._rank, self._world_size)

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one; see :meth:`ResumableSampler.set_epoch`."""
        self.source.set_epoch(epoch)

    def __len__(self) -> int:
        """Super-batches left in the epoch: each gives one batch on every rank."""
        world_size = self.ranks[1]
        return self.source.super_batch_count(world_size, self.jest.smallest(world_size))

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = self.ranks
        (steps, super_batches), _ = self._together(lambda: self._begin(world_size))
        for _ in range(steps):
            chosen = self._choose(super_batches, rank, world_size)
            yield _share_of(chosen, rank, world_size, repeat=len(chosen) < world_size).tolist()
        # The source counts the epoch as over once it was asked for more.
        next(super_batches, None)

    def state_dict(self, *, consumed: int | None = None) -> dict[str, Any]:
        """The source's state within this one's; ``consumed`` as in :meth:`ResumableSampler.state_dict`."""
        return {"version": 1, "seed": self.seed, "source": self.source.state_dict(consumed=consumed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, on any number of ranks.

        Raises:
            ValueError: keys are missing or unknown, or the state belongs to other parameters.
        """
        check_state(state, {"version", "seed", "source"}, {"seed": self.seed}, type(self).__name__)
        self.source.load_state_dict(state["source"])

    def _begin(self, world_size: int) -> Done[tuple[int, Iterator[npt.NDArray[np.int64]]]]:
        """The epoch that begins, or goes on: how many super-batches, and those."""
        least = self.jest.smallest(world_size)
        steps, fewest, most, super_batches = self.source.super_batches(world_size, least)
        if steps and fewest < least:
            few = f"of a super-batch of {fewest} rows {self.jest.chosen(fewest)} are chosen for {world_size} ranks"
            if most < least and not self.source.position[1]:
                raise ValueError(f"{few}, and no batch may be empty: make super-batches larger or filter_ratio smaller")
            warnings.warn(f"{few}: each is given to several of them, so that no batch is empty", stacklevel=2)
        alike = (self.seed, self.jest, self.sharded, type(self.source).__name__, self.source.state_dict(), steps)
        return Done((steps, super_batches), alike)

    def _choose(
        self, super_batches: Iterator[npt.NDArray[np.int64]], rank: int, world_size: int
    ) -> npt.NDArray[np.int64]:
        """The candidates of the next super-batch that are chosen, on all ranks, in pick order."""
        if self.sharded and world_size > 1:
            (super_batch, pairs), _ = self._together(lambda: self._embed_share(next(super_batches), rank, world_size))
            return super_batch[self.jest.select_distributed(*pairs, seed=self._step_seed).indices]
        chosen, digests = self._together(lambda: self._choose_alone(next(super_batches)))
        others = np.flatnonzero(digests != digests[0])
        if len(others):
            warnings.warn(
                f"rank {others[0]} chose other rows of a super-batch than rank 0, whose choice all take: their "
                "embeddings differ, by rounding or by their weights. With sharded=True all choose from the same ones",
                stacklevel=3,
            )
            chosen = from_first_rank(chosen)
        return chosen

    def _embed_share(
        self, super_batch: npt.NDArray[np.int64], rank: int, world_size: int
    ) -> Done[tuple[npt.NDArray[np.int64], Pairs]]:
        rows = _share_of(super_batch, rank, world_size)
        pairs = self._embed(rows) if len(rows) else (None, None)
        return Done((super_batch, pairs), self._facts(super_batch))

    def _choose_alone(self, super_batch: npt.NDArray[np.int64]) -> Done[npt.NDArray[np.int64]]:
        selection = self.jest.select(*self._embed(super_batch), generator=np.random.default_rng(self._step_seed))
        chosen = super_batch[selection.indices]
        return Done(chosen, self._facts(super_batch), digest(chosen.tobytes()))

    def _embed(self, rows: npt.NDArray[np.int64]) -> Pairs:
        learner, reference = self.score(rows)
        for name, pair in (("learner", learner), ("reference", reference)):
            if pair is not None and len(pair) != len(rows):
                raise ValueError(f"score returned a {name} of {len(pair)} rows for {len(rows)} positions")
        return learner, reference

    @property
    def _step_seed(self) -> tuple[int, int, int]:
        return (self.seed, *self.source.position)

    def _facts(self, super_batch: npt.NDArray[np.int64]) -> object:
        return f"(epoch, position) {self.source.position}", f"super-batch {digest(super_batch.tobytes()):x}"

    def _together(self, work: Callable[[], Done[T]]) -> tuple[T, npt.NDArray[np.int64]]:
        """Work of all ranks that torch.distributed has, or of this one alone where it was given its rank."""
        if self._rank is None and self.ranks[1] > 1:
            return together(work)
        done = work()
        return done.result, np.array([done.mark])


def _share_of(
    rows: npt.NDArray[np.int64], rank: int, world_size: int, *, repeat: bool = False
) -> npt.NDArray[np.int64]:
    return rows[slice(*share(0, len(rows), rank, world_size, repeat=repeat))]
