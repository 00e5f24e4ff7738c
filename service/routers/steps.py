"""Step requests, which trainers send all day, answered past FastAPI, which would cost more than the step itself."""

import re
from types import SimpleNamespace

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from curation.service.http.bodies import ARROW, JSON, accepts_arrow, is_arrow_kind, read_step, write_step
from curation.service.http.dependencies import AppState
from curation.service.session.caller import Caller

_PATH = re.compile(r"/v1/sessions/([A-Za-z0-9_-]{1,64})/steps")
"""With an id as ``SESSION_ID`` has it: the app refuses all others."""


async def step(app: AppState, caller: Caller, id: str, body: bytes, is_arrow: bool, wants_arrow: bool) -> bytes:
    """Store what a rank reports, and the body of the answer with the batch it asks for.

    Raises:
        Refusal: see :meth:`curation.service.manager.sessions.SessionManager.step`.
    """
    asked = read_step(body, is_arrow, app.settings.max_body_bytes, app.settings.max_reports)
    batch, generation, ignored = await app.sessions.step(caller, id, asked)
    app.metrics.reports += len(asked.reports)
    if batch is not None:
        app.metrics.batches += 1
        app.metrics.rows += len(batch.indices)
    return write_step(batch, generation, wants_arrow, ignored)


class StepEndpoint:
    """Pure ASGI: the answer to ``POST /v1/sessions/{id}/steps``, as the route in ``sessions`` describes it."""

    def __init__(self, app: AppState) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = _ROUTE
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
        raw = dict(scope["headers"])
        caller = await self._app.authenticator.caller(raw.get(b"authorization"), raw.get(b"host"))
        scope["state"]["caller"] = caller
        caller.need("select")
        arrow = accepts_arrow(headers.get(b"accept", ""))
        sent = is_arrow_kind(headers.get(b"content-type", ""), headers.get(b"content-encoding", ""))
        answer = await step(self._app, caller, scope["path_params"]["id"], await _read_body(receive), sent, arrow)
        kind = ARROW if arrow else JSON
        about = [(b"content-length", b"%d" % len(answer)), (b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": about})
        await send({"type": "http.response.body", "body": answer})


class Shortcut:
    """Pure ASGI: requests for a step go to ``step``, everything else to ``app``.

    The app has that route too, for OpenAPI, and for servers that mount it below a path of their own.
    """

    def __init__(self, step: ASGIApp, app: ASGIApp) -> None:
        self._step = step
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path"):
            match = _PATH.fullmatch(scope["path"])
            if match:
                scope["path_params"] = {"id": match[1]}
                await self._step(scope, receive, send)
                return
        await self._app(scope, receive, send)


_HEADERS = frozenset({b"accept", b"content-type", b"content-encoding"})
_ROUTE = SimpleNamespace(path="/v1/sessions/{id}/steps")
"""What metrics call it."""


async def _read_body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
