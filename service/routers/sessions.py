"""``/v1/sessions``: create, take steps, look, rewind, move elsewhere, delete."""

import asyncio
import secrets
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.routing import Route

from curation.service import checkpoints
from curation.service.bodies import (
    ARROW,
    JSON,
    StepAnswer,
    StepBody,
    is_arrow,
    read_json,
    read_step,
    read_tables,
    wants_arrow,
    write_step,
    write_table,
)
from curation.service.keeper import Entry
from curation.service.problems import MEDIA_TYPE, ProblemDocument, invalid
from curation.service.routers.state import Here, Parts, Reader, Selector, identify
from curation.service.sessions import SESSION_ID, Refusal, SessionSpec

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

SessionId = Annotated[str, Path(pattern=SESSION_ID, description="the session's id")]
_ARROW_BODY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entry for refusals."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {code: {"description": "A problem document (RFC 9457)", "content": content} for code in codes}


class Created(SessionSpec):
    """A session's parameters, and the id it shall have."""

    id: str | None = Field(
        default=None,
        pattern=SESSION_ID,
        description="choose one to make the request safe to repeat; None: the server's",
    )


class RankState(BaseModel):
    """How far one rank is: steps asked of this server since it started, and reports stored."""

    rank: int
    last_asked: int | None
    reports: int
    last_reported: int | None


class SessionState(BaseModel):
    """A session as it stands. ``total_steps`` is null until its last epoch is open."""

    id: str
    generation: int
    created: float = Field(description="seconds since 1970, UTC")
    size: int
    spec: SessionSpec
    stateful: bool = Field(description="whether epochs depend on reports")
    open_epochs: int
    open_steps: int = Field(description="steps of the open epochs: the first that is not open yet")
    total_steps: int | None
    resident_bytes: int
    ranks: list[RankState] = Field(description="ranks that asked or reported; at most 1,000")


class SessionSummary(BaseModel):
    """One line of the list."""

    id: str
    method: str
    size: int
    epochs: int
    world_size: int
    created: float


class SessionList(BaseModel):
    """A page of sessions, oldest first. Pass ``next`` as ``after`` for the following page; null: this is the last."""

    sessions: list[SessionSummary]
    next: int | None


class Rewind(BaseModel):
    """Where to go on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: int = Field(description="the next step that will be asked for; reports from it on are forgotten")


class EpochState(BaseModel):
    """An open epoch: what it keeps, and the losses reported for it so far."""

    number: int
    first_step: int
    steps: int
    rows: int = Field(description="candidates it hands out")
    size: int
    reweighted: int = Field(description="rows whose weight is not 1")
    missing: int = Field(description="reports of the epoch before that it went on without")


class EpochList(BaseModel):
    """The epochs of a session that are open."""

    epochs: list[EpochState]
    next: int | None


class StepLosses(BaseModel):
    """The finite losses of one report."""

    rank: int
    step: int
    count: int
    unknown: int = Field(description="losses that were not finite")
    mean: float | None
    low: float | None
    high: float | None


class LossList(BaseModel):
    """Reports of a run of steps, and the distribution of their losses."""

    reports: list[StepLosses]
    bins: list[float] = Field(description="edges of the histogram")
    counts: list[int]
    next: int | None = Field(description="the first step that is not in here; null: there are no more reports")


@router.post(
    "",
    status_code=201,
    response_model=SessionState,
    responses={
        200: {"model": SessionState, "description": "The session of this id was there already, created alike"},
        201: {"description": "Created"},
        **problems(400, 401, 403, 409, 413, 415, 422, 503),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/Created"}},
                ARROW: _ARROW_BODY,
            },
        }
    },
)
async def create_session(request: Request, here: Here, caller: Selector) -> Response:
    """Open a session.

    With Arrow, the JSON object stands in the schema's metadata under ``request``, and the table is the plan (method
    plan: a column ``indices`` of lists) or the column ``scores`` (method acquisition).
    """
    arrow = is_arrow(request)
    body = await request.body()
    table: pa.Table | None = None
    if arrow:
        given, table = await asyncio.to_thread(read_tables, body)
    else:
        given = read_json(body)
    try:
        asked = Created.model_validate(given)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_context=False, include_input=False)) from error
    spec = SessionSpec(**asked.model_dump(exclude={"id"}))
    size, tables = await asyncio.to_thread(_candidates, here, spec, table)
    id = asked.id or secrets.token_urlsafe(12)
    entry, new = await here.keeper.create(caller, id, spec, size, tables)
    answer = await _state(here, entry)
    headers = {"Location": f"/v1/sessions/{id}"}
    return Response(answer.model_dump_json(), 201 if new else 200, headers, JSON)


@router.get("", responses=problems(401, 403, 422, 503))
async def list_sessions(
    here: Here,
    caller: Reader,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> SessionList:
    """Your sessions; with an admin token everybody's."""
    owner = None if "admin" in caller.scopes else caller.owner
    rows = await asyncio.to_thread(here.store.list_sessions, owner, after, limit)
    found = [
        SessionSummary(
            id=row.id,
            method=row.spec.method,
            size=row.size,
            epochs=row.spec.epochs,
            world_size=row.spec.world_size,
            created=row.created,
        )
        for row in rows
    ]
    return SessionList(sessions=found, next=rows[-1].key if len(rows) == limit else None)


