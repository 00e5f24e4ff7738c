"""``/healthz``, ``/readyz``, ``/metrics`` and ``/v1/datasets``: how the server is doing, and what it can serve."""

import asyncio
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from curation.service.http.dependencies import App, Reader
from curation.service.http.openapi import problems
from curation.service.monitoring.named import NamedCollector

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    """The server runs."""

    status: str


class DatasetList(BaseModel):
    """Names to create sessions with."""

    datasets: list[str]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> Health:
    """200 while the process answers at all."""
    return Health(status="alive")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=problems(503))
async def readyz(app: App) -> Health:
    """200 when the store takes writes, too; 503 otherwise, with why it does not."""
    await app.readiness.check()
    return Health(status="ready")


@router.get("/metrics", response_class=Response, responses=problems(401, 403))
async def metrics(app: App, caller: Reader) -> Response:
    """For Prometheus. Sessions and owners by name are your owner's; with a token that reads all, everybody's."""
    named = NamedCollector(caller, app.sessions.in_memory, app.authenticator.accounts)
    return Response(await app.scrape.text(named), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/datasets", responses=problems(401, 403))
async def list_datasets(app: App, caller: Reader) -> DatasetList:
    """Curated datasets under the configured roots, as far as your owner may see them."""
    return DatasetList(datasets=await asyncio.to_thread(app.datasets(caller).names))


@router.get("/v1/datasets/{name}", responses=problems(401, 403, 404, 422))
async def read_dataset(name: str, app: App, caller: Reader) -> dict[str, Any]:
    """A dataset's manifest."""
    manifest = await asyncio.to_thread(app.datasets(caller).manifest, name)
    return manifest.model_dump(mode="json")
