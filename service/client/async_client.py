"""Client for asyncio, over httpx, with Arrow bodies and retries. It needs no FastAPI.

Every request is safe to repeat, so one that got no answer is sent again, with growing random pauses, until
``patience`` is over: a server that is killed and started again costs its clients a pause.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal

import httpx
import numpy.typing as npt

from curation.pair import Pair
from curation.plan import BatchPlan
from curation.selection import Selection
from curation.service.client.requests import (
    Make,
    Report,
    Request,
    Requests,
    T,
    auth_headers,
    check_url,
    httpx_arguments,
    new_id,
    next_attempt,
    wait_seconds,
)
from curation.service.client.responses import ChosenBatch, ServiceError, SessionInfo, StepBatch, StepRows
from curation.service.client.waiting import Backoff, async_wait

_PIECE = 1 << 20


class AsyncClient:
    """The service, for asyncio. Close it, or use it in an ``async with``.

    Args:
        url: where the service is, such as ``http://127.0.0.1:8765``.
        token: a bearer token, where the service asks for one.
        patience: seconds for which a request is sent again while the service cannot answer it.
        timeout: seconds to wait for one answer.
        wait_patience: seconds for which the service may say that other ranks are missing, which is logged each minute;
            None: without end, or not at all where ``patience`` is 0.
        transport: httpx's, for tests; a copy of the client in another process does without it.

    Raises:
        ValueError: there can be no service at ``url``, or the token cannot be sent.

    Every method raises :class:`ServiceError` where the service refuses, or is out of reach for too long. What is sent
    again is logged to ``curation.client``, at first and then each minute.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        patience: float = 120,
        timeout: float = 60,
        wait_patience: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = check_url(url)
        self._token, self._patience, self._timeout = token, patience, timeout
        self._wait_patience = 0.0 if wait_patience is None and patience == 0 else wait_patience
        self._requests = Requests(wait_seconds(timeout, self._wait_patience))
        self._http = httpx.AsyncClient(base_url=url, headers=auth_headers(token), timeout=timeout, transport=transport)
        self._answered = False

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "token": self._token,
            "patience": self._patience,
            "timeout": self._timeout,
            "wait_patience": self._wait_patience,
        }

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
        """The batch of a rank at a step, counted from 0 over the session; reports of earlier steps go along.

        Waits for other ranks' reports at an epoch's end, for as long as ``wait_patience``.
        """
        request = self._requests.step(session, step=step, rank=rank, reports=reports, generation=generation)
        return await self._send(request)

    async def report(
        self, session: str, reports: Sequence[Report], *, rank: int = 0, generation: int | None = None
    ) -> None:
        """Report losses without asking for a batch; on disk when this returns."""
        request = self._requests.step(session, step=None, rank=rank, reports=reports, generation=generation)
        await self._send(request)

    async def batches(
        self,
        session: str,
        step: int,
        *,
        steps: int = 1,
        ranks: Sequence[int] = (0,),
        reports: Mapping[int, Sequence[Report]] = MappingProxyType({}),
        generation: int | None = None,
    ) -> dict[int, list[StepBatch]]:
        """The batches of several ranks, or of a run of steps, in one request.

        Args:
            session: the session's id.
            step: the first step; reports are of earlier ones.
            steps: how many; those beyond the epoch's end are left out.
            ranks: whose, such as all of a host.
            reports: by rank, as in :meth:`step`.
            generation: refuse if the session was rewound or resized since this one.

        Returns:
            By rank, its batches of consecutive steps.
        """
        request = self._requests.batches(
            session, step=step, steps=steps, ranks=ranks, reports=reports, generation=generation
        )
        return await self._send(request)

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
        ranks' parts for as long as ``wait_patience``.
        """
        return await self._send_as_known(
            lambda: self._requests.choose(
                session,
                step=step,
                learner=learner,
                reference=reference,
                scores=scores,
                rank=rank,
                generation=generation,
            )
        )

    async def session(self, session: str, *, first_rank: int = 0, ranks: int = 1000) -> SessionInfo:
        """How a session stands; in ``raw`` the ranks from ``first_rank`` on, at most so many (0: the quickest)."""
        return await self._send(self._requests.session(session, first_rank, ranks))

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
        return await self._send_as_known(lambda: self._requests.rewind(session, step))

    async def resize(
        self,
        session: str,
        world_size: int,
        *,
        generation: int,
        from_step: int | None = None,
        trained: Literal["reported", "all"] = "reported",
    ) -> SessionInfo:
        """Lay out what is left over another number of ranks; let one of them do it, and the others begin after it.

        Args:
            session: the session's id.
            world_size: ranks from then on.
            generation: the session's, as :meth:`session` says it; one that is not the session's any more is refused.
            from_step: the next step that will be asked for: what was reported for it and for later ones is forgotten,
                and what was not reported of the epoch before it is handed out again. None: the first step that not
                all ranks reported.
            trained: ``"all"`` where nothing is reported: the rows of all earlier steps count as trained on.

        Returns:
            How the session stands, of the next generation; its ``from_step`` is where to go on.
        """
        request = self._requests.resize(
            session, world_size=world_size, generation=generation, from_step=from_step, trained=trained
        )
        return await self._send(request)

    async def epochs(self, session: str) -> AsyncIterator[dict[str, Any]]:
        """The open epochs of a session: rows, steps, and how many are reweighted."""
        first: int | None = 0
        while first is not None:
            page = await self._send(self._requests.epochs(session, first))
            for epoch in page["epochs"]:
                yield epoch
            first = page["next"]

    async def losses(self, session: str, *, first: int = 0, limit: int = 1000, bins: int = 40) -> dict[str, Any]:
        """The losses reported from a step on, of ``limit`` reports or a few more: mean, low and high of each, and a
        histogram; ``next`` is the step to go on at."""
        return await self._send(self._requests.losses(session, first, limit, bins))

    async def datasets(self) -> list[str]:
        """The curated datasets that sessions can be made of."""
        return await self._send(self._requests.datasets())

    async def dataset(self, name: str) -> dict[str, Any]:
        """A dataset's manifest."""
        return await self._send(self._requests.dataset(name))

    async def close_epoch(self, session: str, epoch: int) -> SessionInfo:
        """Go on from an epoch without the reports that are missing of it, as of a rank that will not come back."""
        return await self._send(self._requests.close_epoch(session, epoch))

    async def change(self, session: str, **changes: Any) -> SessionInfo:
        """Change ``on_missing``, ``non_finite`` or (upwards) ``epochs`` of a session that runs."""
        return await self._send(self._requests.change(session, **changes))

    async def checkpoint(self, session: str) -> bytes:
        """The session as bytes for a training checkpoint."""
        return await self._send(self._requests.checkpoint(session))

    async def save_checkpoint(self, session: str, file: str | PathLike[str]) -> None:
        """Write the session to a file, piece by piece: it may be larger than memory."""
        await self._send(self._requests.checkpoint(session, Path(file)))

    async def restore(
        self,
        checkpoint: bytes | PathLike[str],
        id: str | None = None,
        *,
        world_size: int | None = None,
        from_step: int | None = None,
    ) -> SessionInfo:
        """A new session from such bytes, or a file of them (a Path); for other ranks, as of a step, as by
        :meth:`resize`."""
        session = id or new_id()
        try:
            return await self._send(self._requests.restore(checkpoint, session, world_size, from_step))
        except ServiceError as error:
            if id is not None or error.kind != "id-taken":
                raise
        info = await self.session(session)  # made by an earlier try, whose answer was lost
        if world_size in (None, info.world_size):
            return info
        trained: Literal["reported", "all"] = "reported" if info.raw["stateful"] else "all"
        return await self.resize(
            session, world_size or 1, generation=info.generation, from_step=from_step, trained=trained
        )

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

    async def _answer(self, request: Request[Any]) -> httpx.Response:
        arguments = httpx_arguments(request)
        if isinstance(request.content, Path):
            arguments["content"] = _pieces(request.content)
        if request.into is None:
            return await self._http.request(**arguments)
        async with self._http.stream(**arguments) as answer:
            if answer.is_success:
                part = request.into.with_name(f"{request.into.name}.part")
                with part.open("wb") as file:
                    async for piece in answer.aiter_bytes():
                        file.write(piece)
                part.replace(request.into)
            else:
                await answer.aread()
        return answer

    async def _send_as_known(self, make: Make[T]) -> T:
        """Send a request whose body an older service may refuse for a field that it does not know."""
        older = self._requests.older
        try:
            return await self._send(make())
        except ServiceError as error:
            if error.kind != "bad-body" or older or not await self._is_older():
                raise
        self._requests.older = True
        return await self._send(make())

    async def _is_older(self) -> bool:
        """Whether the service lacks a route that is as old as those fields."""
        try:
            await self._send(self._requests.capabilities())
        except ServiceError as error:
            return error.status == 404
        return False

    async def _send(self, request: Request[T]) -> T:
        what = f"{request.method} {self.url}{request.path}"
        backoff, sent = Backoff(self._patience, what, self._wait_patience), request
        while True:
            try:
                outcome: httpx.Response | httpx.TransportError = await self._answer(sent)
                self._answered = True
            except httpx.TransportError as error:
                outcome = error
            attempt = next_attempt(outcome, backoff, request, answered=self._answered)
            if attempt is None:
                assert isinstance(outcome, httpx.Response)
                return request.read(outcome)
            pause, sent = attempt
            await async_wait(pause)


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            yield piece
