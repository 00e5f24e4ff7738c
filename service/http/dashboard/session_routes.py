"""Routes of the dashboard's sessions: the list, a session, its plan; what did not change is not sent again."""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from curation.service.errors import Refusal
from curation.service.http.bodies import JSON
from curation.service.http.dashboard import datasets as browse
from curation.service.http.dashboard import progress
from curation.service.http.dashboard import sessions as overview
from curation.service.http.dashboard.losses import Curve, Distribution, Weight, curve, distribution, weights
from curation.service.http.dependencies import App, AppState, Reader
from curation.service.http.openapi import SessionId, problems
from curation.service.manager.memory.entry import Entry
from curation.service.manager.progress import RankReports
from curation.service.monitoring.standing import glance, read_progress
from curation.service.routers.epochs import list_epochs
from curation.service.routers.session_models import EpochState
from curation.service.session.caller import Caller
from curation.service.session.methods.registry import method_kind

EPOCHS = 60
MAX_LOADED = 10_000_000
"""Candidates of a session that comes with a table, above which a list does not load it."""
LONGEST = 300

_FRESH = {"Cache-Control": "private, no-cache"}

router = APIRouter(prefix="/dashboard/sessions", tags=["dashboard"])


class SessionLines(BaseModel):
    """A page of sessions. Pass ``next`` as ``after`` for the following one; null: this is the last."""

    sessions: list[overview.Line]
    total: int = Field(description="sessions that were found, on all pages")
    next: str | None
    now: float = Field(description="the server's clock, seconds since 1970")


class SessionView(BaseModel):
    """All that the page draws of a session."""

    id: str
    owner: str | None
    method: str
    size: int
    epochs_in_all: int
    created: float
    now: float = Field(description="the server's clock, seconds since 1970")
    dataset: str | None
    parameters: dict[str, str] = Field(description="what it was created with, long values cut short")
    pruning_ends: int | None = Field(description="the first epoch that leaves nothing out, where the method has one")
    standing: progress.Standing
    ranks: progress.Ranks
    resized: int | None = Field(description="the step since which it has these ranks; null: the first")
    total_steps: int | None
    epochs: list[EpochState] = Field(description="the latest epochs up to the present one")
    losses: Curve
    spread: Distribution | None = Field(description="losses of the newest epoch, or the one asked for")
    weights: list[Weight]
    chooses: bool = Field(description="whether steps hand out super-batches, of which a part is chosen")
    has_plan: bool = Field(description="whether the batches are those of a plan")


