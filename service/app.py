"""Application (ASGI), assembled from its settings."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from sqlalchemy.exc import SQLAlchemyError

from curation.service.auth import Authenticator
from curation.service.datasets import Datasets
from curation.service.http import problems
from curation.service.http.admission.file_room import FileRoom
from curation.service.http.dashboard import routes as dashboard
from curation.service.http.dashboard import session_routes as dashboard_sessions
from curation.service.http.dependencies import AppState
from curation.service.http.middleware import RequestMiddleware
from curation.service.http.openapi import parameter_schemas, parameters_of_any_method
from curation.service.logs import AccessLog, logger
from curation.service.manager.choices import Choices
from curation.service.manager.memory.parts import Parts
from curation.service.manager.sessions import SessionManager
from curation.service.manager.trace import Recorder
from curation.service.manager.upkeep import Upkeep
from curation.service.monitoring.collector import StateCollector, release
from curation.service.monitoring.failures import Failures
from curation.service.monitoring.loop_lag import measure_lag
from curation.service.monitoring.metrics import Metrics
from curation.service.monitoring.readiness import Readiness
from curation.service.monitoring.scrape import Scrape
from curation.service.routers import (
    batches,
    capabilities,
    changes,
    choices,
    operations,
    resizing,
    select,
    sessions,
)
from curation.service.routers import epochs as progress
from curation.service.routers.access import audit, owners, tokens
from curation.service.routers.steps import Shortcut, StepEndpoint
from curation.service.routers.trace import routes as trace
from curation.service.settings import Settings
from curation.service.store import Store
from curation.service.store.audit import prune_audit
from curation.service.store.opening import open_store
from curation.service.workers.fairness import FairSlots
from curation.service.workers.processes import Processes
from curation.service.workers.threads import FairThreads

ROUTERS = (
    sessions.router,
    changes.router,
    choices.router,
    batches.router,
    resizing.router,
    progress.router,
    trace.router,
    select.router,
    operations.router,
    tokens.router,
    owners.router,
    audit.router,
    dashboard_sessions.router,
    capabilities.router,
    dashboard.router,
    dashboard.pages,
)
_WAITING_SHARE = 0.5
"""Of the time for a request, what it may wait for other ranks: the answer takes some, too."""


def create_app(settings: Settings, labels: Mapping[str, str] | None = None) -> FastAPI:
    """Assemble the service. The store is opened now; its writer starts and stops with the app's lifespan.

    Args:
        settings: of this server.
        labels: stand at each of its metrics, such as which replica it is.

    Raises:
        StoreError: the store cannot be opened.
        StoreVersionError: a newer release wrote it.
    """
    store = open_store(settings.store)
    metrics = Metrics()
    authenticator = Authenticator(settings, store, lambda owners: manager.evict_owners(owners))
    manager = SessionManager(
        store,
        resident_bytes=settings.resident_bytes,
        max_wait=settings.request_seconds * _WAITING_SHARE,
        metrics=metrics,
        check_caller=authenticator.check,
    )
    recorder = Recorder(manager)
    metrics.registry.register(StateCollector(metrics, manager, store, settings.stalled_seconds))
    scrape = Scrape(metrics.registry, labels or {})
    failures = Failures(metrics)
    readiness = Readiness(store.ping, seconds=settings.ready_seconds)
    log = AccessLog(settings.access_log, settings.slow_seconds)
    large_bodies = FairSlots(settings.large_bodies, max(1, settings.large_bodies - 1))
    processes = Processes(settings.workers, settings.worker_bytes)
    choosers = FairThreads(settings.select_threads, "curation-choices")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(FairThreads(settings.threads, "curation"))
        await asyncio.to_thread(store.own)
        lag = asyncio.create_task(measure_lag(metrics))
        pruning = asyncio.create_task(_prune_audit(store, settings.audit_days))
        upkeep = asyncio.create_task(
            Upkeep(manager, keep_days=settings.keep_days, keep_epochs=settings.keep_epochs).run()
        )
        try:
            yield
        finally:
            lag.cancel()
            pruning.cancel()
            upkeep.cancel()
            readiness.close()
            scrape.close()
            processes.stop()
            choosers.shutdown(wait=False)
            await authenticator.close()
            await asyncio.to_thread(manager.group_commit.stop)
            await asyncio.to_thread(recorder.stop)
            store.close()
            failures.close()
            log.flush()

    app = FastAPIOffline(
        title="curation",
        version=release(),
        summary="Batch indices over the network, exactly once, whatever dies.",
        lifespan=lifespan,
        # /metrics and the logs tell what happens; looking for OpenTelemetry's providers costs each request more.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    parts = Parts(store, settings.part_bytes)
    app.state.service = AppState(
        settings=settings,
        store=store,
        sessions=manager,
        choices=Choices(manager, parts, choosers, max_rows=settings.max_pairs),
        recorder=recorder,
        authenticator=authenticator,
        metrics=metrics,
        scrape=scrape,
        readiness=readiness,
        all_datasets=Datasets(settings.datasets, settings.dataset_owners),
        processes=processes,
        large_bodies=large_bodies,
        file_room=FileRoom(settings.owner_file_bytes),
    )
    for router in ROUTERS:
        app.include_router(router)
    problems.install(app, failures.take)
    watched: dict[str, Any] = {"settings": settings, "metrics": metrics, "log": log, "failures": failures}
    watched |= {"authenticator": authenticator, "large_bodies": large_bodies}
    app.add_middleware(RequestMiddleware, **watched)
    step = RequestMiddleware(StepEndpoint(app.state.service), **watched)
    app.middleware_stack = Shortcut(step, app.build_middleware_stack())
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _prune_audit(store: Store, days: float) -> None:
    """Forget old acts, now and every hour."""
    while True:
        try:
            await asyncio.to_thread(prune_audit, store, days)
        except SQLAlchemyError:
            logger.warning("old acts stay in the audit trail: the store did not answer", exc_info=True)
        await asyncio.sleep(3600)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's, with the bodies that routes read themselves, problem documents, and the bearer token."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for model in (
            *sessions.SCHEMAS,
            *choices.SCHEMAS,
            *resizing.SCHEMAS,
            *batches.SCHEMAS,
            *select.SCHEMAS,
            *tokens.SCHEMAS,
            *owners.SCHEMAS,
        ):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        schemas.update(parameter_schemas())
        schemas["Created"]["properties"]["parameters"] |= parameters_of_any_method()
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
