"""Client for asyncio, over httpx, with Arrow bodies and retries. It needs no FastAPI.

Every request is safe to repeat, so one that got no answer is sent again, with growing random pauses, until
``patience`` is over: a server that is killed and started again costs its clients a pause.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

import httpx
import numpy.typing as npt

from curation.pair import Pair
from curation.plan import BatchPlan
from curation.selection import Selection
from curation.service.client.requests import (
    Backoff,
    Report,
    Request,
    Requests,
    T,
    auth_headers,
    httpx_arguments,
    new_id,
    next_attempt,
)
from curation.service.client.responses import ChosenBatch, ServiceError, SessionInfo, StepBatch, StepRows


class AsyncClient:
    """The service, for asyncio. Close it, or use it in an ``async with``.

    Args:
        url: where the service is, such as ``http://127.0.0.1:8765``.
        token: a bearer token, where the service asks for one.
        patience: seconds for which a request without an answer, or one that must wait, is sent again.
        timeout: seconds to wait for one answer.
        transport: httpx's, for tests; a copy of the client in another process does without it.

    Every method raises :class:`ServiceError` where the service refuses, or is out of reach for too long.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        patience: float = 120,
        timeout: float = 60,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self._token, self._patience, self._timeout = token, patience, timeout
        self._requests = Requests()
        self._http = httpx.AsyncClient(base_url=url, headers=auth_headers(token), timeout=timeout, transport=transport)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "token": self._token, "patience": self._patience, "timeout": self._timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def create_session(self, method: str, *, batch_size: int, **options: Any) -> SessionInfo:
        """Open a session.

        Args:
            method: one that the service has, such as ``"random"``; where it has none of that name, it answers with all
                names.
            batch_size: rows of one rank's batch.
            options: ``size`` or ``dataset``; ``epochs``, ``world_size``, ``seed``, ``drop_last``, ``on_missing``,
                ``non_finite``, ``parameters``, ``id`` (to make repeating safe over restarts of the trainer). And the
                table of a method that takes one: ``plan`` (a BatchPlan), ``scores`` [N], or ``table`` (pyarrow's).
        """
        return await self._send(self._requests.create(method, batch_size=batch_size, **options))

    async def step(
        self,
        session: str,
        step: int,
        *,
        rank: int = 0,
        reports: Sequence[Report] = (),
        generation: int | None = None,
    ) -> StepBatch:
        """The batch of a rank at a step, counted from 0 over the session; reports of earlier steps go along."""
        request = self._requests.step(session, step=step, rank=rank, reports=reports, generation=generation)
        return await self._send(request)

    async def report(
        self, session: str, reports: Sequence[Report], *, rank: int = 0, generation: int | None = None
    ) -> None:
        """Report losses without asking for a batch; on disk when this returns."""
        request = self._requests.step(session, step=None, rank=rank, reports=reports, generation=generation)
        await self._send(request)

    async def choose(
        self,
        session: str,
        step: int,
        learner: Pair | None = None,
        reference: Pair | None = None,
        *,
        scores: npt.ArrayLike | None = None,
        rank: int = 0,
        generation: int | None = None,
    ) -> ChosenBatch:
        """The part of a super-batch to train on, in a session whose method chooses from super-batches.

        Args:
            session: the session's id.
            step: as in :meth:`step`, which says of which rows embeddings are asked for.
            learner: this rank's rows [n, D] by the model in training; None where the criterion is ``easy``.
            reference: the same rows by the reference model; None where it is ``hard``.
            scores: [n] each row's own logit in place of both, in sessions with ``joint`` false.
            rank: this rank.
            generation: refuse if the session was rewound since this one.

        Without embeddings and scores it only asks: a choice that was made stands, and needs none. Waits for the other
        ranks' parts for as long as ``patience``.
        """
        request = self._requests.choose(
            session,
            step=step,
            learner=learner,
            reference=reference,
            scores=scores,
            rank=rank,
            generation=generation,
        )
        return await self._send(request)

    async def session(self, session: str) -> SessionInfo:
        """How a session stands."""
        return await self._send(self._requests.session(session))

    async def sessions(self) -> AsyncIterator[dict[str, Any]]:
        """All of your sessions, oldest first."""
        after: int | None = 0
        while after is not None:
            page = await self._send(self._requests.sessions(after))
            for summary in page["sessions"]:
                yield summary
            after = page["next"]

    async def step_rows(self, session: str, step: int, *, rank: int | None = None) -> StepRows:
        """Which rows were in a step, on all ranks or on one, with what weight and loss."""
        return await self._send(self._requests.step_rows(session, step, rank))

    async def row_visits(self, session: str, row: int) -> list[dict[str, Any]]:
        """Every visit of a row, oldest first: ``epoch``, ``step``, ``rank``, ``position``, ``weight``, ``loss``."""
        visits: list[dict[str, Any]] = []
        first: int | None = None
        while True:
            page = await self._send(self._requests.row_visits(session, row, first))
            visits += page["visits"]
            first = page["next"]
            if first is None:
                return visits

    async def spikes(self, session: str, *, top: int = 10, **options: int | float) -> list[dict[str, Any]]:
        """Steps whose mean loss stands out, the worst first, with their rows of the highest losses.

        Options are ``threshold`` (robust deviations), and ``first`` and ``limit`` (steps to read; the last 10,000).
        """
        page = await self._send(self._requests.spikes(session, top=top, **options))
        spikes: list[dict[str, Any]] = page["spikes"]
        return spikes

    async def delete(self, session: str) -> None:
        """Forget a session and its reports."""
        await self._send(self._requests.delete(session))

    async def rewind(self, session: str, step: int) -> SessionInfo:
        """Go back to a step; its reports and later ones are forgotten, and the generation rises."""
        return await self._send(self._requests.rewind(session, step))

    async def checkpoint(self, session: str) -> bytes:
        """The session as bytes for a training checkpoint."""
        return await self._send(self._requests.checkpoint(session))

    async def restore(self, checkpoint: bytes, id: str | None = None) -> SessionInfo:
        """A new session from such bytes."""
        session = id or new_id()
        try:
            return await self._send(self._requests.restore(checkpoint, session))
        except ServiceError as error:
            if id is not None or error.kind != "id-taken":
                raise
            return await self.session(session)  # made by an earlier try, whose answer was lost

    async def zipfit(self, texts: Sequence[str], targets: Sequence[str], k: int, **options: Any) -> Selection:
        """ZIP-FIT's choice of k texts; options are those of :class:`curation.ZipFit`."""
        return await self._send(self._requests.zipfit(texts, targets, k, **options))

    async def acquire(self, scores: npt.ArrayLike, k: int, **options: Any) -> Selection:
        """A stochastic acquisition of k candidates by their scores [N]; options are those of
        :class:`curation.StochasticAcquisition`, and ``seed``."""
        return await self._send(self._requests.acquire(scores, k, **options))

    async def jest(self, learner: Pair | None, reference: Pair | None, **options: Any) -> Selection:
        """JEST's choice from a super-batch; options are those of :class:`curation.JEST`, and ``seed``."""
        return await self._send(self._requests.jest(learner, reference, **options))

    async def b3(self, queries: npt.ArrayLike, positives: npt.ArrayLike, **options: Any) -> BatchPlan:
        """B3's plan over embeddings [N, D]; options are those of :class:`curation.B3`, and ``seed``."""
        return await self._send(self._requests.b3(queries, positives, **options))

    async def _send(self, request: Request[T]) -> T:
        backoff, sent = Backoff(self._patience), request
        while True:
            try:
                answer = await self._http.request(**httpx_arguments(sent))
                outcome: httpx.Response | httpx.TransportError = answer
            except httpx.TransportError as error:
                outcome = error
            attempt = next_attempt(outcome, backoff, request)
            if attempt is None:
                assert isinstance(outcome, httpx.Response)
                return request.read(outcome)
            pause, sent = attempt
            await asyncio.sleep(pause)