@router.get(
    "",
    response_model=SessionLines,
    responses={304: {"description": "As If-None-Match has it"}, **problems(401, 403, 422, 503)},
)
async def show_sessions(
    request: Request,
    app: App,
    caller: Reader,
    search: Annotated[str, Query(max_length=64, pattern=r"^[^\x00]*$", description="in id, owner or method")] = "",
    sort: overview.Sort = "newest",
    after: Annotated[str | None, Query(max_length=100, pattern="^[A-Za-z0-9_-]*$")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Your owner's sessions and how each stands; with a token that reads all, or an admin's, everybody's."""
    found = await asyncio.to_thread(overview.find_sessions, app.store, caller.sees, search, sort, after, limit)
    lines = [line for id in found.ids if (line := await _line_of(app, caller, id)) is not None]
    view = SessionLines(sessions=lines, total=found.total, next=found.next, now=time.time())
    facts = [found.total, [line.model_dump() | {"standing": _steady(line.standing)} for line in lines]]
    return _unless_known(request, _tag(facts), view)


@router.get(
    "/{id}",
    response_model=SessionView,
    responses={304: {"description": "As If-None-Match has it"}, **problems(401, 403, 404, 422, 503)},
)
async def show_session(
    id: SessionId,
    request: Request,
    app: App,
    caller: Reader,
    first: Annotated[int | None, Query(ge=0, le=2**62, description="draw losses from this step on")] = None,
    last: Annotated[int | None, Query(ge=0, le=2**62, description="up to this one")] = None,
    newest: Annotated[bool, Query(description="draw losses of the newest epoch alone")] = False,
    of: Annotated[int | None, Query(ge=0, le=2**31, description="distribution of this epoch, not the newest")] = None,
    rank: Annotated[int | None, Query(ge=0, le=2**31, description="list ranks from this one on")] = None,
) -> Response:
    """A session's standing, ranks, losses and epochs, thinned to what a screen can show.

    With ``If-None-Match`` nothing of it is computed, and the answer is 304, until something was asked or reported.
    """
    entry = await app.sessions.current(caller, id)
    found = await entry.progress.by_rank()
    standing, ranks, reported, tag = await asyncio.to_thread(_look, app, entry, found, rank, request.url.query)
    row, session = entry.row, entry.session
    if _is_known(request, tag):
        return Response(status_code=304, headers=_FRESH | {"ETag": tag})
    epoch = standing.epoch
    until = 0 if epoch is None else epoch
    listed = await list_epochs(id, app, caller, max(0, until - EPOCHS + 1), min(until + 1, EPOCHS))
    drawn = None if epoch is None or reported is None else session.epoch_of(reported)
    window = None if first is None and last is None else (first or 0, 2**62 if last is None else last)
    if newest and drawn is not None:
        window = session.span_of(drawn)
    shown = drawn if of is None else of
    spread = None
    if shown is not None and reported is not None and row.base <= shown < session.open_epochs:
        spread = await asyncio.to_thread(distribution, app.store, entry, shown, reported)
    view = SessionView(
        id=id,
        owner=row.owner,
        method=row.spec.method,
        size=row.size,
        epochs_in_all=row.spec.epochs,
        created=row.created,
        now=time.time(),
        dataset=row.spec.dataset,
        parameters=_parameters(entry),
        pruning_ends=session.method.whole_from,
        standing=standing,
        ranks=ranks,
        resized=session.segments[-1].first_step if session.segments else None,
        total_steps=session.total_steps,
        epochs=listed.epochs,
        losses=await asyncio.to_thread(curve, app.store, entry, reported, window),
        spread=spread,
        weights=[] if epoch is None else await asyncio.to_thread(weights, session, epoch),
        chooses=session.method.choosing is not None,
        has_plan=session.method.plan is not None,
    )
    return Response(view.model_dump_json(), headers=_FRESH | {"ETag": tag}, media_type=JSON)


@router.get("/{id}/plan", responses=problems(401, 403, 404, 422, 503))
async def show_plan(id: SessionId, app: App, caller: Reader) -> browse.PlanFacts:
    """The plan of a session that has one: sizes, what made it, and its hardness where its dataset says so."""
    entry = await app.sessions.current(caller, id)
    plan, name = entry.session.method.plan, entry.row.spec.dataset
    if plan is None:
        raise Refusal("not-found", f"session {id!r} has no plan: its method is {entry.row.spec.method}")

    def facts() -> browse.PlanFacts:
        try:
            manifest = None if name is None else app.datasets(caller).manifest(name)
        except Refusal:
            manifest = None  # the dataset is gone, but the session has the plan
        return browse.plan_facts(plan, manifest)

    return await asyncio.to_thread(facts)


async def _line_of(app: AppState, caller: Caller, id: str) -> overview.Line | None:
    """A line of the list; None where the session was deleted meanwhile."""
    row = await asyncio.to_thread(app.store.session, id)
    if row is None:
        return None
    large = row.size > MAX_LOADED and method_kind(row.spec.method).table is not None
    entry = next((entry for entry in app.sessions.in_memory if entry.row.id == id), None) if large else None
    standing = None
    if entry is not None or not large:
        try:
            entry = entry or await app.sessions.current(caller, id)
        except Refusal:
            return None
        standing = await asyncio.to_thread(_glance, app, entry)
    resized = await asyncio.to_thread(app.store.world_sizes, [row.key])
    return overview.Line(
        id=id,
        owner=row.owner,
        method=row.spec.method,
        size=row.size,
        epochs=row.spec.epochs,
        world_size=resized.get(row.key, row.spec.world_size),
        created=row.created,
        standing=standing,
    )


def _glance(app: AppState, entry: Entry) -> progress.Standing:
    told = glance(app.sessions, entry)
    return progress.standing(entry, told, app.started, app.settings.stalled_seconds)


def _look(
    app: AppState, entry: Entry, found: Mapping[int, RankReports], first_rank: int | None, query: str
) -> tuple[progress.Standing, progress.Ranks, int | None, str]:
    """How a session stands, its ranks, the last step reported, and what an answer to this query is known by.

    In a thread: a session may have tens of thousands of ranks.
    """
    told, counts = read_progress(app.sessions, entry, found)
    standing = progress.standing(entry, told, app.started, app.settings.stalled_seconds)
    ranks = progress.ranks_of(entry, told, counts, first_rank)
    row, reported = entry.row, max(told.reported.values(), default=None)
    facts = [row.key, row.generation, entry.session.open_epochs, reported, sum(counts.values()), query]
    return (
        standing,
        ranks,
        reported,
        _tag([facts, _steady(standing), ranks.cells, [_steady(line) for line in ranks.lines]]),
    )


def _parameters(entry: Entry) -> dict[str, str]:
    spec = entry.row.spec.model_dump()
    given = {**{name: value for name, value in spec.items() if name != "parameters"}, **spec["parameters"]}
    return {name: _short(value) for name, value in given.items() if value is not None}


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > LONGEST:
        return f"{len(value):,} items"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _steady(model: BaseModel | None) -> Any:
    """A model as it is compared: times to ten seconds, or a page would be new with every request of a trainer."""
    if model is None:
        return None
    values = model.model_dump()
    return values | {
        name: round((values[name] or 0) / 10) for name in ("active", "waits_since", "seen") if name in values
    }


def _tag(facts: Any) -> str:
    return f'"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"'


def _is_known(request: Request, tag: str) -> bool:
    return tag in request.headers.get("if-none-match", "")


def _unless_known(request: Request, tag: str, view: BaseModel) -> Response:
    headers = _FRESH | {"ETag": tag}
    if _is_known(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(view.model_dump_json(), headers=headers, media_type=JSON)
