"""Dependencies of the routes: the state of the app, and who is calling."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from curation.service.auth import Authenticator
from curation.service.datasets import Datasets
from curation.service.manager.choices import Choices
from curation.service.manager.sessions import SessionManager
from curation.service.manager.trace import Recorder
from curation.service.monitoring.metrics import Metrics
from curation.service.monitoring.readiness import Readiness
from curation.service.monitoring.scrape import Scrape
from curation.service.session.caller import Caller
from curation.service.settings import Settings
from curation.service.store import Store


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
    select_slots: asyncio.Semaphore
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
    authorization = host = None
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            authorization = value
        elif name == b"host":
            host = value
    caller = await (await app_state(request)).authenticator.caller(authorization, host)
    state = request.scope.setdefault("state", {})
    state["caller"] = caller
    caller.need(scope)
    return caller.asking(scope, request.client.host if request.client else None, state.get("request_id"))


App = Annotated[AppState, Depends(app_state)]
Reader = Annotated[Caller, Depends(reader)]
Selector = Annotated[Caller, Depends(selector)]
Administrator = Annotated[Caller, Depends(administrator)]
