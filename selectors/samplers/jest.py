"""Super-batches in, jointly chosen sub-batches out. A step costs the scoring, and JEST's selection."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from curation.pair import Pair
from curation.selectors.distributed import world
from curation.selectors.samplers.base import ResumableSampler
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
        source: any other sampler of this package, which makes the super-batches: of size B, on all ranks
            together. Its own rank and world size are not used.
        jest: how to choose.
        score: int64[B] positions -> (learner, reference), the embeddings of both models in that order; None for
            one that the criterion does not read.
        seed: of the choice.
        sharded: with several ranks of torch.distributed, give ``score`` only this rank's part of the
            super-batch, and choose together. Otherwise every rank scores all of it.
        rank, world_size: None asks torch.distributed at the epoch's start.

    Raises:
        ValueError: rank or world size is out of range.
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
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither (then torch.distributed is asked)")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1} (world_size={world_size}), not {rank}")
        self.source, self.jest, self.score, self.seed, self.sharded = source, jest, score, seed, sharded
        self._rank, self._world_size = rank, world_size

    @property
    def epoch(self) -> int:
        """The epoch that the next ``iter()`` runs, or goes on with."""
        return self.source.epoch

    @property
    def ranks(self) -> tuple[int, int]:
        """(rank, world size): as given, or else those of torch.distributed now, or (0, 1)."""
        if self._rank is None or self._world_size is None:
            return world()
        return self._rank, self._world_size

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one; see :meth:`ResumableSampler.set_epoch`."""
        self.source.set_epoch(epoch)

    def __len__(self) -> int:
        """Super-batches left in the epoch: each gives one batch on every rank."""
        return self.source.steps(1)

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = self.ranks
        for batch, (epoch, position) in self._super_batches():
            chosen = batch[self._choose(batch, rank, world_size, (self.seed, epoch, position))]
            yield chosen[len(chosen) * rank // world_size : len(chosen) * (rank + 1) // world_size].tolist()

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

    def _super_batches(self) -> Iterator[tuple[npt.NDArray[np.int64], tuple[int, int]]]:
        for batch in self.source.batches(0, 1):
            yield batch, self.source.place

    def _choose(
        self, batch: npt.NDArray[np.int64], rank: int, world_size: int, seed: tuple[int, ...]
    ) -> npt.NDArray[np.int64]:
        spread = self.sharded and world_size > 1
        mine = batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size] if spread else batch
        learner, reference = self.score(mine)
        for name, pair in (("learner", learner), ("reference", reference)):
            if pair is not None and len(pair) != len(mine):
                raise ValueError(f"score returned a {name} of {len(pair)} rows for {len(mine)} positions")
        if spread:
            return self.jest.select_distributed(learner, reference, seed=seed).indices
        return self.jest.select(learner, reference, generator=np.random.default_rng(seed)).indices
