"""``/v1/sessions/{id}/steps/{step}/rows``, ``/rows/{row}`` and ``/spikes``: the flight recorder."""

import asyncio
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from curation.service.arrow import write_table
from curation.service.errors import Refusal
from curation.service.http.bodies import ARROW, JSON, wants_arrow
from curation.service.http.dependencies import App, Reader
from curation.service.http.openapi import SessionId, arrow_body, problems
from curation.service.http.rows import read_rows
from curation.service.routers.trace.models import (
    RowTrace,
    SpikeList,
    StepTrace,
    row_trace,
    spike_list,
    step_table,
    step_trace,
)

router = APIRouter(prefix="/v1/sessions", tags=["flight recorder"])

MOST_VALUES = 1000


@router.get(
    "/{id}/steps/{step}/rows",
    response_model=StepTrace,
    responses={
        200: {"content": {ARROW: arrow_body("StepTrace")}, "description": "The step's rows"},
        **problems(401, 403, 404, 406, 409, 410, 422, 503),
    },
)
async def list_step_rows(
    id: SessionId,
    step: Annotated[int, Path(ge=0, le=2**62)],
    request: Request,
    app: App,
    caller: Reader,
    rank: Annotated[int | None, Query(ge=0, le=2**31, description="None: all ranks")] = None,
    sort: Annotated[
        Literal["rank", "loss"], Query(description="by rank and position, or by falling loss, not finite ones first")
    ] = "rank",
    values: Annotated[bool, Query(description="the rows of the session's dataset, long values cut short")] = False,
    start: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """Which rows were in a step, on which rank, with what weight and loss.

    In a session that chooses from super-batches these are the chosen rows with their logits. With Arrow all of them
    come at once, in columns: ``sort``, ``values``, ``start`` and ``limit`` are for JSON.
    """
    arrow = wants_arrow(request)
    entry = await app.sessions.current(caller, id)
    dataset, generation = entry.row.spec.dataset, entry.row.generation
    if values and (dataset is None or arrow):
        reason = "values come with JSON alone" if arrow else f"session {id!r} names no dataset, so it knows no values"
        raise Refusal("bad-dataset", f"{reason}: ask without them")
    rows = await app.recorder.step_rows(entry, step, rank)
    if arrow:
        table = step_table(rows, generation)
        return Response(await asyncio.to_thread(write_table, table), media_type=ARROW)
    read, most = (None, limit)
    if values and dataset:
        read, most = partial(read_rows, app.datasets(caller), dataset), MOST_VALUES
    page = await asyncio.to_thread(
        step_trace, id, generation, rows, by_loss=sort == "loss", start=start, limit=min(limit, most), values=read
    )
    return Response(page.model_dump_json(), media_type=JSON)


@router.get("/{id}/rows/{row}", responses=problems(401, 403, 404, 409, 410, 422, 503))
async def list_row_visits(
    id: SessionId,
    row: Annotated[int, Path(ge=0, le=2**62)],
    app: App,
    caller: Reader,
    first: Annotated[int | None, Query(ge=0, le=2**31, description="the first epoch; None: the earliest kept")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="epochs at most")] = 1000,
) -> RowTrace:
    """Every visit of a row: epoch, step, rank, weight and loss, over all restarts and what remains of rewinds.

    A look-up for each epoch in sessions of ``random`` and ``jest``; a pass over the plan in those of ``plan``; over the
    epoch's order and reports in others. After ten seconds the answer ends, and ``next`` says where to go on.
    """
    entry = await app.sessions.current(caller, id)
    found = await app.recorder.row_visits(entry, row, first, limit)
    return row_trace(id, entry.row.generation, row, found)


@router.get("/{id}/spikes", responses=problems(401, 403, 404, 409, 410, 422, 503))
async def list_spikes(
    id: SessionId,
    app: App,
    caller: Reader,
    top: Annotated[int, Query(ge=1, le=100)] = 10,
    threshold: Annotated[float, Query(gt=0, le=1e9, description="robust deviations from the median before")] = 6.0,
    first: Annotated[int | None, Query(ge=0, le=2**62, description="None: the last ``limit`` steps")] = None,
    limit: Annotated[int, Query(ge=1, le=100_000, description="steps at most")] = 10_000,
) -> SpikeList:
    """Steps whose mean loss stands out from the 64 before, or is not finite, with their rows of the highest losses."""
    entry = await app.sessions.current(caller, id)
    found = await app.recorder.spikes(entry, top, threshold, first, limit)
    return spike_list(id, entry.row.generation, found)
