"""A client for trainers: sync and async over httpx, with Arrow bodies and retries. It needs no FastAPI.

Every request is safe to repeat, so one that got no answer is sent again, with growing random pauses, until
``patience`` is over: a server that is killed and started again costs its clients a pause.
"""

import asyncio
import json
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.errors import CurationError
from curation.pair import Pair
from curation.plan import BatchPlan
from curation.selection import Selection

ARROW = "application/vnd.apache.arrow.stream"
_AGAIN = frozenset({429, 502, 503, 504})
_AGAIN_KINDS = frozenset({"missing-reports", "session-changed"})
_LONGEST_PAUSE = 5.0
_END = b"\xff\xff\xff\xff\0\0\0\0"
T = TypeVar("T")


class ServiceError(CurationError):
    """The service refused a request, or could not be reached in time.

    Args:
        kind: the problem's kind, such as ``"bad-report"``; ``"unreachable"`` where there was no answer.
        detail: what the server says.
        status: the HTTP status, None without an answer.
        members: the problem document's further members.
    """

    def __init__(
        self, kind: str, detail: str, status: int | None = None, members: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.status = status
        self.members = dict(members or {})


class StepBatch(NamedTuple):
    """What a rank trains on at a step: ``indices`` int64[n], ``weights`` float32[n].

    ``epoch_end`` is the step after the epoch's last. ``step`` None: it was only a report.
    """

    indices: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    epoch: int | None
    step: int | None
    epoch_end: int
    end_of_epoch: bool
    end_of_session: bool
    generation: int


@dataclass(frozen=True)
class SessionInfo:
    """How a session stands. ``raw`` is the whole answer, with each rank's progress."""

    id: str
    generation: int
    size: int
    world_size: int
    epochs: int
    open_epochs: int
    open_steps: int
    total_steps: int | None
    raw: Mapping[str, Any]


Report = tuple[int, npt.ArrayLike]
"""A step, and the losses of this rank's batch at it, in the batch's order."""


@dataclass(frozen=True)
class _Call(Generic[T]):
    """A request, and how its answer reads."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    content: bytes | None = None
    kind: str = "application/json"
    query: Mapping[str, str | int] | None = None


class _Patience:
    """When to send a request again: full jitter below a bound that doubles."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._bound = 0.05

    def pause(self, least: float = 0.0) -> float | None:
        """Seconds to wait before the next try; None where there is none."""
        wait = max(least, random.uniform(0, self._bound))
        self._bound = min(2 * self._bound, _LONGEST_PAUSE)
        return wait if time.monotonic() + wait < self._end else None


class _Calls:
    """The requests, without the sending."""

    def create(
        self,
        method: str,
        *,
        batch_size: int,
        size: int | None = None,
        dataset: str | None = None,
        id: str | None = None,
        plan: BatchPlan | None = None,
        scores: npt.ArrayLike | None = None,
        **options: Any,
    ) -> _Call[SessionInfo]:
        request = {"method": method, "batch_size": batch_size, "id": id or secrets.token_urlsafe(12), **options}
        request |= {name: value for name, value in (("size", size), ("dataset", dataset)) if value is not None}
        if plan is None and scores is None:
            return _Call("POST", "/v1/sessions", _info, json.dumps(request).encode())
        table = (
            pa.table({"scores": np.asarray(scores, np.float32)})
            if plan is None
            else plan.to_arrow().select(["indices"])
        )
        return _Call("POST", "/v1/sessions", _info, _stream(table, request), ARROW)

    def step(
        self, session: str, *, step: int | None, rank: int, reports: Sequence[Report], generation: int | None
    ) -> _Call[StepBatch]:
        metadata = {"rank": str(rank)}
        if step is not None:
            metadata["step"] = str(step)
        if generation is not None:
            metadata["generation"] = str(generation)
        if not reports:
            schema = pa.schema([], metadata)
            return _Call("POST", f"/v1/sessions/{session}/steps", _step, schema.serialize().to_pybytes() + _END, ARROW)
        losses = [np.asarray(values, np.float32) for _, values in reports]
        offsets = np.cumsum([0, *(len(values) for values in losses)], dtype=np.int32)
        columns = {
            "step": pa.array([number for number, _ in reports], pa.int64()),
            "losses": pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(losses))),
        }
        rows = pa.record_batch(columns, metadata=metadata)
        body = b"".join((rows.schema.serialize(), rows.serialize(), _END))
        return _Call("POST", f"/v1/sessions/{session}/steps", _step, body, ARROW)

    def session(self, session: str) -> _Call[SessionInfo]:
        return _Call("GET", f"/v1/sessions/{session}", _info)

    def sessions(self, after: int) -> _Call[dict[str, Any]]:
        return _Call("GET", "/v1/sessions", _json, query={"after": after})

    def delete(self, session: str) -> _Call[None]:
        return _Call("DELETE", f"/v1/sessions/{session}", lambda answer: None)

    def rewind(self, session: str, step: int) -> _Call[SessionInfo]:
        return _Call("POST", f"/v1/sessions/{session}/rewind", _info, json.dumps({"step": step}).encode())

    def checkpoint(self, session: str) -> _Call[bytes]:
        return _Call("GET", f"/v1/sessions/{session}/checkpoint", lambda answer: answer.content)

    def restore(self, checkpoint: bytes, id: str | None) -> _Call[SessionInfo]:
        query = {"id": id or secrets.token_urlsafe(12)}
        return _Call("POST", "/v1/sessions/import", _info, checkpoint, ARROW, query)

    def zipfit(self, texts: Sequence[str], targets: Sequence[str], k: int, **options: Any) -> _Call[Selection]:
        request = {"targets": list(targets), "k": k, **options}
        table = pa.table({"texts": pa.array(list(texts), pa.large_string())})
        return _Call("POST", "/v1/select/zipfit", _selection, _stream(table, request), ARROW)

    def acquire(self, scores: npt.ArrayLike, k: int, **options: Any) -> _Call[Selection]:
        table = pa.table({"scores": np.asarray(scores)})
        return _Call("POST", "/v1/select/acquire", _selection, _stream(table, {"k": k, **options}), ARROW)

    def jest(self, learner: Pair, reference: Pair, **options: Any) -> _Call[Selection]:
        columns, request = {}, dict(options)
        for name, pair in (("learner", learner), ("reference", reference)):
            columns[f"{name}_a"], columns[f"{name}_b"] = _matrix(pair.a), _matrix(pair.b)
            request[f"{name}_scale"], request[f"{name}_bias"] = pair.scale, pair.bias
        return _Call("POST", "/v1/select/jest", _selection, _stream(pa.table(columns), request), ARROW)

    def b3(self, queries: npt.ArrayLike, positives: npt.ArrayLike, **options: Any) -> _Call[BatchPlan]:
        table = pa.table({"queries": _matrix(queries), "positives": _matrix(positives)})
        return _Call("POST", "/v1/select/b3", _plan, _stream(table, options), ARROW)


