"""Bodies of requests and answers: JSON for people, Arrow IPC streams for machines, as the headers ask."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from curation.plan import BatchPlan
from curation.selection import Selection
from curation.service.arrow import read_batches, read_table, write_table
from curation.service.errors import Refusal
from curation.service.http.mistakes import invalid_model
from curation.service.http.step_heads import StepHeads
from curation.service.session.protocols import Losses
from curation.service.session.session import Batch, Report, StepRequest
from curation.service.session.spec import MAX_BATCH_SIZE

M = TypeVar("M", bound=BaseModel)

ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"

_STEP_FIELDS = (pa.field("indices", pa.int64(), False), pa.field("weights", pa.float32(), False))
_ALIGNMENT = 8
_NO_BATCH = Batch(np.empty(0, np.int64), np.empty(0, np.float32), -1, -1, -1, False)
_heads = StepHeads()
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class ReportBody(BaseModel):
    """The losses of one earlier step, in the order of its indices."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    step: int
    losses: list[float | None] = Field(
        max_length=MAX_BATCH_SIZE, description="one a row; null is 'unknown' (sessions that keep non-finite losses)"
    )


class StepBody(BaseModel):
    """What a rank asks for, and what it reports."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rank: int = 0
    step: int | None = Field(default=None, description="counted from 0 over the session; null only reports")
    reports: list[ReportBody] = []
    generation: int | None = Field(default=None, description="refuse if the session was rewound since this one")
    wait: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="seconds to wait for other ranks at an epoch's end, before 409 missing-reports",
    )


class StepAnswer(BaseModel):
    """One rank's batch. With Arrow: the columns indices and weights, the rest in the schema's metadata."""

    indices: list[int]
    weights: list[float]
    epoch: int | None
    step: int | None
    epoch_end: int | None = Field(description="the step after the epoch's last")
    end_of_epoch: bool
    end_of_session: bool
    generation: int
    ignored: list[int] = Field(
        description="steps that were reported before with other losses; the first report counts. In Arrow's metadata "
        "a list in JSON, and only where there are some"
    )


def is_arrow(request: Request) -> bool:
    """Whether the body is Arrow rather than JSON.

    Raises:
        Refusal: it is neither, or it is encoded.
    """
    return is_arrow_kind(request.headers.get("content-type", ""), request.headers.get("content-encoding", ""))


@lru_cache(maxsize=64)
def is_arrow_kind(kind: str, encoding: str) -> bool:
    """:func:`is_arrow`, of the headers Content-Type and Content-Encoding."""
    encoding = encoding.strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal(
            "bad-media-type",
            f"Content-Encoding is {encoding[:40]!r}: send the body as it is (buffers of Arrow may be compressed)",
        )
    kind = kind.partition(";")[0].strip().lower()
    if kind == ARROW:
        return True
    if kind == JSON:
        return False
    raise Refusal("bad-media-type", f"the body is {kind or 'of no type'}: send {JSON} or {ARROW}")


def wants_arrow(request: Request) -> bool:
    """Whether the answer should be Arrow; JSON where the client does not mind.

    Raises:
        Refusal: the client takes neither.
    """
    return accepts_arrow(request.headers.get("accept", ""))


@lru_cache(maxsize=64)
def accepts_arrow(accept: str) -> bool:
    """:func:`wants_arrow`, of the header Accept."""
    if accept in ("", JSON):
        return False
    weights = dict(map(_media_range, accept.split(",")))
    anything = weights.get("application/*", weights.get("*/*", 0.0))
    arrow, json = weights.get(ARROW, anything), weights.get(JSON, anything)
    if arrow > 0 and (json <= 0 or (ARROW in weights and arrow >= weights.get(JSON, 0.0))):
        return True
    if json > 0:
        return False
    raise Refusal("not-acceptable", f"Accept is {accept[:200]!r}: this server answers {JSON} or {ARROW}")


def _media_range(part: str) -> tuple[str, float]:
    """A part of the header Accept: what it names, and its weight ``q``."""
    kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weight = next((value for name, _, value in (p.partition("=") for p in parameters) if name.strip() == "q"), "1")
    try:
        return kind, float(weight)
    except ValueError:
        return kind, 0.0


def read_step(body: bytes, arrow: bool, max_bytes: int, max_reports: int) -> StepRequest:
    """Parse a step request, which may expand to ``max_bytes``, and has ``max_reports`` at most.

    Raises:
        Refusal: says what does not fit.
    """
    return _step_from_arrow(body, max_bytes, max_reports) if arrow else _step_from_json(body, max_reports)


def write_step(batch: Batch | None, generation: int, arrow: bool, ignored: Sequence[int] = ()) -> bytes:
    """The answer to a step request; without a batch where none was asked for. ``ignored``: steps whose report was
    another one than that which counts."""
    if batch is None:
        batch = _NO_BATCH
    indices, weights, epoch, step, epoch_end, end_of_session = batch
    if not arrow:
        answer = {
            "indices": indices.tolist(),
            "weights": weights.tolist(),
            "epoch": None if epoch < 0 else epoch,
            "step": None if step < 0 else step,
            "epoch_end": None if step < 0 else epoch_end,
            "end_of_epoch": batch.end_of_epoch,
            "end_of_session": end_of_session,
            "generation": generation,
            "ignored": list(ignored),
        }
        return to_json(answer)
    schema = _schema_message(epoch, step, epoch_end, batch.end_of_epoch, end_of_session, generation, tuple(ignored))
    indices, weights = np.ascontiguousarray(indices), np.ascontiguousarray(weights)
    parts = (schema, _batch_message(len(indices)), indices.data, _padding(indices), weights.data)
    return b"".join((*parts, _padding(weights), _END_OF_STREAM))


@lru_cache(maxsize=1024)
def _schema_message(
    epoch: int,
    step: int,
    epoch_end: int,
    end_of_epoch: bool,
    end_of_session: bool,
    generation: int,
    ignored: tuple[int, ...],
) -> bytes:
    """The message that a step's answer begins with: the same for all of its ranks."""
    metadata = {
        "epoch": "" if epoch < 0 else str(epoch),
        "step": "" if step < 0 else str(step),
        "epoch_end": "" if step < 0 else str(epoch_end),
        "end_of_epoch": str(int(end_of_epoch)),
        "end_of_session": str(int(end_of_session)),
        "generation": str(generation),
        **({"ignored": json.dumps(ignored)} if ignored else {}),
    }
    return pa.schema(_STEP_FIELDS, metadata).serialize().to_pybytes()  # type: ignore[no-any-return]


