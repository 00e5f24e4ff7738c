"""``/v1/capabilities``: what this server can do, for clients that are older or newer than it, or in other languages."""

import asyncio
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, Field

from curation.service.http.bodies import ARROW, JSON, StepBody
from curation.service.http.dependencies import App, Reader
from curation.service.http.layouts import LAYOUTS, ArrowLayout
from curation.service.http.openapi import problems
from curation.service.http.problems import KINDS
from curation.service.monitoring.collector import release
from curation.service.session.methods.registry import METHODS, method_kind
from curation.service.settings import Settings

router = APIRouter(tags=["operations"])

_LIMITS = ("body_seconds", "request_seconds", "resident_bytes", "select_threads", "owner_file_bytes")


class MethodCapability(BaseModel):
    """A method of sessions."""

    parameters: dict[str, Any] = Field(description="JSON schema of `parameters` of a session")
    table: str | None = Field(description="the table that an Arrow body may bring")
    bytes_per_candidate: int = Field(description="times N, at most resident_bytes")


class ProblemKind(BaseModel):
    """A kind of refusal: `type` of its documents is urn:curation:problem: and its name."""

    status: int
    title: str


class Capabilities(BaseModel):
    """What this server can do. Whether it has a feature, ask ``routes`` and ``step_fields``, not ``version``."""

    version: str
    media_types: list[str]
    methods: dict[str, MethodCapability]
    routes: list[str] = Field(examples=[["POST /v1/sessions/{id}/steps"]])
    step_fields: list[str] = Field(description="fields that a step request may have")
    limits: dict[str, int | float | None] = Field(description="settings that bound requests and sessions")
    problems: dict[str, ProblemKind]
    arrow: dict[str, ArrowLayout] = Field(description="layouts of Arrow bodies, by the name of the JSON model")


@router.get("/v1/capabilities", responses=problems(401, 403))
async def capabilities(request: Request, app: App, caller: Reader) -> Capabilities:
    """Methods with the schema of their parameters, routes, limits, kinds of problems and Arrow layouts."""
    methods = await asyncio.to_thread(_methods)
    return Capabilities(
        version=release(),
        media_types=[JSON, ARROW],
        methods=methods,
        routes=await asyncio.to_thread(_routes, request.app),
        step_fields=sorted(StepBody.model_fields),
        limits=limits_of(app.settings),
        problems={kind: ProblemKind(status=status, title=title) for kind, (status, title) in KINDS.items()},
        arrow=dict(LAYOUTS),
    )


def limits_of(settings: Settings) -> dict[str, int | float | None]:
    """The settings that bound what a client may send and ask for."""
    names = [name for name in Settings.model_fields if name.startswith("max_") or name in _LIMITS]
    return {name: getattr(settings, name) for name in names}


def _methods() -> dict[str, MethodCapability]:
    return {
        name: MethodCapability(
            parameters=kind.parameters.model_json_schema(),
            table=kind.table,
            bytes_per_candidate=kind.bytes_per_candidate,
        )
        for name, kind in ((name, method_kind(name)) for name in METHODS)
    }


def _routes(app: FastAPI) -> list[str]:
    return sorted(f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods)
