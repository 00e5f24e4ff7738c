"""Problem documents (RFC 9457, ``application/problem+json``): what every refusal is answered with."""

import json
from collections.abc import Callable, Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from curation.errors import CurationError
from curation.service.errors import Refusal
from curation.service.http.mistakes import invalid

MEDIA_TYPE = "application/problem+json"

KINDS: Mapping[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be read"),
    "no-token": (401, "A bearer token is needed"),
    "bad-scope": (403, "The token does not allow this"),
    "bad-host": (403, "The Host header is not this server"),
    "not-found": (404, "There is no such thing"),
    "bad-method": (405, "The method is not allowed here"),
    "not-acceptable": (406, "No such representation"),
    "timeout": (408, "The request came too slowly"),
    "missing-reports": (409, "Other ranks' reports are missing"),
    "not-sent": (409, "The rank has sent nothing to choose by"),
    "report-differs": (409, "Another report came first"),
    "epoch-not-open": (409, "The step's epoch is not open yet"),
    "id-taken": (409, "Another session has this id"),
    "session-changed": (409, "The session was rewound or deleted"),
    "stale-generation": (409, "The session was rewound since"),
    "before-base": (410, "The step lies before what is kept of the session"),
    "too-large": (413, "The body is too large"),
    "url-too-long": (414, "The URL is too long"),
    "bad-media-type": (415, "The body's type is not understood"),
    "bad-body": (422, "The body does not fit"),
    "bad-parameters": (422, "The session's parameters are wrong"),
    "bad-rank": (422, "The rank is unknown"),
    "bad-row": (422, "The row is unknown"),
    "bad-step": (422, "The step is unknown"),
    "bad-report": (422, "A report does not fit its batch"),
    "other-method": (422, "The session's method does not do this"),
    "bad-dataset": (422, "The dataset cannot be used"),
    "quota": (429, "The owner has used up its quota"),
    "head-too-large": (431, "The request's headers are too large"),
    "internal": (500, "The server failed"),
    "busy": (503, "The server is still working on it"),
    "too-many-connections": (503, "The server has no room for the connection"),
    "store-unavailable": (503, "The store cannot be reached"),
}
"""Kind -> (status, title). The ``type`` of a document is ``urn:curation:problem:<kind>``."""


class ProblemDocument(BaseModel):
    """RFC 9457. Some kinds have further members, such as ``missing``."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:curation:problem:bad-step"])
    title: str
    status: int
    detail: str
    instance: str | None = Field(default=None, description="the request's id, as in the logs")


def problem(refusal: Refusal, request_id: str | None = None) -> Response:
    """The document of a refusal."""
    status, title = KINDS[refusal.kind]
    document = {
        "type": f"urn:curation:problem:{refusal.kind}",
        "title": title,
        "status": status,
        "detail": refusal.detail,
        **({"instance": f"urn:curation:request:{request_id}"} if request_id else {}),
        **refusal.members,
    }
    headers = {}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(refusal.retry_after)))
    if refusal.kind == "no-token":
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.kind == "bad-method" and "allow" in refusal.members:
        headers["Allow"] = refusal.members["allow"]
    return Response(json.dumps(document), status, headers, MEDIA_TYPE)


def refusal_of(error: Exception) -> Refusal:
    """What an exception means to the client; an unknown one tells nothing of the server."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, HTTPException):
        kind = {404: "not-found", 405: "bad-method", 406: "not-acceptable", 413: "too-large"}.get(error.status_code)
        return Refusal(kind or "bad-request", str(error.detail))
    if isinstance(error, DBAPIError | PoolTimeout):
        return Refusal("store-unavailable", "the store did not answer; nothing was changed: try again", retry_after=1)
    if isinstance(error, TimeoutError):
        return Refusal("busy", "the answer takes longer than the server's limit: try again", retry_after=1)
    if isinstance(error, CurationError):
        return Refusal("bad-body", str(error))
    return Refusal("internal", "an unexpected error; the server's log has it under this request's id")


def _allowed(request: Request) -> str:
    """The methods of all routes of a path; Starlette names those of the first."""
    scope = {"type": "http", "path": request.scope["path"], "root_path": request.scope.get("root_path", "")}
    scopes = [scope | {"method": method} for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")]
    allowed = [
        str(scope["method"])
        for scope in scopes
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]
    return ", ".join(allowed)


def install(app: FastAPI, take: Callable[[Refusal, Exception, Scope], None]) -> None:
    """Answer every exception with its document; ``take`` is told of each."""

    async def answer(request: Request, error: Exception) -> Response:
        refusal = refusal_of(error)
        if refusal.kind == "bad-method":
            refusal.members["allow"] = _allowed(request)
        take(refusal, error, request.scope)
        return problem(refusal, request.scope.get("state", {}).get("request_id"))

    for kind in (Refusal, RequestValidationError, HTTPException, DBAPIError, PoolTimeout, CurationError, TimeoutError):
        app.add_exception_handler(kind, answer)
