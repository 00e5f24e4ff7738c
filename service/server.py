"""Server process: uvicorn over the app, with its limits and logs."""

import socket
import sys

import uvicorn

from curation.service.app import create_app
from curation.service.auth import check_exposure
from curation.service.logs import configure, logger
from curation.service.settings import Settings

SWITCH_SECONDS = 0.0005


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is open.

    Raises:
        InsecureError: the address is not loopback, and the store has no token.
        StoreError: the store cannot be opened, or another server owns it.
    """
    configure(settings.log_level)
    # The writer's thread waits for the interpreter between two requests: 5 ms, the default, would be most of a step.
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(settings)
    store = app.state.service.store
    check_exposure(settings, store)
    store.own()
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    host, port = listener.getsockname()[:2]
    logger.info("listening", extra={"fields": {"host": host, "port": port, "store": store.safe_url}})
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = uvicorn.Server(config)
    with listener:
        server.run(sockets=[listener])
    if not server.started:
        raise SystemExit(1)