class Client:
    """The service, for blocking code. Close it, or use it in a ``with``.

    Args:
        url: where the service is, such as ``http://127.0.0.1:8765``.
        token: a bearer token, where the service asks for one.
        patience: seconds for which a request without an answer, or one that must wait, is sent again.
        timeout: seconds to wait for one answer.
        transport: httpx's, for tests.

    Every method raises :class:`ServiceError` where the service refuses, or is out of reach for too long.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        patience: float = 120,
        timeout: float = 60,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self._token, self._patience, self._timeout = token, patience, timeout
        self._calls = _Calls()
        self._http = httpx.Client(base_url=url, headers=_headers(token), timeout=timeout, transport=transport)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "token": self._token, "patience": self._patience, "timeout": self._timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def create_session(self, method: str, *, batch_size: int, **options: Any) -> SessionInfo:
        """Open a session.

        Args:
            method: ``"random"``, ``"infobatch"``, ``"plan"``, ``"acquisition"`` or ``"jest"``.
            batch_size: rows of one rank's batch.
            options: ``size`` or ``dataset``; ``epochs``, ``world_size``, ``seed``, ``drop_last``, ``on_missing``,
                ``non_finite``, ``parameters``, ``id`` (to make repeating safe over restarts of the trainer); ``plan``
                (a BatchPlan) for method plan, ``scores`` [N] for method acquisition.
        """
        return self._send(self._calls.create(method, batch_size=batch_size, **options))

    def step(
        self,
        session: str,
        step: int,
        *,
        rank: int = 0,
        reports: Sequence[Report] = (),
        generation: int | None = None,
    ) -> StepBatch:
        """The batch of a rank at a step, counted from 0 over the session; reports of earlier steps go along."""
        call = self._calls.step(session, step=step, rank=rank, reports=reports, generation=generation)
        return self._send(call)

    def report(self, session: str, reports: Sequence[Report], *, rank: int = 0, generation: int | None = None) -> None:
        """Report losses without asking for a batch; on disk when this returns."""
        self._send(self._calls.step(session, step=None, rank=rank, reports=reports, generation=generation))

    def session(self, session: str) -> SessionInfo:
        """How a session stands."""
        return self._send(self._calls.session(session))

    def sessions(self) -> Iterator[dict[str, Any]]:
        """All of your sessions, oldest first."""
        after: int | None = 0
        while after is not None:
            page = self._send(self._calls.sessions(after))
            yield from page["sessions"]
            after = page["next"]

    def delete(self, session: str) -> None:
        """Forget a session and its reports."""
        self._send(self._calls.delete(session))

    def rewind(self, session: str, step: int) -> SessionInfo:
        """Go back to a step; its reports and later ones are forgotten, and the generation rises."""
        return self._send(self._calls.rewind(session, step))

    def checkpoint(self, session: str) -> bytes:
        """The session as bytes for a training checkpoint."""
        return self._send(self._calls.checkpoint(session))

    def restore(self, checkpoint: bytes, id: str | None = None) -> SessionInfo:
        """A new session from such bytes."""
        return self._send(self._calls.restore(checkpoint, id))

    def zipfit(self, texts: Sequence[str], targets: Sequence[str], k: int, **options: Any) -> Selection:
        """ZIP-FIT's choice of k texts; options are those of :class:`curation.ZipFit`."""
        return self._send(self._calls.zipfit(texts, targets, k, **options))

    def acquire(self, scores: npt.ArrayLike, k: int, **options: Any) -> Selection:
        """A stochastic acquisition of k candidates by their scores [N]; options ``kind``, ``beta``, ``seed``."""
        return self._send(self._calls.acquire(scores, k, **options))

    def jest(self, learner: Pair, reference: Pair, **options: Any) -> Selection:
        """JEST's choice from a super-batch; options are those of :class:`curation.JEST`, and ``seed``."""
        return self._send(self._calls.jest(learner, reference, **options))

    def b3(self, queries: npt.ArrayLike, positives: npt.ArrayLike, **options: Any) -> BatchPlan:
        """B3's plan over embeddings [N, D]; options are those of :class:`curation.B3`, and ``seed``."""
        return self._send(self._calls.b3(queries, positives, **options))

    def _send(self, call: _Call[T]) -> T:
        patience = _Patience(self._patience)
        while True:
            try:
                answer = self._http.request(**_request(call))
                outcome: httpx.Response | httpx.TransportError = answer
            except httpx.TransportError as error:
                outcome = error
            pause = _judge(outcome, patience)
            if pause is None:
                assert isinstance(outcome, httpx.Response)
                return call.read(outcome)
            time.sleep(pause)


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
        self._calls = _Calls()
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(token), timeout=timeout, transport=transport)

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
        return await self._send(self._calls.restore(checkpoint, id))

    async def zipfit(self, texts: Sequence[str], targets: Sequence[str], k: int, **options: Any) -> Selection:
        """As :meth:`Client.zipfit`."""
        return await self._send(self._calls.zipfit(texts, targets, k, **options))

    async def acquire(self, scores: npt.ArrayLike, k: int, **options: Any) -> Selection:
        """As :meth:`Client.acquire`."""
        return await self._send(self._calls.acquire(scores, k, **options))

    async def jest(self, learner: Pair, reference: Pair, **options: Any) -> Selection:
        """As :meth:`Client.jest`."""
        return await self._send(self._calls.jest(learner, reference, **options))

    async def b3(self, queries: npt.ArrayLike, positives: npt.ArrayLike, **options: Any) -> BatchPlan:
        """As :meth:`Client.b3`."""
        return await self._send(self._calls.b3(queries, positives, **options))

    async def _send(self, call: _Call[T]) -> T:
        patience = _Patience(self._patience)
        while True:
            try:
                answer = await self._http.request(**_request(call))
                outcome: httpx.Response | httpx.TransportError = answer
            except httpx.TransportError as error:
                outcome = error
            pause = _judge(outcome, patience)
            if pause is None:
                assert isinstance(outcome, httpx.Response)
                return call.read(outcome)
            await asyncio.sleep(pause)


