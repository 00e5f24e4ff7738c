"""Requests of the service's clients, and when each is sent again; sending them is left to the clients."""

import json
import math
import re
import secrets
import socket
import ssl
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

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
    read_batches,
    read_chosen,
    read_error,
    read_info,
    read_json,
    read_plan,
    read_selection,
    read_step,
    read_step_rows,
)
from curation.service.client.waiting import Backoff

ARROW = "application/vnd.apache.arrow.stream"
_RETRIED_STATUSES = frozenset({408, 429, 502, 503, 504})
_RETRIED_KINDS = frozenset({"session-changed"})
_MAX_WAIT = 30.0
_UNKNOWN_HOST_SECONDS = 10.0
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


Report = tuple[int, npt.ArrayLike]
"""A step, and the losses of this rank's batch at it, in the batch's order."""


@dataclass(frozen=True)
class Request(Generic[T]):
    """A request, and how its answer reads.

    ``poll``: what to send instead once the server has stored its body. ``content`` may be a file. ``into``: the file
    that a good answer is written into. ``done``: the kind of refusal that tells of a repeated request that an earlier
    try was carried out.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    content: bytes | Path | None = None
    kind: str = "application/json"
    query: Mapping[str, str | int | float] | None = None
    poll: "Request[T] | None" = None
    into: Path | None = None
    done: str | None = None


Make = Callable[[], Request[T]]
"""Makes a request by what is known of the service at that moment."""


class Requests:
    """Every request that the service answers, as a client's methods name them.

    Args:
        wait: seconds for which the service may hold a request that waits for other ranks.
    """

    def __init__(self, wait: float = 0) -> None:
        self._wait = wait
        self.older = False
        """Whether the service is known to refuse fields that this release adds to bodies of earlier ones."""
        self._warned: set[str] = set()

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
        metadata = {"rank": str(rank)} | ({"wait": str(self._wait)} if self._wait else {})
        read = partial(self._read_step, session, rank)
        if step is not None:
            metadata["step"] = str(step)
        if generation is not None:
            metadata["generation"] = str(generation)
        if not reports:
            schema = pa.schema([], metadata)
            return Request(
                "POST",
                f"/v1/sessions/{session}/steps",
                read,
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
        return Request("POST", f"/v1/sessions/{session}/steps", read, body, ARROW)

    def batches(
        self,
        session: str,
        *,
        step: int | None,
        steps: int,
        ranks: Sequence[int],
        reports: Mapping[int, Sequence[Report]],
        generation: int | None,
    ) -> Request[dict[int, list[StepBatch]]]:
        fields: dict[str, Any] = {"ranks": list(ranks), "step": step, "steps": steps, "generation": generation}
        fields |= {"wait": self._wait} if self._wait else {}
        flat = [(rank, number, np.asarray(values, np.float32)) for rank in reports for number, values in reports[rank]]
        offsets = np.cumsum([0, *(len(values) for _, _, values in flat)], dtype=np.int32)
        losses = np.concatenate([*(values for _, _, values in flat), np.empty(0, np.float32)])
        table = pa.table(
            {
                "report_ranks": pa.array([rank for rank, _, _ in flat], pa.int64()),
                "report_steps": pa.array([number for _, number, _ in flat], pa.int64()),
                "losses": pa.ListArray.from_arrays(pa.array(offsets), pa.array(losses)),
            }
        )
        read = partial(self._read_batches, session, ", ".join(map(str, sorted(reports))))
        return Request("POST", f"/v1/sessions/{session}/batches", read, _stream(table, fields), ARROW)

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
        path = f"/v1/sessions/{session}/choices"
        fields: dict[str, Any] = {"rank": rank, "step": step, "generation": generation}
        fields |= {"wait": self._wait} if self._wait and not self.older else {}
        poll = Request("POST", path, read_chosen, json.dumps(fields).encode())
        columns, factors = _pairs(learner, reference)
        if scores is not None:
            columns["scores"] = pa.array(np.asarray(scores, np.float64))
        if not columns:
            return poll
        return Request("POST", path, read_chosen, _stream(pa.table(columns), fields | factors), ARROW, poll=poll)

    def session(self, session: str, first_rank: int, ranks: int) -> Request[SessionInfo]:
        return Request("GET", f"/v1/sessions/{session}", read_info, query={"first_rank": first_rank, "ranks": ranks})

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
        return Request("DELETE", f"/v1/sessions/{session}", lambda answer: None, done="not-found")

    def rewind(self, session: str, step: int) -> Request[SessionInfo]:
        name = {} if self.older else {"request": new_id()}
        content = json.dumps({"step": step, **name}).encode()
        return Request("POST", f"/v1/sessions/{session}/rewind", read_info, content)

    def close_epoch(self, session: str, epoch: int) -> Request[SessionInfo]:
        content = json.dumps({"epoch": epoch}).encode()
        return Request("POST", f"/v1/sessions/{session}/close-epoch", read_info, content)

    def change(self, session: str, **changes: Any) -> Request[SessionInfo]:
        return Request("PATCH", f"/v1/sessions/{session}", read_info, json.dumps(changes).encode())

    def resize(
        self, session: str, *, world_size: int, generation: int, from_step: int | None, trained: str
    ) -> Request[SessionInfo]:
        fields = {"world_size": world_size, "generation": generation, "from_step": from_step, "trained": trained}
        return Request("POST", f"/v1/sessions/{session}/resize", read_info, json.dumps(fields).encode())

    def epochs(self, session: str, first: int) -> Request[dict[str, Any]]:
        return Request("GET", f"/v1/sessions/{session}/epochs", read_json, query={"first": first})

    def losses(self, session: str, first: int, limit: int, bins: int) -> Request[dict[str, Any]]:
        query = {"first": first, "limit": limit, "bins": bins}
        return Request("GET", f"/v1/sessions/{session}/losses", read_json, query=query)

    def capabilities(self) -> Request[dict[str, Any]]:
        return Request("GET", "/v1/capabilities", read_json)

    def datasets(self) -> Request[list[str]]:
        return Request("GET", "/v1/datasets", lambda answer: read_json(answer)["datasets"])

    def dataset(self, name: str) -> Request[dict[str, Any]]:
        return Request("GET", f"/v1/datasets/{name}", read_json)

    def checkpoint(self, session: str, into: Path | None = None) -> Request[bytes]:
        path = f"/v1/sessions/{session}/checkpoint"
        return Request("GET", path, lambda answer: b"" if into else answer.content, into=into)

    def restore(
        self, checkpoint: bytes | PathLike[str], id: str, world_size: int | None, from_step: int | None
    ) -> Request[SessionInfo]:
        content = checkpoint if isinstance(checkpoint, bytes) else Path(checkpoint)
        given = {"id": id, "world_size": world_size, "from_step": from_step}
        query = {name: value for name, value in given.items() if value is not None}
        return Request("POST", "/v1/sessions/import", read_info, content, ARROW, query)

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

    def _read_step(self, session: str, rank: int, answer: httpx.Response) -> StepBatch:
        batch = read_step(answer)
        self._warn(session, str(rank), batch.ignored)
        return batch

    def _read_batches(self, session: str, ranks: str, answer: httpx.Response) -> dict[int, list[StepBatch]]:
        batches, ignored = read_batches(answer)
        self._warn(session, ranks, ignored)
        return batches

    def _warn(self, session: str, ranks: str, ignored: Sequence[int]) -> None:
        if ignored and session not in self._warned:
            self._warned.add(session)
            warnings.warn(
                f"session {session!r} has other losses of rank {ranks} for step {ignored[0]}, and the first "
                "report counts. Either training began anew without load_state_dict, or two processes are that rank",
                stacklevel=2,
            )


def next_attempt(
    outcome: httpx.Response | httpx.TransportError, backoff: Backoff, request: Request[T], *, answered: bool
) -> tuple[float, Request[T]] | None:
    """How long to wait after an outcome, and what to send then; None where the answer is good.

    Args:
        outcome: what sending it led to.
        backoff: of this request.
        request: what is to be sent.
        answered: whether the client ever had an answer: a host that is unknown may be one mistyped.

    Raises:
        ServiceError: the service refuses, there was no answer for too long, or there never will be one.
    """
    if isinstance(outcome, httpx.TransportError):
        why = str(outcome) or type(outcome).__name__
        hopeless = _hopeless(outcome)
        if hopeless is not None:
            raise ServiceError("unreachable", f"{hopeless}: {why}") from outcome
        unknown = not answered and _cause(outcome, socket.gaierror) is not None
        pause = backoff.pause(f"no answer: {why}", most=_UNKNOWN_HOST_SECONDS if unknown else math.inf)
        if pause is None:
            raise ServiceError("unreachable", f"no answer: {why}") from outcome
        return pause, request
    if outcome.is_success:
        return None
    error = read_error(outcome)
    if error.kind == request.done and backoff.repeated:
        return None
    if error.kind == "missing-reports":
        pause = backoff.wait(error.detail)
        if pause is None:
            raise error
        return pause, request.poll or request
    discarded = error.kind == "not-sent" and request.poll is not None
    if outcome.status_code in _RETRIED_STATUSES or error.kind in _RETRIED_KINDS or discarded:
        expected = error.kind in _RETRIED_KINDS
        least = 0.0 if expected else _retry_after(outcome)
        pause = backoff.pause(str(error), least=least, expected=expected)
        if pause is not None:
            return pause, request
    raise error


def _retry_after(answer: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not say, or names a date, as proxies may."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


def _hopeless(error: httpx.TransportError) -> str | None:
    """Why sending the request again cannot help; None where it may."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return "the request cannot be sent"
    tls = _cause(error, ssl.SSLError)
    # A connection that breaks off in the middle of TLS is that of a server, or a proxy, that restarts.
    if tls is not None and not isinstance(tls, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "no TLS with this server: is it https that it speaks, and is its certificate trusted here?"
    return None


def _cause(error: BaseException, kind: type[E]) -> E | None:
    """The error of this kind that led to another."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, kind):
        found = found.__cause__ or found.__context__
    return found


def wait_seconds(timeout: float, wait_patience: float | None) -> float:
    """How long the service may hold a request of a client with this timeout and patience."""
    return min(_MAX_WAIT, timeout / 2, _MAX_WAIT if wait_patience is None else wait_patience)


def new_id() -> str:
    """An id that nobody else has: with it, a request that makes a session may be repeated."""
    return secrets.token_urlsafe(12)


def check_url(url: str) -> str:
    """The URL, if a service can be there.

    Raises:
        ValueError: it names no host, or begins with something else than http:// or https://.
    """
    try:
        parsed = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"url is {url!r}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise ValueError(f"url is {url!r}, but must be http:// or https:// and a host, such as http://127.0.0.1:8765")
    return url


def auth_headers(token: str | None) -> dict[str, str]:
    """The header of a token.

    Raises:
        ValueError: the token has characters that no header may have.
    """
    if token and not re.fullmatch(r"[!-~]+", token):
        raise ValueError("the token has spaces, line ends or letters beyond ASCII: was it read with its line's end?")
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
