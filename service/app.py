"""Application (ASGI), assembled from its settings."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline

from curation.service.auth import Authenticator
from curation.service.datasets import Datasets
from curation.service.http import problems
from curation.service.http.arrays import compute
from curation.service.http.dashboard import routes as dashboard
from curation.service.http.dependencies import AppState
from curation.service.http.middleware import RequestMiddleware
from curation.service.logs import AccessLog
from curation.service.manager.choices import Choices
from curation.service.manager.sessions import SessionManager
from curation.service.manager.trace import Recorder
from curation.service.metrics import Metrics
from curation.service.routers import choices, operations, select, sessions, trace
from curation.service.routers import epochs as progress
from curation.service.routers.steps import Shortcut, StepEndpoint
from curation.service.settings import Settings
from curation.service.store import Store

ROUTERS = (
    sessions.router,
    choices.router,
    progress.router,
    trace.router,
    select.router,
    operations.router,
    dashboard.router,
    dashboard.pages,
)


def create_app(settings: Settings) -> FastAPI:
    """Assemble the service. The store is opened now; its writer starts and stops with the app's lifespan.

    Raises:
        StoreError: the store cannot be opened.
        StoreVersionError: a newer release wrote it.
    """
    store = Store(settings.store)
    manager = SessionManager(store, resident_bytes=settings.resident_bytes)
    recorder = Recorder(manager)
    metrics = Metrics(lambda: manager.in_memory)
    log = AccessLog()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(store.own)
        try:
            yield
        finally:
            await asyncio.to_thread(manager.group_commit.stop)
            await asyncio.to_thread(recorder.stop)
            store.close()
            log.flush()

    app = FastAPIOffline(
        title="curation",
        version=_version(),
        summary="Batch indices over the network, exactly once, whatever dies.",
        lifespan=lifespan,
        # /metrics and the logs tell what happens; looking for OpenTelemetry's providers costs each request more.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    slots = asyncio.Semaphore(settings.select_threads)
    app.state.service = AppState(
        settings=settings,
        store=store,
        sessions=manager,
        choices=Choices(manager, lambda work: compute(slots, work), max_rows=settings.max_pairs),
        recorder=recorder,
        authenticator=Authenticator(settings, store),
        metrics=metrics,
        datasets=Datasets(settings.datasets),
        select_slots=slots,
    )
    for router in ROUTERS:
        app.include_router(router)
    problems.install(app)
    app.add_middleware(RequestMiddleware, settings=settings, metrics=metrics, log=log)
    step = RequestMiddleware(StepEndpoint(app.state.service), settings=settings, metrics=metrics, log=log)
    app.middleware_stack = Shortcut(step, app.build_middleware_stack())
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's, with the bodies that routes read themselves, problem documents, and the bearer token."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for model in (*sessions.SCHEMAS, *choices.SCHEMAS, *select.SCHEMAS):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        for path in document["paths"].values():
            for operation in path.values():
                invalid = operation["responses"].get("422", {}).get("content", {})
                invalid.pop("application/json", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}, {}]
        app.openapi_schema = document
    return app.openapi_schema


def _version() -> str:
    try:
        return version("curation")
    except PackageNotFoundError:
        return "0"
