"""``/v1/sessions/{id}/choices``: which part of a step's super-batch to train on."""

from typing import Any

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from curation.service.arrow import write_table
from curation.service.errors import Refusal
from curation.service.http.admission.parsing import parse
from curation.service.http.admission.request_body import body_of, read_body
from curation.service.http.arrays import Matrix, matrix_of, read_arrays
from curation.service.http.bodies import ARROW, JSON, is_arrow, wants_arrow
from curation.service.http.dependencies import App, Selector
from curation.service.http.openapi import SessionId, arrow_body, problems, takes
from curation.service.manager.choices import ChoiceRequest, ChosenBatch, no_choice
from curation.service.session.choice import FACTORS, SIDES, RankPart

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


class ChoiceBody(BaseModel):
    """What a rank sends of its rows of a super-batch, in the order in which the step named them.

    With nothing sent it only asks. ``hard`` reads the learner alone, ``easy`` the reference alone: send no other.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    rank: int = 0
    step: int = Field(description="counted from 0 over the session")
    generation: int | None = Field(default=None, description="refuse if the session was rewound since this one")
    wait: float = Field(default=0, ge=0, description="seconds to wait for other ranks, before 409 missing-reports")
    learner_a: Matrix | None = Field(default=None, description="[n, D] embeddings by the model in training")
    learner_b: Matrix | None = None
    learner_scale: float = 1.0
    learner_bias: float = 0.0
    reference_a: Matrix | None = Field(default=None, description="[n, D'] embeddings by the reference model")
    reference_b: Matrix | None = None
    reference_scale: float = 1.0
    reference_bias: float = 0.0
    scores: list[float] | None = Field(
        default=None, description='[n] each row\'s own logit, in place of embeddings, in sessions with "joint": false'
    )


class ChoiceAnswer(BaseModel):
    """The rank's share of what was chosen, in pick order. With Arrow the four lists are columns, the rest metadata."""

    indices: list[int]
    weights: list[float]
    positions: list[int] = Field(description="in the super-batch of all ranks")
    scores: list[float] = Field(description="the logits, in nats, that the rows were drawn at")
    epoch: int
    step: int
    epoch_end: int = Field(description="the step after the epoch's last")
    end_of_epoch: bool
    end_of_session: bool
    generation: int


@router.post(
    "/{id}/choices",
    response_model=ChoiceAnswer,
    responses={
        200: {"content": {ARROW: arrow_body("ChoiceAnswer")}, "description": "The rank's share of the choice"},
        **problems(400, 401, 403, 404, 406, 409, 410, 413, 415, 422, 503),
    },
    openapi_extra=takes(ChoiceBody),
)
async def choose(id: SessionId, request: Request, app: App, caller: Selector) -> Response:
    """Send what JEST needs of a step's super-batch, and get the rows to train on: safe to repeat.

    A step of a session of jest hands each rank ``batch_size`` rows; together they are the super-batch. Once every rank
    has sent its part, each gets its share of the rows chosen; until then the answer, after ``wait`` seconds, is 409
    ``missing-reports``, and the part is stored: ask again without sending it. A choice stands until the session is
    rewound: the same report again gets the same answer, another one 409 ``report-differs``. With Arrow, ``learner_a``
    and so on are columns of fixed-size lists, ``scores`` one of floats, and the other fields a JSON object in the
    schema's metadata, under ``request``.
    """
    arrow = wants_arrow(request)
    sent, most = is_arrow(request), app.settings.max_body_bytes
    entry = await app.sessions.entry(caller, id)
    if entry.session.method.choosing is None:
        raise no_choice(entry.row)
    asked = await parse(app, _read, await read_body(request, app.settings), sent, most)
    body_of(request).parsed()
    batch, generation = await app.choices.choose(caller, id, asked)
    app.metrics.reports += asked.part is not None
    return _write(batch, generation, arrow)


def _read(body: bytes, arrow: bool, max_bytes: int) -> ChoiceRequest:
    asked, columns = read_arrays(body, arrow, ChoiceBody, (*SIDES, "scores"), max_bytes)
    return ChoiceRequest(asked.rank, asked.step, _part(asked, columns), asked.generation, asked.wait)


def _part(body: ChoiceBody, columns: dict[str, pa.Array]) -> RankPart | None:
    matrices = {name: matrix_of(name, columns.get(name, getattr(body, name))) for name in SIDES}
    sides = {name: matrix for name, matrix in matrices.items() if matrix is not None}
    scores = None
    if "scores" in columns:
        if not pa.types.is_floating(columns["scores"].type):
            raise Refusal("bad-body", f"column scores must be floats, not {columns['scores'].type}")
        scores = np.asarray(columns["scores"].to_numpy(), np.float64)
    elif body.scores is not None:
        scores = np.array(body.scores, np.float64)
    if not sides and scores is None:
        return None
    return RankPart(sides, scores, {name: getattr(body, name) for name in FACTORS})


def _write(batch: ChosenBatch, generation: int, arrow: bool) -> Response:
    arrays = {name: getattr(batch, name) for name in ("indices", "weights", "positions", "scores")}
    facts: dict[str, Any] = {
        name: getattr(batch, name) for name in ("epoch", "step", "epoch_end", "end_of_epoch", "end_of_session")
    }
    facts["generation"] = generation
    if not arrow:
        return Response(to_json({name: values.tolist() for name, values in arrays.items()} | facts), media_type=JSON)
    table = pa.table(arrays).replace_schema_metadata({name: str(int(value)) for name, value in facts.items()})
    return Response(write_table(table), media_type=ARROW)


SCHEMAS: tuple[type[BaseModel], ...] = (ChoiceBody,)