@router.get("/{id}", responses=problems(401, 403, 404, 422, 503))
async def read_session(id: SessionId, here: Here, caller: Reader) -> SessionState:
    """How a session stands."""
    return await _state(here, await here.keeper.fresh(caller, id))


@router.delete("/{id}", status_code=204, responses=problems(401, 403, 404, 422, 503))
async def delete_session(id: SessionId, here: Here, caller: Selector) -> None:
    """Forget a session and everything that was reported to it."""
    await here.keeper.delete(caller, id)


@router.post(
    "/{id}/steps",
    response_model=StepAnswer,
    responses={
        200: {"content": {ARROW: _ARROW_BODY}, "description": "The rank's batch"},
        **problems(400, 401, 403, 404, 406, 409, 410, 413, 415, 422, 503),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/StepBody"}},
                ARROW: _ARROW_BODY,
            },
        }
    },
)
async def take_step(id: SessionId, request: Request) -> Response:
    """Report the losses of earlier steps, and get the batch of the step named: safe to repeat.

    A report that was answered with 200 is on disk; reporting it again changes nothing. With Arrow, ``rank``, ``step``
    and ``generation`` stand in the schema's metadata, and the table has a row for each report: ``step`` int64,
    ``losses`` list of float32. Without reports the schema has no columns.
    """
    return await answer_step(request)


async def answer_step(request: Request) -> Response:
    """:func:`take_step` without FastAPI's machinery, which would cost more than the step: see ``STEP_ROUTE``."""
    here: Parts = request.app.state.parts
    request.scope["route"] = STEP_ROUTE
    caller = await identify(request, "select")
    arrow = wants_arrow(request)
    ask = read_step(await request.body(), is_arrow(request))
    batch, generation = await here.keeper.take(caller, request.path_params["id"], ask)
    here.metrics.reports += len(ask.reports)
    if batch is not None:
        here.metrics.batches += 1
        here.metrics.rows += len(batch.indices)
    return write_step(batch, generation, arrow)


STEP_ROUTE = Route("/v1/sessions/{id}/steps", answer_step, methods=["POST"])
"""Stands before FastAPI's routes and answers in their place; theirs is what OpenAPI describes."""


@router.post("/{id}/rewind", responses=problems(400, 401, 403, 404, 409, 410, 422, 503))
async def rewind_session(id: SessionId, asked: Rewind, here: Here, caller: Selector) -> SessionState:
    """Go back to a step, for a training that resumes from an older checkpoint.

    The generation rises: a request that names the old one is refused.
    """
    return await _state(here, await here.keeper.rewind(caller, id, asked.step))


@router.get(
    "/{id}/checkpoint",
    response_class=Response,
    responses={
        200: {"content": {ARROW: _ARROW_BODY}, "description": "The session, whole"},
        **problems(401, 403, 404, 422, 503),
    },
)
async def export_session(id: SessionId, here: Here, caller: Reader) -> Response:
    """Everything needed to go on elsewhere, from the present epoch: an Arrow IPC stream for a training checkpoint."""
    entry = await here.keeper.fresh(caller, id)
    table = await asyncio.to_thread(checkpoints.export, here.store, here.keeper, entry)
    return Response(await asyncio.to_thread(write_table, table), media_type=ARROW)


