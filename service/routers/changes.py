"""``/v1/sessions/{id}``, changed: rewound to a step, or resized to other ranks."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError

from curation.service.http.bodies import JSON
from curation.service.http.dependencies import App, Selector
from curation.service.http.openapi import SessionId, problems
from curation.service.http.problems import invalid_model
from curation.service.manager.resizing import Resize, resize
from curation.service.routers.session_models import Resizing, Rewind, SessionState
from curation.service.routers.sessions import session_state

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.post("/{id}/rewind", responses=problems(400, 401, 403, 404, 409, 410, 422, 503))
async def rewind_session(id: SessionId, asked: Rewind, app: App, caller: Selector) -> SessionState:
    """Go back to a step, for a training that resumes from an older checkpoint.

    The generation rises: a request that names the old one is refused.
    """
    return await session_state(app, await app.sessions.rewind(caller, id, asked.step))


@router.post(
    "/{id}/resize",
    responses=problems(400, 401, 403, 404, 409, 410, 413, 422, 503),
    openapi_extra={
        "requestBody": {"required": True, "content": {JSON: {"schema": {"$ref": "#/components/schemas/Resizing"}}}}
    },
)
async def resize_session(id: SessionId, request: Request, app: App, caller: Selector) -> SessionState:
    """Lay out what is left over another number of ranks, from a step on: what was handed out and not reported is handed
    out again, so that every row of every epoch is reported once.

    As by a rewind, reports of that step and later ones are forgotten, and the generation rises. The later epochs have
    the new ranks, too. Safe to repeat: the same request of the same ``generation`` finds that it was done.
    ``segments`` of the answer ends with what was laid out, and where it begins.
    """
    try:
        asked = Resizing.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid_model(error) from error
    entry, _ = await resize(app.sessions, caller, id, Resize(**asked.model_dump()))
    return await session_state(app, entry)


SCHEMAS: tuple[type[BaseModel], ...] = (Resizing,)
