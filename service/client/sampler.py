"""Sampler over the service: the ``batch_sampler`` of a torch DataLoader."""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from curation.service.client.client import Client
from curation.service.client.elastic import Place, choose_rank, is_elastic, rejoin
from curation.service.client.prefetch import Prefetch
from curation.service.client.requests import Report
from curation.service.client.responses import ServiceError, StepBatch


class RemoteBatchSampler(Sampler[list[int]]):
    """Batches of one rank from a session of the service; its losses go back with the requests for later steps.

    ::

        client = Client("http://127.0.0.1:8765")
        session = client.create_session("infobatch", size=len(dataset), batch_size=256, epochs=90)
        sampler = RemoteBatchSampler(client, session.id)
        loader = DataLoader(Indexed(dataset), batch_sampler=sampler, num_workers=4)
        for epoch in range(90):
            for index, item in loader:
                loss = sampler.update(index, criterion(...)).mean()      # criterion with reduction="none"

    Requests that fail are repeated (see :class:`~curation.service.client.Client`), so a server may die and come back,
    or a replica take over, and training goes on with the very next batch. A state resumes to it as well.

    Elastic, ranks may die and join. All of them make a new sampler after each restart, and load the same state if there
    is one; with the first batch rank 0 resizes the session to as many ranks as torch.distributed has now, at the step
    of the state (without one, at the first step that not all ranks reported), and tells the others where to go on. What
    was not reported by then is handed out again: every row of every epoch is reported once. The first ``iter`` or
    ``len`` is a collective call, therefore: every rank makes it.

    Args:
        client: where the service is; a copy of it is made in another process.
        session: the session's id.
        rank: this rank; None asks torch.distributed, then torchrun's environment, and is 0 without both.
        prefetch: batches asked for ahead, in a thread; never beyond the epoch's end.
        elastic: resize the session to the ranks there are; None: where torchrun started them, and ``rank`` is None.

    Raises:
        ValueError: prefetch is negative, or ``elastic`` without torch.distributed.
        ServiceError: the service refuses, or cannot be reached for too long.
    """

    def __init__(
        self,
        client: Client,
        session: str,
        *,
        rank: int | None = None,
        prefetch: int = 2,
        elastic: bool | None = None,
    ) -> None:
        if prefetch < 0:
            raise ValueError(f"prefetch must not be negative, but is {prefetch}")
        self.client, self.session, self._prefetch = client, session, prefetch
        self.elastic = is_elastic(rank, elastic)
        self.rank = choose_rank() if rank is None else rank
        info = client.session(session, ranks=0)
        self.generation, self._digest = info.generation, info.raw.get("digest")
        self._rejects = info.raw["spec"]["non_finite"] == "reject"
        self._joined = not self.elastic
        self._loaded: int | None = None
        self._run = self._iteration = 0
        self._step = 0
        self._pending: OrderedDict[int, StepBatch] = OrderedDict()
        self._reports: list[Report] = []
        self._ahead: StepBatch | None = None
        self._done = False
        self._lock, self._sending = threading.Lock(), threading.Lock()

    def __len__(self) -> int:
        """Batches from the next one to its epoch's end. Asks the service, and so waits as ``iter`` does."""
        self._join()
        return 0 if self._done else self._next().epoch_end - self._step

    def __iter__(self) -> Iterator[list[int]]:
        """The batches up to the epoch's end; the next call goes on with the next epoch.

        After leaving an epoch early, ``load_state_dict(state_dict())`` goes back to the first batch not updated.

        Raises:
            RuntimeError: another iteration or ``load_state_dict`` moved the sampler since this one's last batch.
        """
        self._join()
        if self._done:
            return
        self._iteration += 1
        iteration = self._iteration
        futures: deque[Future[StepBatch]] = deque()
        batch, next_step = self._next(), self._step + 1
        ahead = Prefetch(self._ask)
        try:
            while True:
                for step in range(
                    max(next_step, self._step + 1), min(self._step + 1 + self._prefetch, batch.epoch_end)
                ):
                    futures.append(ahead.submit(step))
                    next_step = step + 1
                batch = self._chosen(batch)
                self._pending[self._step] = batch
                self._step, self._ahead, self._done = self._step + 1, None, batch.end_of_session
                yield batch.indices.tolist()
                if iteration != self._iteration:
                    raise RuntimeError(
                        "the sampler was moved since this iteration's last batch, by another iteration or "
                        "load_state_dict: only the newest iteration goes on"
                    )
                if batch.end_of_epoch:
                    return
                batch = futures.popleft().result() if futures else self._next()
        finally:
            ahead.close()

    def weights(self, indices: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """float32[n], the weights of a batch that was handed out and not yet updated."""
        return self._find(indices)[1].weights

    def update(self, indices: Any, losses: torch.Tensor) -> torch.Tensor:
        """Note the losses of a batch, and return them weighted; take their ``.mean()`` and go backward.

        They reach the service with the next request, or at once where the epoch ends with them.

        Args:
            indices: int[n], the batch's positions, in its order.
            losses: [n], one loss a row; gradients flow through.

        Returns:
            [n], losses · weights.

        Raises:
            ValueError: no batch that was handed out and not updated has these indices, the losses are not one a row, or
                one is NaN or infinite in a session that rejects those: then the batch still waits for its losses.
        """
        step, batch = self._find(indices)
        if tuple(losses.shape) != batch.indices.shape:
            raise ValueError(
                f"losses has shape {tuple(losses.shape)}, but the batch has {len(batch.indices)} rows: one a row"
            )
        values = losses.detach().float().cpu().numpy()
        if self._rejects and not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise ValueError(
                f"loss {row} of step {step} is {values[row]}, and session {self.session!r} rejects those: update with "
                'finite losses, or give the session "non_finite": "keep", which takes such a loss as unknown'
            )
        del self._pending[step]
        with self._lock:
            self._reports.append((step, values))
        if batch.end_of_epoch:
            self.flush()
        return losses * torch.from_numpy(batch.weights.copy()).to(losses.device)

    def flush(self) -> None:
        """Send the losses noted so far; they are on the server's disk when this returns."""
        with self._reporting() as reports:
            if reports:
                self.client.report(self.session, reports, rank=self.rank, generation=self.generation)

    def state_dict(self) -> dict[str, Any]:
        """Where training stands: the first batch that was not updated is the next one after a resume.

        Flush is called first, so that what was trained on is on the server. Elastic, call it (or :meth:`flush`) on
        every rank, also where one alone saves: what a rank has not sent is handed out again.

        Raises:
            RuntimeError: elastic, and neither a batch was asked for nor a state loaded.
        """
        if not self._joined and self._loaded is None:
            raise RuntimeError("where training stands is not known before the first batch: save after it")
        self.flush()
        step = next(iter(self._pending), self._step)
        state = {"version": 1, "session": self.session, "rank": self.rank, "step": step}
        return state if self._digest is None else {**state, "digest": self._digest}

    def load_state_dict(self, state: dict[str, Any], *, rewind: bool = False) -> None:
        """Go on from a state.

        Elastic, any rank's state does, and the next batch goes on from rank 0's, with what was reported since
        forgotten.

        Args:
            state: what :meth:`state_dict` gave; it is left as it is.
            rewind: forget what was reported since, on all ranks: for a training that resumes from an older checkpoint.
                Let one rank do it, and the others load after it.

        Raises:
            ValueError: the state is another session's or rank's, or of one that had this id and other parameters.
        """
        identity = {"version": 1, "session": self.session, "rank": state.get("rank") if self.elastic else self.rank}
        if set(state) - {"digest"} != {*identity, "step"} or any(state[name] != identity[name] for name in identity):
            raise ValueError(f"not a state of rank {self.rank} in session {self.session!r}: {state}")
        if self._digest is not None and state.get("digest", self._digest) != self._digest:
            raise ValueError(
                f"session {self.session!r} was created anew, from other parameters or tables than the one that the "
                "state is of: start from step 0, or restore that session from its checkpoint"
            )
        if self.elastic:
            self._loaded, self._joined = state["step"], False
            self._go_on(Place(self.generation, state["step"], None))
            return
        info = self.client.rewind(self.session, state["step"]) if rewind else self.client.session(self.session, ranks=0)
        self._go_on(Place(info.generation, state["step"], info.total_steps))

    def _chosen(self, batch: StepBatch) -> StepBatch:
        """What is trained on of a batch that was handed out."""
        return batch

    def _join(self) -> None:
        """Elastic: agree with the other ranks where to go on, once."""
        if not self._joined:
            self._go_on(rejoin(self.client, self.session, self._loaded))
            self._joined = True

    def _go_on(self, place: Place) -> None:
        self.generation, self._step = place.generation, place.step
        self._done = place.step == place.total_steps
        with self._lock:
            self._pending, self._reports, self._ahead = OrderedDict(), [], None
            self._run += 1
            self._iteration += 1

    def _next(self) -> StepBatch:
        if self._ahead is None:
            self._ahead = self._ask([self._step])[0]
        return self._ahead

    def _ask(self, steps: Sequence[int]) -> list[StepBatch]:
        with self._reporting() as reports:
            if len(steps) > 1:
                try:
                    batches = self.client.batches(
                        self.session,
                        steps[0],
                        steps=len(steps),
                        ranks=[self.rank],
                        reports={self.rank: reports},
                        generation=self.generation,
                    )
                    return batches[self.rank]
                except ServiceError as error:
                    # More than the server answers at once, or a server that is older than this: one by one.
                    if error.kind not in ("too-large", "not-found"):
                        raise
            options: dict[str, Any] = {"rank": self.rank, "generation": self.generation}
            first = self.client.step(self.session, steps[0], reports=reports, **options)
            return [first, *(self.client.step(self.session, step, **options) for step in steps[1:])]

    @contextmanager
    def _reporting(self) -> Iterator[list[Report]]:
        """Takes the reports noted so far; puts them back where sending fails, but for one that was refused, and
        unless another state was loaded since.

        One request at a time: what this returns after was sent, with what others took before.
        """
        with self._sending:
            yield from self._taken()

    def _taken(self) -> Iterator[list[Report]]:
        with self._lock:
            run, reports, self._reports = self._run, self._reports, []
        try:
            yield reports
        except BaseException as error:
            if isinstance(error, ServiceError) and error.kind == "bad-report":
                refused = error.members.get("step")
                reports = [report for report in reports if refused is not None and report[0] != refused]
                error.add_note("It was dropped, and is not sent again.")
            with self._lock:
                if run == self._run:
                    self._reports = reports + self._reports
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_sending": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _sending=threading.Lock())

    def _find(self, indices: Any) -> tuple[int, StepBatch]:
        positions = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else indices)
        for step, batch in self._pending.items():
            if np.array_equal(batch.indices, positions):
                return step, batch
        raise ValueError(
            "no batch that waits for its losses has these indices: they must be one whole batch, in its order"
        )
