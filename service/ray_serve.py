"""Ray Serve: several replicas over one PostgreSQL store.

``curation serve --ray`` deploys from here; ``serve deploy configs/serve.yaml`` through :func:`build`. Any replica may
answer any request: what they must agree on is in the store, and each computes the same from it.
"""

import os
import signal
import threading
from typing import Any

from fastapi import FastAPI
from ray import serve

from curation.service.app import create_app
from curation.service.auth import check_exposure
from curation.service.logs import configure
from curation.service.settings import Settings, load_settings
from curation.service.store.opening import open_store
from curation.service.store.sqlite.ownership import StoreError

NAME = "curation"


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application, for ``serve deploy``: its arguments are settings, and ``replicas``.

    Raises:
        StoreError: the store is a file, which replicas cannot share.
        InsecureError: the proxy can be reached from other machines, and the store has no token.
    """
    settings = dict(arguments)
    replicas = int(settings.pop("replicas", 2))
    return _application(load_settings(**settings), replicas)


def run_on_ray(settings: Settings, replicas: int) -> None:
    """Deploy on the Ray cluster at ``RAY_ADDRESS``, or on one of this machine, and wait for SIGTERM or SIGINT."""
    import ray

    application = _application(settings, replicas)
    starts_ray = not ray.is_initialized()
    if starts_ray:
        # Named, because Ray would otherwise look for a cluster that somebody left on this machine, dead or alive.
        ray.init(address=os.environ.get("RAY_ADDRESS") or "local", log_to_driver=False)
    serve.start(http_options={"host": settings.host, "port": settings.port})
    serve.run(application, name=NAME, route_prefix="/")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(f"{replicas} replicas at http://{settings.host}:{settings.port}", flush=True)
    stop.wait()
    serve.delete(NAME)
    if starts_ray:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _application(settings: Settings, replicas: int) -> serve.Application:
    store = open_store(settings.store)
    try:
        if not store.shared:
            raise StoreError(
                f"{store.safe_url}: replicas cannot share a file. Name a PostgreSQL store: --store postgresql+psycopg://..."
            )
        check_exposure(settings, store)
    finally:
        store.close()

    def app() -> FastAPI:
        configure(settings.log_level)
        return create_app(settings, {"replica": serve.get_replica_context().replica_id.unique_id})

    @serve.deployment(name="service", num_replicas=replicas, max_ongoing_requests=64, health_check_period_s=5)
    @serve.ingress(app)
    class Service:
        """One replica: the app, with a group commit and caches of its own."""

    return Service.bind()  # type: ignore[attr-defined, no-any-return]
