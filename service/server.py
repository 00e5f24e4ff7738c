"""Server process: uvicorn over the app, with its limits and logs."""

import errno
import signal
import socket
import sys

import uvicorn

from curation.errors import CurationError
from curation.service.app import create_app
from curation.service.auth import check_exposure
from curation.service.http.admission import connections
from curation.service.http.dependencies import AppState
from curation.service.logs import configure, logger
from curation.service.settings import Settings
from curation.service.store.opening import explained

SWITCH_SECONDS = 0.0005


class ListenError(CurationError):
    """The address of the server cannot be listened on."""


class _Server(uvicorn.Server):
    """Uvicorn's, which at shutdown would wait for requests that wait for other ranks."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state: AppState = self.config.app.state.service  # type: ignore[union-attr]
        state.sessions.let_go()
        state.choices.let_go()
        await super().shutdown(sockets)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is open. After SIGTERM it exits with status 0.

    Raises:
        InsecureError: the address is not loopback, and the store has no token.
        StoreError: the store cannot be opened, or another server owns it.
        ListenError: the address cannot be listened on.
    """
    configure(settings.log_level)
    # uvicorn raises the signal again once it has shut down: then, and before it has begun, this is what it meets.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # The writer's thread waits for the interpreter between two requests: 5 ms, the default, would be most of a step.
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(settings)
    store = app.state.service.store
    check_exposure(settings, store)
    with explained(store.url):
        store.own()
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    logger.info("listening", extra={"fields": {"host": host, "port": port, "store": store.safe_url}})
    server = _Server(connections.configure(app, settings))
    with listener:
        server.run(sockets=[listener])
    if not server.started:
        raise SystemExit(1)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        advice = {
            errno.EADDRINUSE: "another process listens there: stop it, or choose another --port",
            errno.EACCES: "ports below 1024 are for root: choose another --port",
        }.get(error.errno or 0, "choose an address of this machine with --host")
        reason = str(error.strerror or error).partition(" (while")[0]
        raise ListenError(f"{settings.host}, port {settings.port}: {reason}: {advice}.") from error
