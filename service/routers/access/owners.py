"""``/v1/owners``: who has sessions and tokens, and how much of the service each may use; for admin tokens."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from curation.service.access.tokens import OWNER
from curation.service.http.bodies import read_model
from curation.service.http.dependencies import Administrator, App
from curation.service.http.openapi import problems, takes_json
from curation.service.session.account import MIN_RATE
from curation.service.store.owners import list_owners as read_owners
from curation.service.store.owners import set_quota

router = APIRouter(prefix="/v1/owners", tags=["access"])

OwnerName = Annotated[str, Path(pattern=f"^{OWNER.pattern}$", description="the owner's name")]


class QuotaChange(BaseModel):
    """Limits to set. Those that are left out stay; null is the server's default again."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    sessions: int | None = Field(default=None, ge=0, lt=2**62)
    requests_per_second: float | None = Field(default=None, ge=MIN_RATE, description="to each replica")
    bytes_per_second: float | None = Field(default=None, ge=MIN_RATE, description="of bodies, to each replica")


class OwnerQuota(BaseModel):
    """The limits set for an owner. null: the server's default."""

    sessions: int | None
    requests_per_second: float | None
    bytes_per_second: float | None


class OwnerState(BaseModel):
    """An owner, what it has, and its limits."""

    name: str
    sessions: int
    tokens: int = Field(description="its tokens that were not revoked")
    quota: OwnerQuota


class OwnerList(BaseModel):
    """Every owner that has a token, a session or a quota, by name."""

    owners: list[OwnerState]


@router.get("", responses=problems(401, 403, 503))
async def list_owners(app: App, caller: Administrator) -> OwnerList:
    """All owners, with the number of their sessions and tokens, and their quotas."""
    found = await asyncio.to_thread(read_owners, app.store)
    return OwnerList(
        owners=[
            OwnerState(
                name=owner.name,
                sessions=owner.sessions,
                tokens=owner.tokens,
                quota=OwnerQuota(**owner.quota._asdict()),
            )
            for owner in found
        ]
    )


@router.patch("/{name}", responses=problems(400, 401, 403, 413, 415, 422, 503), openapi_extra=takes_json(QuotaChange))
async def change_owner(name: OwnerName, request: Request, app: App, caller: Administrator) -> OwnerQuota:
    """Set an owner's quotas. Servers notice within their ``token_seconds``."""
    asked = await read_model(request, QuotaChange)
    changes = asked.model_dump(exclude_unset=True)
    quota = await asyncio.to_thread(set_quota, app.store, caller, name, changes)
    return OwnerQuota(**quota._asdict())


SCHEMAS: tuple[type[BaseModel], ...] = (QuotaChange,)
