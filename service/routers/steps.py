"""Step requests, which trainers send all day, answered past FastAPI, which would cost more than the step itself."""

import re
from functools import lru_cache
from types import SimpleNamespace

from starlette.types import ASGIApp, Receive, Scope, Send

from curation.service.http.admission.parsing import parse
from curation.service.http.admission.request_body import RequestBody
from curation.service.http.bodies import ARROW, JSON, accepts_arrow, is_arrow_kind, read_step, write_step
from curation.service.http.dependencies import AppState, caller_of
from curation.service.manager.memory.entry import Entry
from curation.service.session.caller import Caller
from curation.service.settings import Settings

_PATH = re.compile(r"/v1/sessions/([A-Za-z0-9_-]{1,64})/steps")
"""With an id as ``SESSION_ID`` has it: the app refuses all others."""
_LOSS_BYTES, _REPORT_BYTES = 32, 1024  # the most that any encoding takes


async def step(app: AppState, caller: Caller, id: str, body: RequestBody, is_arrow: bool, wants_arrow: bool) -> bytes:
    """Store what a rank reports, and the body of the answer with the batch it asks for.

    The body is read once the caller may use the session, and no more of it than one to that session can have.

    Raises:
        Refusal: see :meth:`curation.service.manager.sessions.SessionManager.step`.
    """
    most = _most_bytes(await app.sessions.entry(caller, id), app.settings)
    body.allow(most, "max_body_bytes" if most == app.settings.max_body_bytes else "")
    asked = await parse(app, read_step, await body.read(), is_arrow, most, app.settings.max_reports)
    body.parsed()
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
        about = scope["state"]
        headers = about["headers"]
        caller = await caller_of(scope, self._app.authenticator)
        caller.need("select")
        arrow, sent = _kinds(*map(headers.get, (b"accept", b"content-type", b"content-encoding")))
        answer = await step(self._app, caller, scope["path_params"]["id"], about["body"], sent, arrow)
        length = (b"content-length", b"%d" % len(answer))
        await send({"type": "http.response.start", "status": 200, "headers": [length, _KIND_HEADERS[arrow]]})
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


_KIND_HEADERS = {arrow: (b"content-type", (ARROW if arrow else JSON).encode()) for arrow in (True, False)}
_ROUTE = SimpleNamespace(path="/v1/sessions/{id}/steps")
"""What metrics call it."""


@lru_cache(maxsize=256)
def _kinds(accept: bytes | None, kind: bytes | None, encoding: bytes | None) -> tuple[bool, bool]:
    """Whether the answer shall be Arrow, and whether the body is."""
    accept_, kind_, encoding_ = ((value or b"").decode("latin-1") for value in (accept, kind, encoding))
    return accepts_arrow(accept_), is_arrow_kind(kind_, encoding_)


def _most_bytes(entry: Entry, settings: Settings) -> int:
    """The largest body that a step of a session can have."""
    session = entry.session
    # A last batch may have taken up one that was too short; those of a plan are as long as they are.
    rows = 2 * session.spec.batch_size if session.method.plan is None else session.rows
    return min(settings.max_body_bytes, settings.max_reports * (_REPORT_BYTES + _LOSS_BYTES * rows))
