"""``/v1/sessions/{id}``, changed: rewound, taken past an epoch's end, or given other parameters."""

from fastapi import APIRouter

from curation.service.http.dependencies import App, Selector
from curation.service.http.openapi import SessionId, problems
from curation.service.routers.session_models import Closing, Rewind, SessionState
from curation.service.routers.sessions import session_state
from curation.service.session.spec import SpecChange

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.post("/{id}/rewind", responses=problems(400, 401, 403, 404, 409, 410, 422, 503))
async def rewind_session(id: SessionId, asked: Rewind, app: App, caller: Selector) -> SessionState:
    """Go back to a step, for a training that resumes from an older checkpoint.

    The generation rises: a request that names the old one is refused. With ``request`` it is safe to repeat.
    """
    return await session_state(app, await app.sessions.rewind(caller, id, asked.step, asked.request))


@router.post("/{id}/close-epoch", responses=problems(400, 401, 403, 404, 409, 422, 503))
async def close_epoch(id: SessionId, asked: Closing, app: App, caller: Selector) -> SessionState:
    """Go on from an epoch without the reports that are missing of it: safe to repeat.

    For a session that waits for a rank that will not come back. Reports that come later are stored, and do not count.
    """
    return await session_state(app, await app.sessions.close_epoch(caller, id, asked.epoch))


@router.patch("/{id}", responses=problems(400, 401, 403, 404, 409, 422, 503))
async def change_session(id: SessionId, asked: SpecChange, app: App, caller: Selector) -> SessionState:
    """Change what may change of a session while it runs: ``on_missing``, ``non_finite``, and ``epochs``, upwards.

    Epochs that were handed out stay as they are. A method that plans for a number of epochs, as InfoBatch does with
    ``delta``, keeps to those the session was created with.
    """
    return await session_state(app, await app.sessions.change(caller, id, asked))
