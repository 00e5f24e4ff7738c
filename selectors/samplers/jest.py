"""Batches chosen jointly out of super-batches. A step costs the scoring, and JEST's selection."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from curation.pair import Pair
from curation.selectors.samplers.base import ResumableSampler, check_rank, ranks_of
from curation.selectors.samplers.split import share
from curation.selectors.state import check_state

if TYPE_CHECKING:
    from curation.selectors.jest import JEST

Score = Callable[[npt.NDArray[np.int64]], tuple[Pair | None, Pair | None]]


class JESTBatchSampler(Sampler[list[int]]):
    """A ``batch_sampler`` that asks the model which part of each super-batch to train on.

    It runs in the main process, where the model is: workers of the DataLoader only load what was chosen. With
    ``num_workers > 0`` the loader asks ahead, so a choice is made by a model some steps old
    (``prefetch_factor · num_workers`` of them).

    All ranks walk through the same super-batches, make the same choice, and train on their shares of it. The
    choice at a position is a function of (seed, epoch, position) and of what ``score`` returns.

    Args:
        source: any other sampler of this package, which makes the super-batches: its ``batch_size`` is B, on all
            ranks together. Its own rank and world size are not used.
        jest: how to choose.
        score: int64[B] positions -> (learner, reference), the embeddings of both models in that order; None for
            one that the criterion does not read.
        seed: of the choice.
        sharded: with several ranks of torch.distributed, give ``score`` only this rank's part of the
            super-batch, and choose together. Otherwise every rank scores all of it.
        rank, world_size: None asks torch.distributed at the epoch's start.

    Raises:
        ValueError: rank or world size is out of range; or, where an epoch begins and on all ranks alike, fewer rows
            would be chosen of a super-batch than there are ranks.
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
        return self.source.super_batch_count(self.ranks[1])

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = self.ranks
        fewest, super_batches = self.source.super_batches(world_size)
        fewest_chosen = sum(self.jest.rounds(fewest))
        if fewest and fewest_chosen < world_size:
            raise ValueError(
                f"of a super-batch of {fewest} rows {fewest_chosen} are chosen for {world_size} ranks, and no batch "
                "may be empty: make super-batches larger or filter_ratio smaller, or set the source's drop_last where "
                "only the last one is too short"
            )
        for super_batch in super_batches:
            chosen = super_batch[self._choose(super_batch, rank, world_size, (self.seed, *self.source.position))]
            yield _share_of(chosen, rank, world_size).tolist()

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

    def _choose(
        self, super_batch: npt.NDArray[np.int64], rank: int, world_size: int, seed: tuple[int, ...]
    ) -> npt.NDArray[np.int64]:
        """The positions in the super-batch that are chosen, on all ranks, in pick order."""
        sharded = self.sharded and world_size > 1
        rows = _share_of(super_batch, rank, world_size) if sharded else super_batch
        learner, reference = self.score(rows)
        for name, pair in (("learner", learner), ("reference", reference)):
            if pair is not None and len(pair) != len(rows):
                raise ValueError(f"score returned a {name} of {len(pair)} rows for {len(rows)} positions")
        if sharded:
            return self.jest.select_distributed(learner, reference, seed=seed).indices
        return self.jest.select(learner, reference, generator=np.random.default_rng(seed)).indices


def _share_of(rows: npt.NDArray[np.int64], rank: int, world_size: int) -> npt.NDArray[np.int64]:
    return rows[slice(*share(0, len(rows), rank, world_size))]