def _judge(outcome: httpx.Response | httpx.TransportError, patience: _Patience) -> float | None:
    """None: the answer is good. A number: wait so long, and send again.

    Raises:
        ServiceError: neither.
    """
    if isinstance(outcome, httpx.TransportError):
        pause = patience.pause()
        if pause is None:
            raise ServiceError("unreachable", f"no answer: {outcome or type(outcome).__name__}") from outcome
        return pause
    if outcome.is_success:
        return None
    error = _error(outcome)
    if outcome.status_code in _AGAIN or error.kind in _AGAIN_KINDS:
        pause = patience.pause()
        if pause is not None:
            return pause
    raise error


def _error(answer: httpx.Response) -> ServiceError:
    try:
        document = answer.json()
        kind = str(document.pop("type")).removeprefix("urn:curation:problem:")
        return ServiceError(kind, str(document.pop("detail")), answer.status_code, document)
    except (ValueError, KeyError, AttributeError):
        return ServiceError("bad-answer", f"status {answer.status_code}: {answer.text[:200]}", answer.status_code)


def _headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _request(call: _Call[Any]) -> dict[str, Any]:
    headers = {"Accept": f"{ARROW}, application/json"}
    if call.content is not None:
        headers["Content-Type"] = call.kind
    return {"method": call.method, "url": call.path, "content": call.content, "headers": headers, "params": call.query}


