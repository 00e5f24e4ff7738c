"""``/v1/sessions``: create, take steps, look, rewind, move elsewhere, delete."""

import asyncio
import secrets
from functools import partial
from typing import Annotated

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ValidationError

from curation.service.arrow import write_buffer
from curation.service.errors import Refusal
from curation.service.http.admission.parsing import parse
from curation.service.http.admission.request_body import body_of, read_body
from curation.service.http.bodies import (
    ARROW,
    JSON,
    StepAnswer,
    StepBody,
    is_arrow,
    read_json,
    read_tables,
    wants_arrow,
)
from curation.service.http.dependencies import App, AppState, Reader, Selector, identify
from curation.service.http.files import receive_file, send_file, temporary_file
from curation.service.http.mistakes import invalid_model
from curation.service.http.openapi import SessionId, arrow_body, problems, takes
from curation.service.http.problems import ProblemDocument
from curation.service.manager.checkpoints.exporting import export
from curation.service.manager.checkpoints.importing import Import, import_session
from curation.service.manager.memory.entry import Entry
from curation.service.manager.progress import page
from curation.service.routers.session_models import (
    Created,
    RankState,
    SegmentState,
    SessionList,
    SessionState,
    SessionSummary,
)
from curation.service.routers.steps import step
from curation.service.session.caller import Caller
from curation.service.session.methods.registry import check_limits, method_kind
from curation.service.session.segments import MAX_WORLD_SIZE
from curation.service.session.spec import SESSION_ID, SessionSpec
from curation.service.store.blobs import Bytes

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.post(
    "",
    status_code=201,
    response_model=SessionState,
    responses={
        200: {"model": SessionState, "description": "The session of this id was there already, created alike"},
        201: {"description": "Created"},
        **problems(400, 401, 403, 409, 413, 415, 422, 503),
    },
    openapi_extra=takes(Created),
)
async def create_session(request: Request, app: App, caller: Selector) -> Response:
    """Open a session.

    With Arrow, the JSON object stands in the schema's metadata under ``request``, and the table is the one that the
    method takes, such as a plan (a column ``indices`` of lists) or a score of each candidate (a column ``scores``).
    """
    arrow = is_arrow(request)
    body = await read_body(request, app.settings)
    id, spec, table = await parse(app, _read_created, body, arrow, app.settings.max_body_bytes)
    body_of(request).parsed()
    size, tables = await asyncio.to_thread(_candidates, app, caller, spec, table)
    id = id or secrets.token_urlsafe(12)
    entry, new = await app.sessions.create(caller, id, spec, size, tables)
    answer = await session_state(app, entry)
    headers = {"Location": f"/v1/sessions/{id}"}
    return Response(answer.model_dump_json(), 201 if new else 200, headers, JSON)


