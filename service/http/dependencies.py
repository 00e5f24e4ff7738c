"""Dependencies of the routes: the state of the app, and who is calling."""

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from starlette.types import Scope

from curation.service.auth import Authenticator
from curation.service.datasets import Datasets
from curation.service.http.admission.file_room import FileRoom
from curation.service.manager.choices import Choices
from curation.service.manager.sessions import SessionManager
from curation.service.manager.trace import Recorder
from curation.service.manager.waiting import CLIENT_GONE
from curation.service.monitoring.metrics import Metrics
from curation.service.monitoring.readiness import Readiness
from curation.service.monitoring.scrape import Scrape
from curation.service.session.caller import Caller
from curation.service.settings import Settings
from curation.service.store import Store
from curation.service.workers.fairness import TENANT, FairSlots, Tenant
from curation.service.workers.processes import Processes


@dataclass(frozen=True)
class AppState:
    """What :func:`curation.service.app.create_app` put together."""

    settings: Settings
    store: Store
    sessions: SessionManager
    choices: Choices
    recorder: Recorder
    authenticator: Authenticator
    metrics: Metrics
    scrape: Scrape
    readiness: Readiness
    all_datasets: Datasets
    processes: Processes
    large_bodies: FairSlots
    file_room: FileRoom
    started: float = field(default_factory=time.time)

    def datasets(self, caller: Caller) -> Datasets:
        """The datasets that a caller may see."""
        return self.all_datasets.seen_by(caller)


async def app_state(request: Request) -> AppState:
    """The state of the app that answers a request. Async, because FastAPI sends a plain function to a thread."""
    state: AppState = request.app.state.service
    return state


async def reader(request: Request) -> Caller:
    """A caller who may read."""
    return await identify(request, "read")


async def selector(request: Request) -> Caller:
    """A caller who may select."""
    return await identify(request, "select")


async def administrator(request: Request) -> Caller:
    """A caller who may do everything."""
    return await identify(request, "admin")


async def identify(request: Request, scope: str) -> Caller:
    """Who makes a request; raises ``Refusal`` unless they may do what ``scope`` names."""
    caller = await caller_of(request.scope, (await app_state(request)).authenticator)
    caller.need(scope)
    return caller.asking(scope, request.client.host if request.client else None, request.scope["state"]["request_id"])


async def caller_of(scope: Scope, authenticator: Authenticator) -> Caller:
    """Who makes a request. Looked up once: from then on its work counts as the caller's."""
    about = scope["state"]
    caller: Caller | None = about.get("caller")
    if caller is None:
        headers = about["headers"]
        caller = await authenticator.caller(headers.get(b"authorization"), headers.get(b"host"))
        about["caller"] = caller
        path = scope["path"].split("/", 4)
        CLIENT_GONE.set(about["body"].gone)
        TENANT.set(Tenant(caller.owner, path[3] if len(path) > 3 and path[2] == "sessions" else None))
    return caller


App = Annotated[AppState, Depends(app_state)]
Reader = Annotated[Caller, Depends(reader)]
Selector = Annotated[Caller, Depends(selector)]
Administrator = Annotated[Caller, Depends(administrator)]
