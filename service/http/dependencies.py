"""What the routes share: the app's parts, and who is calling."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from curation.service.auth import Guard
from curation.service.datasets import Datasets
from curation.service.manager.choices import Choices
from curation.service.manager.sessions import Keeper
from curation.service.metrics import Metrics
from curation.service.session.caller import Caller
from curation.service.settings import Settings
from curation.service.store import Store


@dataclass(frozen=True)
class Parts:
    """What :func:`curation.service.app.create_app` put together."""

    settings: Settings
    store: Store
    keeper: Keeper
    choices: Choices
    guard: Guard
    metrics: Metrics
    datasets: Datasets
    select_slots: asyncio.Semaphore


async def parts(request: Request) -> Parts:
    """The parts of the app that answers a request. Async, because FastAPI sends a plain function to a thread."""
    found: Parts = request.app.state.parts
    return found


async def reader(request: Request) -> Caller:
    """A caller who may read."""
    return await identify(request, "read")


async def selector(request: Request) -> Caller:
    """A caller who may select."""
    return await identify(request, "select")


async def identify(request: Request, scope: str) -> Caller:
    """Who makes a request; raises ``Refusal`` unless they may do what ``scope`` names."""
    authorization = host = None
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            authorization = value
        elif name == b"host":
            host = value
    caller = await (await parts(request)).guard.caller(authorization, host)
    caller.need(scope)
    return caller


Here = Annotated[Parts, Depends(parts)]
Reader = Annotated[Caller, Depends(reader)]
Selector = Annotated[Caller, Depends(selector)]
