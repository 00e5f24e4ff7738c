"""Sampler over sessions of jest: the ``batch_sampler`` of a torch DataLoader that trains on what is chosen."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.pair import Pair
from curation.service.client.client import Client
from curation.service.client.responses import ServiceError, StepBatch
from curation.service.client.sampler import RemoteBatchSampler

Score = Callable[[npt.NDArray[np.int64]], tuple[Pair | None, Pair | None]]


class RemoteJESTBatchSampler(RemoteBatchSampler):
    """The part of each super-batch that a session of jest chooses, by the embeddings that ``score`` makes of it.

    As :class:`curation.selectors.samplers.JESTBatchSampler` with ``sharded``: each rank embeds its rows of the
    super-batch, the service chooses from all of them together, and each rank trains on its share. Super-batches are
    asked for ahead; embeddings are made by the model as it is when the batch is asked for. ::

        session = client.create_session("jest", size=len(dataset), batch_size=1280, epochs=2, parameters={"chunks": 8})
        sampler = RemoteJESTBatchSampler(client, session.id, score=lambda rows: (learner(rows), cache.pair(rows)))

    A choice that was made stands: what resumes in the middle of a step asks for it before it embeds anything. Elastic,
    it goes on without a state at the first super-batch of which nothing was chosen.

    Args:
        client, session, rank, prefetch, elastic: as in :class:`RemoteBatchSampler`.
        score: int64[n] positions -> (learner, reference), as the local sampler has it; None for one that the
            criterion does not read.

    Raises:
        ValueError: prefetch is negative, or ``score`` returns another number of rows.
        ServiceError: as in :class:`RemoteBatchSampler`.
    """

    def __init__(
        self,
        client: Client,
        session: str,
        *,
        score: Score,
        rank: int | None = None,
        prefetch: int = 2,
        elastic: bool | None = None,
    ) -> None:
        super().__init__(client, session, rank=rank, prefetch=prefetch, elastic=elastic)
        self.score = score
        self._may_be_made = True

    def load_state_dict(self, state: dict[str, Any], *, rewind: bool = False) -> None:
        """As in :class:`RemoteBatchSampler`; with ``rewind`` later choices are forgotten, too, and made anew."""
        super().load_state_dict(state, rewind=rewind)
        self._may_be_made = True

    def _chosen(self, batch: StepBatch) -> StepBatch:
        if not len(batch.indices):  # fewer rows were left than ranks: the others choose
            return self._ask_for(batch, None, None)
        if self._may_be_made:
            try:
                return self._ask_for(batch, None, None)
            except ServiceError as error:
                if error.kind != "not-sent":
                    raise
            self._may_be_made = False
        learner, reference = self.score(batch.indices)
        for name, pair in (("learner", learner), ("reference", reference)):
            if pair is not None and len(pair) != len(batch.indices):
                raise ValueError(f"score returned a {name} of {len(pair)} rows for {len(batch.indices)} positions")
        return self._ask_for(batch, learner, reference)

    def _ask_for(self, batch: StepBatch, learner: Pair | None, reference: Pair | None) -> StepBatch:
        chosen = self.client.choose(
            self.session, self._step, learner, reference, rank=self.rank, generation=self.generation
        )
        return batch._replace(indices=chosen.indices, weights=chosen.weights)
