"""``/v1/select``: a selection from what is sent along; nothing is kept.

It is parsed, made and answered in a process, which is killed when its time is over or its client gone.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from curation.service.http import selections
from curation.service.http.admission.request_body import body_of, read_body
from curation.service.http.bodies import ARROW, JSON, is_arrow, wants_arrow
from curation.service.http.dependencies import App, AppState, Selector
from curation.service.http.openapi import arrow_body, problems, takes

router = APIRouter(prefix="/v1/select", tags=["select"])


class SelectionAnswer(BaseModel):
    """Positions in pick order, with weights and scores (null where the method has none)."""

    indices: list[int]
    weights: list[float]
    scores: list[float | None] | None


class PlanAnswer(BaseModel):
    """Positions, a list for each batch."""

    batches: list[list[int]]


_PROBLEMS = problems(400, 401, 403, 406, 413, 415, 422, 503)
_SELECTION: dict[int | str, dict[str, Any]] = {
    200: {"content": {ARROW: arrow_body("SelectionAnswer")}, "description": "The choice"},
    **_PROBLEMS,
}
_PLAN: dict[int | str, dict[str, Any]] = {
    200: {"content": {ARROW: arrow_body("PlanAnswer")}, "description": "The batches"},
    **_PROBLEMS,
}


@router.post(
    "/zipfit", response_model=SelectionAnswer, responses=_SELECTION, openapi_extra=takes(selections.ZipFitBody)
)
async def zipfit(request: Request, app: App, caller: Selector) -> Response:
    """Texts by how well they compress together with the targets (ZIP-FIT)."""
    return await _select(app, request, selections.zipfit)


@router.post(
    "/acquire", response_model=SelectionAnswer, responses=_SELECTION, openapi_extra=takes(selections.AcquireBody)
)
async def acquire(request: Request, app: App, caller: Selector) -> Response:
    """Candidates drawn by their scores, without replacement (stochastic batch acquisition)."""
    return await _select(app, request, selections.acquire)


@router.post("/jest", response_model=SelectionAnswer, responses=_SELECTION, openapi_extra=takes(selections.JestBody))
async def jest(request: Request, app: App, caller: Selector) -> Response:
    """The part of a super-batch that is jointly most learnable (JEST)."""
    return await _select(app, request, selections.jest)


@router.post("/b3", response_model=PlanAnswer, responses=_PLAN, openapi_extra=takes(selections.B3Body))
async def b3(request: Request, app: App, caller: Selector) -> Response:
    """Batches whose rows are hard negatives of each other (B3)."""
    return await _select(app, request, selections.b3)


async def _select(
    app: AppState, request: Request, method: Callable[[bytes, bool, bool, selections.Limits], bytes]
) -> Response:
    wanted, sent = wants_arrow(request), is_arrow(request)
    limits = selections.Limits(*(getattr(app.settings, name) for name in selections.Limits._fields))
    body = await read_body(request, app.settings)
    work = asyncio.create_task(app.processes.run(method, body, sent, wanted, limits))
    body_of(request).parsed()
    gone = asyncio.create_task(body_of(request).gone())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            gone.result()
        return Response(work.result(), media_type=ARROW if wanted else JSON)
    finally:
        gone.cancel()
        work.cancel()


SCHEMAS: tuple[type[BaseModel], ...] = (
    selections.ZipFitBody,
    selections.AcquireBody,
    selections.JestBody,
    selections.B3Body,
)
