"""The client for asyncio: what :mod:`curation.service.client.client` does, as coroutines."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import httpx
import numpy.typing as npt

from curation.pair import Pair
from curation.plan import BatchPlan
from curation.selection import Selection
from curation.service.client.requests import Call, Calls, Patience, Report, T, headers_of, judge, new_id, request_of
from curation.service.client.responses import ChosenBatch, ServiceError, SessionInfo, StepBatch


class AsyncClient:
    """The service, for asyncio: :class:`Client`'s methods as coroutines."""

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
        self._patience = patience
        self._calls = Calls()
        self._http = httpx.AsyncClient(base_url=url, headers=headers_of(token), timeout=timeout, transport=transport)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def create_session(self, method: str, *, batch_size: int, **options: Any) -> SessionInfo:
        """As :meth:`Client.create_session`."""
        return await self._send(self._calls.create(method, batch_size=batch_size, **options))

    async def step(
        self,
        session: str,
        step: int,
        *,
        rank: int = 0,
        reports: Sequence[Report] = (),
        generation: int | None = None,
    ) -> StepBatch:
        """As :meth:`Client.step`."""
        call = self._calls.step(session, step=step, rank=rank, reports=reports, generation=generation)
        return await self._send(call)

    async def report(
        self, session: str, reports: Sequence[Report], *, rank: int = 0, generation: int | None = None
    ) -> None:
        """As :meth:`Client.report`."""
        await self._send(self._calls.step(session, step=None, rank=rank, reports=reports, generation=generation))

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
        """As :meth:`Client.choose`."""
        call = self._calls.choose(
            session,
            step=step,
            learner=learner,
            reference=reference,
            scores=scores,
            rank=rank,
            generation=generation,
        )
        return await self._send(call)

    async def session(self, session: str) -> SessionInfo:
        """As :meth:`Client.session`."""
        return await self._send(self._calls.session(session))

    async def delete(self, session: str) -> None:
        """As :meth:`Client.delete`."""
        await self._send(self._calls.delete(session))

    async def rewind(self, session: str, step: int) -> SessionInfo:
        """As :meth:`Client.rewind`."""
        return await self._send(self._calls.rewind(session, step))

    async def checkpoint(self, session: str) -> bytes:
        """As :meth:`Client.checkpoint`."""
        return await self._send(self._calls.checkpoint(session))

    async def restore(self, checkpoint: bytes, id: str | None = None) -> SessionInfo:
        """As :meth:`Client.restore`."""
        own = id or new_id()
        try:
            return await self._send(self._calls.restore(checkpoint, own))
        except ServiceError as error:
            if id is not None or error.kind != "id-taken":
                raise
            return await self.session(own)  # made by an earlier try, whose answer was lost

    async def zipfit(self, texts: Sequence[str], targets: Sequence[str], k: int, **options: Any) -> Selection:
        """As :meth:`Client.zipfit`."""
        return await self._send(self._calls.zipfit(texts, targets, k, **options))

    async def acquire(self, scores: npt.ArrayLike, k: int, **options: Any) -> Selection:
        """As :meth:`Client.acquire`."""
        return await self._send(self._calls.acquire(scores, k, **options))

    async def jest(self, learner: Pair | None, reference: Pair | None, **options: Any) -> Selection:
        """As :meth:`Client.jest`."""
        return await self._send(self._calls.jest(learner, reference, **options))

    async def b3(self, queries: npt.ArrayLike, positives: npt.ArrayLike, **options: Any) -> BatchPlan:
        """As :meth:`Client.b3`."""
        return await self._send(self._calls.b3(queries, positives, **options))

    async def _send(self, call: Call[T]) -> T:
        patience, sent = Patience(self._patience), call
        while True:
            try:
                answer = await self._http.request(**request_of(sent))
                outcome: httpx.Response | httpx.TransportError = answer
            except httpx.TransportError as error:
                outcome = error
            again = judge(outcome, patience, call)
            if again is None:
                assert isinstance(outcome, httpx.Response)
                return call.read(outcome)
            pause, sent = again
            await asyncio.sleep(pause)
