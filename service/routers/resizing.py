"""``/v1/sessions/{id}/resize``: ranks die and join."""

from fastapi import APIRouter, Request
from pydantic import BaseModel

from curation.service.http.bodies import read_model
from curation.service.http.dependencies import App, Selector
from curation.service.http.openapi import SessionId, problems, takes_json
from curation.service.manager.resizing import Resize, resize
from curation.service.routers.session_models import Resizing, SessionState
from curation.service.routers.sessions import session_state

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.post(
    "/{id}/resize",
    responses=problems(400, 401, 403, 404, 409, 410, 413, 415, 422, 503),
    openapi_extra=takes_json(Resizing),
)
async def resize_session(id: SessionId, request: Request, app: App, caller: Selector) -> SessionState:
    """Lay out what is left over another number of ranks, from a step on: what was handed out and not reported is handed
    out again, so that every row of every epoch is reported once.

    As by a rewind, reports of that step and later ones are forgotten, and the generation rises. The later epochs have
    the new ranks, too. Safe to repeat: the same request of the same ``generation`` finds that it was done.
    ``segments`` of the answer ends with what was laid out, and where it begins.
    """
    asked = await read_model(request, Resizing)
    entry, _ = await resize(app.sessions, caller, id, Resize(**asked.model_dump()), app.settings)
    return await session_state(app, entry)


SCHEMAS: tuple[type[BaseModel], ...] = (Resizing,)