def _stream(table: pa.Table, request: Mapping[str, Any]) -> bytes:
    table = table.replace_schema_metadata({"request": json.dumps(request)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _matrix(values: Any) -> pa.Array:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    matrix = np.ascontiguousarray(values, np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"embeddings must have shape [N, D], not {matrix.shape}")
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def _json(answer: httpx.Response) -> dict[str, Any]:
    return answer.json()  # type: ignore[no-any-return]


def _info(answer: httpx.Response) -> SessionInfo:
    raw = answer.json()
    own = {name: raw[name] for name in ("id", "generation", "size", "open_epochs", "open_steps", "total_steps")}
    return SessionInfo(**own, world_size=raw["spec"]["world_size"], epochs=raw["spec"]["epochs"], raw=raw)


def _step(answer: httpx.Response) -> StepBatch:
    with pa.ipc.open_stream(answer.content) as reader:
        rows = reader.read_next_batch()
    said = {name.decode(): value.decode() for name, value in rows.schema.metadata.items()}
    return StepBatch(
        rows["indices"].to_numpy(),
        rows["weights"].to_numpy(),
        int(said["epoch"]) if said["epoch"] else None,
        int(said["step"]) if said["step"] else None,
        int(said["epoch_end"] or 0),
        said["end_of_epoch"] == "1",
        said["end_of_session"] == "1",
        int(said["generation"]),
    )


def _selection(answer: httpx.Response) -> Selection:
    table = pa.ipc.open_stream(answer.content).read_all()
    scores = table["scores"].to_numpy() if "scores" in table.column_names else None
    return Selection(indices=table["indices"].to_numpy(), weights=table["weights"].to_numpy(), scores=scores)


def _plan(answer: httpx.Response) -> BatchPlan:
    return BatchPlan.from_arrow(pa.ipc.open_stream(answer.content).read_all())
