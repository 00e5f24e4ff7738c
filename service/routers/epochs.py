"""``/v1/sessions/{id}/epochs`` and ``/losses``: what a session kept, and what was reported to it."""

import asyncio
from typing import Annotated

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query

from curation.service.http.dependencies import App, AppState, Reader
from curation.service.http.openapi import SessionId, problems
from curation.service.manager.memory.entry import Entry
from curation.service.routers.session_models import EpochList, EpochState, LossList, StepLosses

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

MAX_LOSSES = 1 << 22
"""Losses in one answer: the step with which it has as many is the last."""


@router.get("/{id}/epochs", responses=problems(401, 403, 404, 422, 503))
async def list_epochs(
    id: SessionId,
    app: App,
    caller: Reader,
    first: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> EpochList:
    """The open epochs: how many candidates each keeps, and at which weights."""
    entry = await app.sessions.current(caller, id)
    session, size = entry.session, entry.row.size
    numbers = range(first, min(first + limit, session.open_epochs))
    states = []
    for number in numbers:
        record = session.records[number] if session.method.stateful else None
        start, end = session.span_of(number)
        rows = record.layout.rows if record else session.rows
        states.append(
            EpochState(
                number=number,
                first_step=start,
                steps=end - start,
                rows=rows,
                trained=session.trained(number),
                size=size,
                reweighted=record.reweighted if record else 0,
                missing=len(record.missing) if record else 0,
            )
        )
    return EpochList(epochs=states, next=numbers.stop if states and numbers.stop < session.open_epochs else None)


@router.get("/{id}/losses", responses=problems(401, 403, 404, 422, 503))
async def list_losses(
    id: SessionId,
    app: App,
    caller: Reader,
    first: Annotated[int, Query(ge=0, le=2**62, description="the first step")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000, description="reports at most")] = 1000,
    bins: Annotated[int, Query(ge=1, le=200)] = 40,
) -> LossList:
    """Losses by step and rank, and their histogram."""
    entry = await app.sessions.current(caller, id)
    return await asyncio.to_thread(_losses, app, entry, first, limit, bins)


def _losses(app: AppState, entry: Entry, first: int, limit: int, bins: int) -> LossList:
    lines: list[StepLosses] = []
    length, total = entry.row.spec.batch_size, 0
    values: list[npt.NDArray[np.float32]] = []
    following: int | None = None
    for report in app.store.reports(entry.row.key, first, 2**62, length):
        if lines and report.step != lines[-1].step and (len(lines) >= limit or total >= MAX_LOSSES):
            following = report.step
            break
        known = report.losses[np.isfinite(report.losses)]
        total += len(report.losses)
        values.append(known)
        empty = len(known) == 0
        lines.append(
            StepLosses(
                rank=report.rank,
                step=report.step,
                count=len(report.losses),
                unknown=len(report.losses) - len(known),
                mean=None if empty else float(known.mean(dtype=np.float64)),
                low=None if empty else float(known.min()),
                high=None if empty else float(known.max()),
            )
        )
    counts, edges = np.histogram(np.concatenate(values) if values else np.empty(0), bins=bins)
    return LossList(reports=lines, bins=edges.tolist(), counts=counts.tolist(), next=following)
