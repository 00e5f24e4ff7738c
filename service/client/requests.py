"""Requests of the service's clients, and when each is sent again; sending them is left to the clients."""

import json
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.pair import Pair
from curation.plan import BatchPlan
from curation.selection import Selection
from curation.service.client.responses import (
    ChosenBatch,
    ServiceError,
    SessionInfo,
    StepBatch,
    StepRows,
    read_chosen,
    read_error,
    read_info,
    read_json,
    read_plan,
    read_selection,
    read_step,
    read_step_rows,
)

ARROW = "application/vnd.apache.arrow.stream"
_RETRIED_STATUSES = frozenset({408, 429, 502, 503, 504})
_RETRIED_KINDS = frozenset({"missing-reports", "session-changed"})
_MAX_PAUSE = 5.0
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
T = TypeVar("T")


Report = tuple[int, npt.ArrayLike]
"""A step, and the losses of this rank's batch at it, in the batch's order."""


@dataclass(frozen=True)
class Request(Generic[T]):
    """A request, and how its answer reads. ``poll``: what to send instead once the server has stored its body."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    content: bytes | None = None
    kind: str = "application/json"
    query: Mapping[str, str | int | float] | None = None
    poll: "Request[T] | None" = None


class Backoff:
    """When to send a request again: full jitter below a bound that doubles."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._bound = 0.05

    def pause(self, least: float = 0.0) -> float | None:
        """Seconds to wait before the next try; None where there is none."""
        wait = max(least, random.uniform(0, self._bound))
        self._bound = min(2 * self._bound, _MAX_PAUSE)
        return wait if time.monotonic() + wait < self._end else None


class Requests:
    """Every request that the service answers, as a client's methods name them."""

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
        table: pa.Table | None = None,
        **options: Any,
    ) -> Request[SessionInfo]:
        fields = {"method": method, "batch_size": batch_size, "id": id or new_id(), **options}
        fields |= {name: value for name, value in (("size", size), ("dataset", dataset)) if value is not None}
        if plan is not None:
            table = plan.to_arrow().select(["indices"])
        elif scores is not None:
            table = pa.table({"scores": np.asarray(scores, np.float32)})
        if table is None:
            return Request("POST", "/v1/sessions", read_info, json.dumps(fields).encode())
        return Request("POST", "/v1/sessions", read_info, _stream(table, fields), ARROW)

    def step(
        self, session: str, *, step: int | None, rank: int, reports: Sequence[Report], generation: int | None
    ) -> Request[StepBatch]:
        metadata = {"rank": str(rank)}
        if step is not None:
            metadata["step"] = str(step)
        if generation is not None:
            metadata["generation"] = str(generation)
        if not reports:
            schema = pa.schema([], metadata)
            return Request(
                "POST",
                f"/v1/sessions/{session}/steps",
                read_step,
                schema.serialize().to_pybytes() + _END_OF_STREAM,
                ARROW,
            )
        losses = [np.asarray(values, np.float32) for _, values in reports]
        offsets = np.cumsum([0, *(len(values) for values in losses)], dtype=np.int32)
        columns = {
            "step": pa.array([number for number, _ in reports], pa.int64()),
            "losses": pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(losses))),
        }
        rows = pa.record_batch(columns, metadata=metadata)
        body = b"".join((rows.schema.serialize(), rows.serialize(), _END_OF_STREAM))
        return Request("POST", f"/v1/sessions/{session}/steps", read_step, body, ARROW)

    def choose(
        self,
        session: str,
        *,
        step: int,
        learner: Pair | None,
        reference: Pair | None,
        scores: npt.ArrayLike | None,
        rank: int,
        generation: int | None,
    ) -> Request[ChosenBatch]:
        path, fields = f"/v1/sessions/{session}/choices", {"rank": rank, "step": step, "generation": generation}
        poll = Request("POST", path, read_chosen, json.dumps(fields).encode())
        columns, factors = _pairs(learner, reference)
        if scores is not None:
            columns["scores"] = pa.array(np.asarray(scores, np.float64))
        if not columns:
            return poll
        return Request("POST", path, read_chosen, _stream(pa.table(columns), fields | factors), ARROW, poll=poll)

    def session(self, session: str) -> Request[SessionInfo]:
        return Request("GET", f"/v1/sessions/{session}", read_info)

    def sessions(self, after: int) -> Request[dict[str, Any]]:
        return Request("GET", "/v1/sessions", read_json, query={"after": after})

    def step_rows(self, session: str, step: int, rank: int | None) -> Request[StepRows]:
        query = {} if rank is None else {"rank": rank}
        return Request("GET", f"/v1/sessions/{session}/steps/{step}/rows", read_step_rows, query=query)

    def row_visits(self, session: str, row: int, first: int | None) -> Request[dict[str, Any]]:
        query = {} if first is None else {"first": first}
        return Request("GET", f"/v1/sessions/{session}/rows/{row}", read_json, query=query)

    def spikes(self, session: str, **options: int | float) -> Request[dict[str, Any]]:
        return Request("GET", f"/v1/sessions/{session}/spikes", read_json, query=options)

    def delete(self, session: str) -> Request[None]:
        return Request("DELETE", f"/v1/sessions/{session}", lambda answer: None)

    def rewind(self, session: str, step: int) -> Request[SessionInfo]:
        return Request("POST", f"/v1/sessions/{session}/rewind", read_info, json.dumps({"step": step}).encode())

    def checkpoint(self, session: str) -> Request[bytes]:
        return Request("GET", f"/v1/sessions/{session}/checkpoint", lambda answer: answer.content)

    def restore(self, checkpoint: bytes, id: str) -> Request[SessionInfo]:
        return Request("POST", "/v1/sessions/import", read_info, checkpoint, ARROW, {"id": id})

    def zipfit(self, texts: Sequence[str], targets: Sequence[str], k: int, **options: Any) -> Request[Selection]:
        fields = {"targets": list(targets), "k": k, **options}
        table = pa.table({"texts": pa.array(list(texts), pa.large_string())})
        return Request("POST", "/v1/select/zipfit", read_selection, _stream(table, fields), ARROW)

    def acquire(self, scores: npt.ArrayLike, k: int, **options: Any) -> Request[Selection]:
        table = pa.table({"scores": np.asarray(scores)})
        return Request("POST", "/v1/select/acquire", read_selection, _stream(table, {"k": k, **options}), ARROW)

    def jest(self, learner: Pair | None, reference: Pair | None, **options: Any) -> Request[Selection]:
        columns, factors = _pairs(learner, reference)
        return Request("POST", "/v1/select/jest", read_selection, _stream(pa.table(columns), factors | options), ARROW)

    def b3(self, queries: npt.ArrayLike, positives: npt.ArrayLike, **options: Any) -> Request[BatchPlan]:
        table = pa.table({"queries": _matrix(queries), "positives": _matrix(positives)})
        return Request("POST", "/v1/select/b3", read_plan, _stream(table, options), ARROW)