@router.get("", responses=problems(401, 403, 422, 503))
async def list_sessions(
    app: App,
    caller: Reader,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> SessionList:
    """Your owner's sessions; with a token that reads all, or an admin's, everybody's."""
    rows = await asyncio.to_thread(app.store.list_sessions, caller.sees, after, limit)
    resized = await asyncio.to_thread(app.store.world_sizes, [row.key for row in rows])
    summaries = [
        SessionSummary(
            id=row.id,
            method=row.spec.method,
            size=row.size,
            epochs=row.spec.epochs,
            world_size=resized.get(row.key, row.spec.world_size),
            created=row.created,
        )
        for row in rows
    ]
    return SessionList(sessions=summaries, next=rows[-1].key if len(rows) == limit else None)


@router.get("/{id}", responses=problems(401, 403, 404, 422, 503))
async def read_session(
    id: SessionId,
    app: App,
    caller: Reader,
    first_rank: Annotated[int, Query(ge=0, le=65_536)] = 0,
    ranks: Annotated[int, Query(ge=0, le=65_536, description="at most so many; 0: what a trainer needs")] = 1000,
) -> SessionState:
    """How a session stands."""
    return await session_state(app, await app.sessions.current(caller, id), first_rank, ranks)


@router.delete("/{id}", status_code=204, responses=problems(401, 403, 404, 422, 503))
async def delete_session(id: SessionId, app: App, caller: Selector) -> None:
    """Forget a session and everything that was reported to it."""
    await app.sessions.delete(caller, id)


@router.post(
    "/{id}/steps",
    response_model=StepAnswer,
    responses={
        200: {"content": {ARROW: arrow_body("StepAnswer")}, "description": "The rank's batch"},
        **problems(400, 401, 403, 404, 406, 409, 410, 413, 415, 422, 503),
    },
    openapi_extra=takes(StepBody),
)
async def take_step(id: SessionId, request: Request) -> Response:
    """Report the losses of earlier steps, and get the batch of the step named: safe to repeat.

    Where the method chooses from super-batches, the batch is the rank's part of one: ``/choices`` says which of it to
    train on, and that is what losses are reported of.

    A report that was answered with 200 is on disk; reporting it again changes nothing, and where the losses differ
    ``ignored`` in the answer names the step. With Arrow, ``rank``, ``step``, ``generation`` and ``wait`` stand in the
    schema's metadata, and the table has a row for each report: ``step`` int64, ``losses`` list of float32. Without
    reports the schema has no columns.
    """
    caller = await identify(request, "select")
    arrow = wants_arrow(request)
    app: AppState = request.app.state.service
    answer = await step(app, caller, id, body_of(request), is_arrow(request), arrow)
    return Response(answer, media_type=ARROW if arrow else JSON)


@router.get(
    "/{id}/checkpoint",
    response_class=Response,
    responses={
        200: {"content": {ARROW: arrow_body("Checkpoint")}, "description": "The session, whole"},
        **problems(401, 403, 404, 413, 422, 429, 503),
    },
)
async def export_session(id: SessionId, request: Request, app: App, caller: Reader) -> Response:
    """Everything needed to go on elsewhere, from the present epoch: an Arrow IPC stream for a training checkpoint."""
    entry = await app.sessions.current(caller, id)
    write = partial(export, app.store, app.sessions, entry)
    return await send_file(request, app.settings, write, app.file_room.holding(caller.owner))


@router.post(
    "/import",
    status_code=201,
    response_model=SessionState,
    responses={
        200: {"model": SessionState, "description": "The session of this id was there already, of the same checkpoint"},
        201: {"description": "Created"},
        **problems(400, 401, 403, 409, 413, 415, 422, 429, 503),
    },
    openapi_extra={"requestBody": {"required": True, "content": {ARROW: arrow_body("Checkpoint")}}},
)
async def import_exported(
    request: Request,
    app: App,
    caller: Selector,
    id: Annotated[str | None, Query(pattern=SESSION_ID, description="the new session's id")] = None,
    world_size: Annotated[int | None, Query(ge=1, le=MAX_WORLD_SIZE, description="ranks to go on with")] = None,
    from_step: Annotated[int | None, Query(ge=0, le=2**62, description="where, as in /resize")] = None,
) -> Response:
    """Make a session from an exported one, for as many ranks as that has, or resized for others: with an id it is safe
    to repeat.

    With ``world_size``, in methods that do not depend on reports, all rows before ``from_step`` count as trained on.
    """
    if not is_arrow(request):
        raise Refusal("bad-media-type", f"send the exported checkpoint as it is, as {ARROW}")
    asked = Import(id or secrets.token_urlsafe(12), world_size, from_step)
    with app.file_room.holding(caller.owner) as holding, temporary_file() as file:
        await receive_file(request, app.settings, file, holding)
        datasets = app.datasets(caller)
        entry, new = await import_session(app.sessions, caller, asked, file.name, app.settings, datasets)
    answer = await session_state(app, entry)
    headers = {"Location": f"/v1/sessions/{asked.id}"}
    return Response(answer.model_dump_json(), 201 if new else 200, headers, JSON)


def _read_created(body: bytes, arrow: bool, max_bytes: int) -> tuple[str | None, SessionSpec, pa.Buffer | None]:
    """The id asked for, the spec, and the table that came with it, or stood in the JSON, as an Arrow IPC stream. Of a
    large body in a worker process: millions of numbers are no work for the loop."""
    given, table = read_tables(body, max_bytes) if arrow else (read_json(body), None)
    try:
        asked = Created.model_validate(given)
    except ValidationError as error:
        raise invalid_model(error) from error
    spec = SessionSpec(**asked.model_dump(exclude={"id"}, exclude_unset=True))
    if table is None or not table.num_columns:
        spec, table = method_kind(spec.method).to_table(spec) or (spec, None)
    return asked.id, spec, None if table is None else write_buffer(table)


def _candidates(
    app: AppState, caller: Caller, spec: SessionSpec, table: pa.Buffer | None
) -> tuple[int, dict[str, Bytes]]:
    """What to store of the session beside its spec: N, and its tables."""
    size = spec.size or 0
    if spec.dataset is not None:
        size = app.datasets(caller).size(spec.dataset, spec.size)
    check_limits(spec, size, app.settings)
    kind = method_kind(spec.method)
    if table is not None:
        if kind.table is None:
            raise Refusal("bad-body", f"method {spec.method!r} takes no table: send JSON")
        return size, {kind.table: table}
    if kind.table is not None and kind.plan_of_dataset and spec.dataset is not None:
        return size, {kind.table: write_buffer(app.datasets(caller).plan(spec.dataset).to_arrow())}
    return size, {}


async def session_state(app: AppState, entry: Entry, first_rank: int = 0, limit: int = 1000) -> SessionState:
    """How a session stands, for an answer, with at most ``limit`` of its ranks."""
    session, row = entry.session, entry.row
    progress = await entry.progress.by_rank() if limit else {}
    ranks, following = page(progress, entry.asked, first_rank, limit) if limit else ([], None)
    return SessionState(
        id=row.id,
        generation=row.generation,
        created=row.created,
        size=row.size,
        spec=row.spec,
        digest=row.digest,
        stateful=session.method.stateful,
        open_epochs=session.open_epochs,
        open_steps=session.known_steps,
        total_steps=session.total_steps,
        resident_bytes=session.nbytes,
        world_size=session.world_size,
        segments=[
            SegmentState(
                epoch=segment.epoch,
                from_step=segment.first_step,
                steps=segment.steps,
                world_size=segment.world_size,
                rows=int(np.diff(segment.left).sum()),
            )
            for segment in session.segments
        ],
        ranks=[
            RankState(
                rank=rank,
                last_asked=entry.asked.get(rank),
                reports=progress[rank].reports if rank in progress else 0,
                last_reported=progress[rank].last if rank in progress else None,
            )
            for rank in ranks
        ],
        next_rank=following,
    )


SCHEMAS: tuple[type[BaseModel], ...] = (Created, StepBody, ProblemDocument)
"""Models that OpenAPI must list although no route names them."""
