"""``/v1/audit``: who made, changed and deleted what; for admin tokens."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from curation.service.http.dependencies import Administrator, App
from curation.service.http.openapi import problems
from curation.service.store.audit import read_audit

router = APIRouter(prefix="/v1/audit", tags=["access"])


class Act(BaseModel):
    """One act: what was done to what, by whom."""

    key: int
    at: float = Field(description="seconds since 1970, UTC")
    act: str = Field(examples=["session.delete"])
    session: str | None = Field(description="the id of the session that was acted on")
    owner: str | None = Field(description="the owner of the token that did it; null: nobody's, or the command line")
    token: str | None = Field(description="the id of that token")
    peer: str | None = Field(description="the address that the request came from, or who ran the command")
    request: str | None = Field(description="the request's id, as in the logs")
    detail: dict[str, Any]


class ActList(BaseModel):
    """Acts, newest first. Pass ``next`` as ``before`` for older ones; null: these are the oldest."""

    acts: list[Act]
    next: int | None


@router.get("", responses=problems(401, 403, 422, 503))
async def list_acts(
    app: App,
    caller: Administrator,
    session: Annotated[str | None, Query(max_length=64, pattern=r"^[^\x00]*$", description="acts on this")] = None,
    owner: Annotated[str | None, Query(max_length=64, pattern=r"^[^\x00]*$", description="acts of its tokens")] = None,
    before: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ActList:
    """The audit trail: sessions made, imported, rewound, deleted; tokens made, rotated, revoked; owners changed."""
    entries = await asyncio.to_thread(
        lambda: read_audit(app.store, session=session, owner=owner, before=before, limit=limit)
    )
    acts = [Act(**entry._asdict()) for entry in entries]
    return ActList(acts=acts, next=acts[-1].key if len(acts) == limit else None)