def next_attempt(
    outcome: httpx.Response | httpx.TransportError, backoff: Backoff, request: Request[T]
) -> tuple[float, Request[T]] | None:
    """How long to wait after an outcome, and what to send then; None where the answer is good.

    Raises:
        ServiceError: the service refuses, or there was no answer for too long.
    """
    if isinstance(outcome, httpx.TransportError):
        pause = backoff.pause()
        if pause is None:
            raise ServiceError("unreachable", f"no answer: {outcome or type(outcome).__name__}") from outcome
        return pause, request
    if outcome.is_success:
        return None
    error = read_error(outcome)
    discarded = error.kind == "not-sent" and request.poll is not None
    if outcome.status_code in _RETRIED_STATUSES or error.kind in _RETRIED_KINDS or discarded:
        pause = backoff.pause()
        if pause is not None:
            return pause, request.poll if request.poll is not None and error.kind == "missing-reports" else request
    raise error


def new_id() -> str:
    """An id that nobody else has: with it, a request that makes a session may be repeated."""
    return secrets.token_urlsafe(12)


def auth_headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def httpx_arguments(request: Request[Any]) -> dict[str, Any]:
    headers = {"Accept": f"{ARROW}, application/json"}
    if request.content is not None:
        headers["Content-Type"] = request.kind
    return {
        "method": request.method,
        "url": request.path,
        "content": request.content,
        "headers": headers,
        "params": request.query,
    }


def _stream(table: pa.Table, fields: Mapping[str, Any]) -> bytes:
    table = table.replace_schema_metadata({"request": json.dumps(fields)})
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


def _pairs(learner: Pair | None, reference: Pair | None) -> tuple[dict[str, pa.Array], dict[str, float]]:
    columns, factors = {}, {}
    for name, pair in (("learner", learner), ("reference", reference)):
        if pair is not None:
            columns[f"{name}_a"], columns[f"{name}_b"] = _matrix(pair.a), _matrix(pair.b)
            factors[f"{name}_scale"], factors[f"{name}_bias"] = pair.factors
    return columns, factors