@router.post(
    "/import",
    status_code=201,
    response_model=SessionState,
    responses=problems(400, 401, 403, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": {"required": True, "content": {ARROW: _ARROW_BODY}}},
)
async def import_session(
    request: Request,
    here: Here,
    caller: Selector,
    id: Annotated[str | None, Query(pattern=SESSION_ID, description="the new session's id")] = None,
) -> Response:
    """Make a session from an exported one."""
    if not is_arrow(request):
        raise Refusal("bad-media-type", f"send the exported checkpoint as it is, as {ARROW}")
    body = await request.body()
    id = id or secrets.token_urlsafe(12)
    if not await asyncio.to_thread(checkpoints.restore, here.store, caller, id, body):
        raise Refusal("id-taken", f"there is a session {id!r} already: choose another id")
    answer = await _state(here, await here.keeper.entry(caller, id))
    return Response(answer.model_dump_json(), 201, {"Location": f"/v1/sessions/{id}"}, JSON)


@router.get("/{id}/epochs", responses=problems(401, 403, 404, 422, 503))
async def list_epochs(
    id: SessionId,
    here: Here,
    caller: Reader,
    first: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> EpochList:
    """The open epochs: how many candidates each keeps, and at which weights."""
    entry = await here.keeper.fresh(caller, id)
    session, size = entry.session, entry.row.size
    numbers = range(first, min(first + limit, session.open_epochs))
    found = []
    for number in numbers:
        record = session.records[number] if session.method.stateful else None
        start, end = session.span_of(number)
        found.append(
            EpochState(
                number=number,
                first_step=start,
                steps=end - start,
                rows=record.layout.rows if record else session.rows,
                size=size,
                reweighted=record.reweighted if record else 0,
                missing=len(record.missing) if record else 0,
            )
        )
    return EpochList(epochs=found, next=numbers.stop if found and numbers.stop < session.open_epochs else None)


@router.get("/{id}/losses", responses=problems(401, 403, 404, 422, 503))
async def list_losses(
    id: SessionId,
    here: Here,
    caller: Reader,
    first: Annotated[int, Query(ge=0, le=2**62, description="the first step")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000, description="reports at most")] = 1000,
    bins: Annotated[int, Query(ge=1, le=200)] = 40,
) -> LossList:
    """Losses by step and rank, and their histogram."""
    entry = await here.keeper.fresh(caller, id)
    return await asyncio.to_thread(_losses, here, entry, first, limit, bins)


def _losses(here: Parts, entry: Entry, first: int, limit: int, bins: int) -> LossList:
    found: list[StepLosses] = []
    values: list[npt.NDArray[np.float64]] = []
    following: int | None = None
    for report in here.store.reports(entry.row.key, first, 2**62):
        if len(found) >= limit and report.step != found[-1].step:
            following = report.step
            break
        known = report.losses[np.isfinite(report.losses)].astype(np.float64)
        values.append(known)
        empty = len(known) == 0
        found.append(
            StepLosses(
                rank=report.rank,
                step=report.step,
                count=len(report.losses),
                unknown=len(report.losses) - len(known),
                mean=None if empty else float(known.mean()),
                low=None if empty else float(known.min()),
                high=None if empty else float(known.max()),
            )
        )
    counts, edges = np.histogram(np.concatenate(values) if values else np.empty(0), bins=bins)
    return LossList(reports=found, bins=edges.tolist(), counts=counts.tolist(), next=following)


def _candidates(here: Parts, spec: SessionSpec, table: pa.Table | None) -> tuple[int, dict[str, bytes]]:
    """N, and the tables to store with the session."""
    size = spec.size
    if spec.dataset is not None:
        rows = here.datasets.manifest(spec.dataset).rows_out
        if size is not None and size != rows:
            raise Refusal(
                "bad-dataset", f"size is {size}, but dataset {spec.dataset!r} has {rows} rows: leave size out"
            )
        size = rows
    if not size:
        raise Refusal("bad-dataset", f"dataset {spec.dataset!r} has no rows")
    tables = {}
    if table is not None and table.num_columns:
        name = {"plan": "plan", "acquisition": "scores"}.get(spec.method)
        if name is None:
            raise Refusal("bad-body", f"method {spec.method!r} takes no table: send JSON")
        tables[name] = write_table(table)
    elif spec.method == "plan" and spec.dataset is not None:
        tables["plan"] = write_table(here.datasets.plan(spec.dataset).to_arrow())
    return size, tables


async def _state(here: Parts, entry: Entry) -> SessionState:
    progress = await asyncio.to_thread(here.store.progress, entry.row.key)
    session, row = entry.session, entry.row
    ranks = [
        RankState(
            rank=rank,
            last_asked=entry.asked.get(rank),
            reports=progress.get(rank, (0, None))[0],
            last_reported=progress.get(rank, (0, None))[1],
        )
        for rank in sorted(set(progress) | set(entry.asked))[:1000]
    ]
    return SessionState(
        id=row.id,
        generation=row.generation,
        created=row.created,
        size=row.size,
        spec=row.spec,
        stateful=session.method.stateful,
        open_epochs=session.open_epochs,
        open_steps=session.known_steps,
        total_steps=session.total_steps,
        resident_bytes=session.nbytes,
        ranks=ranks,
    )


SCHEMAS: tuple[type[BaseModel], ...] = (Created, StepBody, ProblemDocument)
"""Models that OpenAPI must list although no route names them."""