def read_tables(body: bytes, max_bytes: int) -> tuple[dict[str, Any], pa.Table]:
    """An Arrow body's request (JSON under the key ``request`` of the schema's metadata), and its table.

    Raises:
        Refusal: the body is not Arrow, expands to more than ``max_bytes``, or the request in it is not JSON.
    """
    table = read_table(body, max_bytes)
    metadata = table.schema.metadata or {}
    return read_json(metadata.get(b"request", b"{}"), "the schema's metadata 'request'"), table


def read_json(body: bytes, where: str = "the body") -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refusal: ``where`` there is something else.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal("bad-body", f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refusal("bad-body", f"{where} must be a JSON object")
    return value


async def read_model(request: Request, model: type[M]) -> M:
    """A JSON body, read once it is known who sends it: FastAPI would parse it before that.

    Raises:
        Refusal: the body is something else.
    """
    if is_arrow(request):
        raise Refusal("bad-media-type", f"the body is Arrow: send {JSON}")
    try:
        return model.model_validate(read_json(await request.body()))
    except ValidationError as error:
        raise invalid_model(error) from error


def write_selection(selection: Selection, arrow: bool) -> Response:
    """A selection: indices int64, weights float32, and scores float64 where there are some."""
    if not arrow:
        answer = {
            "indices": selection.indices.tolist(),
            "weights": selection.weights.tolist(),
            "scores": None if selection.scores is None else selection.scores.tolist(),
        }
        return Response(to_json(answer, inf_nan_mode="null"), media_type=JSON)
    columns = {"indices": pa.array(selection.indices), "weights": pa.array(selection.weights)}
    if selection.scores is not None:
        columns["scores"] = pa.array(selection.scores)
    return Response(write_table(pa.table(columns)), media_type=ARROW)


def write_plan(plan: BatchPlan, arrow: bool) -> Response:
    """A plan: a list of positions for each batch; with Arrow as :meth:`curation.BatchPlan.to_arrow` has it."""
    if not arrow:
        return Response(to_json({"batches": [batch.tolist() for batch in plan]}), media_type=JSON)
    return Response(write_table(plan.to_arrow()), media_type=ARROW)


@lru_cache(maxsize=256)
def _batch_message(rows: int) -> bytes:
    """The message that stands before the buffers of a batch of so many rows: the rest is numbers."""
    columns = [pa.array(np.zeros(rows, np.int64)), pa.array(np.zeros(rows, np.float32))]
    message = pa.record_batch(columns, schema=pa.schema(_STEP_FIELDS)).serialize().to_pybytes()
    body = sum(-(-rows * width // _ALIGNMENT) * _ALIGNMENT for width in (8, 4))
    return bytes(message[: len(message) - body])


def _padding(values: np.ndarray[Any, Any]) -> bytes:
    return bytes(-values.nbytes % _ALIGNMENT)


@lru_cache(maxsize=16)
def _step_body(max_reports: int) -> type[StepBody]:
    """The model with this server's limit: it stops there instead of making objects of a million reports."""
    reports: Any = (list[ReportBody], Field(default=[], max_length=max_reports))
    return create_model("StepBody", __base__=StepBody, reports=reports)


def _step_from_json(body: bytes, max_reports: int) -> StepRequest:
    try:
        asked = _step_body(max_reports).model_validate_json(body)
    except ValidationError as error:
        raise invalid_model(error) from error
    reports = [Report(asked.rank, report.step, _losses(report.losses)) for report in asked.reports]
    return StepRequest(asked.rank, asked.step, reports, asked.generation, asked.wait)


def _losses(values: Sequence[float | None]) -> Losses:
    with np.errstate(over="ignore"):
        return np.array(values, np.float64).astype(np.float32)


def _step_from_arrow(body: bytes, max_bytes: int, max_reports: int) -> StepRequest:
    known = _heads.read(body, max_reports)
    if known is not None:
        return known
    schema, batches = read_batches(body, max_bytes, max_reports)
    metadata, names = schema.metadata or {}, schema.names
    rank, step, generation = (_integer(metadata, name) for name in (b"rank", b"step", b"generation"))
    for name in ("step", "losses"):
        if names and name not in names:
            raise Refusal("bad-body", f"the Arrow body has columns {names}, but not {name!r}")
    reports = [report for batch in batches for report in _reports(rank or 0, batch)]
    wait = _seconds(metadata.get(b"wait"))
    _heads.learn(body, schema, batches, wait)
    return StepRequest(rank or 0, step, reports, generation, wait)


def _reports(rank: int, batch: pa.RecordBatch) -> list[Report]:
    steps, losses = batch["step"], batch["losses"]
    kind = losses.type
    if not isinstance(losses, pa.ListArray | pa.LargeListArray) or not pa.types.is_floating(kind.value_type):
        raise Refusal("bad-body", f"column losses must be a list of floats for each step, not {kind}")
    if not pa.types.is_integer(steps.type) or steps.null_count or losses.null_count:
        raise Refusal("bad-body", f"column step must be integers, not {steps.type}, and no row of either may be null")
    offsets = losses.offsets.to_numpy()
    values = losses.values.to_numpy(zero_copy_only=False)
    if values.dtype != np.float32:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    return [Report(rank, step, values[offsets[row] : offsets[row + 1]]) for row, step in enumerate(steps.to_pylist())]


def _seconds(text: bytes | None) -> float:
    if not text:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise Refusal("bad-body", "the schema's metadata 'wait' must be a number of seconds, 0 or more")
    return seconds


def _integer(metadata: Mapping[bytes, bytes], name: bytes) -> int | None:
    text = metadata.get(name, b"")
    if not text:
        return None
    if not text.removeprefix(b"-").isdigit() or len(text) > 20:
        raise Refusal("bad-body", f"the schema's metadata {name.decode()!r} must be a whole number")
    return int(text)
