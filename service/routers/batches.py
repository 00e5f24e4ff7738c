"""``/v1/sessions/{id}/batches``: several steps, or all ranks of a host, in one request."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from curation.service.arrow import write_table
from curation.service.errors import Refusal
from curation.service.http.admission.parsing import parse
from curation.service.http.admission.request_body import body_of, read_body
from curation.service.http.arrays import check_count, read_arrays
from curation.service.http.bodies import ARROW, JSON, is_arrow, wants_arrow
from curation.service.http.dependencies import App, Selector
from curation.service.http.openapi import SessionId, arrow_body, problems, takes
from curation.service.manager.batches import MAX_BATCHES, BatchesRequest, RankBatch, take_batches
from curation.service.session.session import Report

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

_ROW_BYTES = 12
_COLUMNS = ("report_ranks", "report_steps", "losses")

Whole = Annotated[int, Field(ge=0, lt=1 << 62)]


class BatchesBody(BaseModel):
    """What some ranks ask for, and what they report: the lists ``report_ranks``, ``report_steps`` and ``losses`` have
    an entry for each report."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    ranks: list[Whole] = Field(default=[0], min_length=1, max_length=MAX_BATCHES)
    step: Whole | None = Field(default=None, description="the first step; null only reports")
    steps: int = Field(
        default=1, ge=1, le=MAX_BATCHES, description="how many steps; those beyond the epoch's end are left out"
    )
    generation: int | None = Field(
        default=None, description="refuse if the session was rewound or resized since this one"
    )
    wait: float = Field(default=0, ge=0, description="as in /steps: seconds to wait for other ranks at an epoch's end")
    report_ranks: list[Whole] = []
    report_steps: list[Whole] = []
    losses: list[list[float | None]] = Field(default=[], description="of each report, in the order of its indices")


class RankBatchAnswer(BaseModel):
    """One rank's batch at one step."""

    rank: int
    step: int
    indices: list[int]
    weights: list[float]


class BatchesAnswer(BaseModel):
    """The batches by step and rank, all of one epoch. With Arrow a row for each, and the rest in the metadata."""

    batches: list[RankBatchAnswer]
    epoch: int | None
    epoch_end: int | None = Field(description="the step after the epoch's last")
    end_of_session: bool = Field(description="whether the session ends with the last of these steps")
    generation: int
    ignored: list[int] = Field(
        description="steps that one of the ranks reported before with other losses; the first report counts. In "
        "Arrow's metadata a list in JSON, and only where there are some"
    )


@router.post(
    "/{id}/batches",
    response_model=BatchesAnswer,
    responses={
        200: {"content": {ARROW: arrow_body("BatchesAnswer")}, "description": "The batches"},
        **problems(400, 401, 403, 404, 406, 409, 410, 413, 415, 422, 503),
    },
    openapi_extra=takes(BatchesBody),
)
async def take_many(id: SessionId, request: Request, app: App, caller: Selector) -> Response:
    """As ``/steps``, for a run of steps and for several ranks: safe to repeat.

    With Arrow, ``report_ranks`` and ``report_steps`` are columns of integers, ``losses`` one of lists of floats, and
    the other fields a JSON object in the schema's metadata, under ``request``. The answer has the columns ``rank`` and
    ``step`` int64, ``indices`` list of int64, ``weights`` list of float32.
    """
    arrow, sent, settings = wants_arrow(request), is_arrow(request), app.settings
    await app.sessions.entry(caller, id)
    body = await read_body(request, settings)
    asked = await parse(app, _read, body, sent, settings.max_body_bytes, settings.max_reports)
    body_of(request).parsed()
    batches, generation, ignored = await take_batches(
        app.sessions, caller, id, asked, max_rows=app.settings.max_body_bytes // _ROW_BYTES
    )
    app.metrics.reports += len(asked.reports)
    app.metrics.batches += len(batches)
    app.metrics.rows += sum(len(one.batch.indices) for one in batches)
    return _write(batches, generation, ignored, arrow)


def _read(body: bytes, arrow: bool, max_bytes: int, max_reports: int) -> BatchesRequest:
    asked, columns = read_arrays(body, arrow, BatchesBody, _COLUMNS, max_bytes)
    reports = _reports(asked, columns, max_reports)
    return BatchesRequest(asked.ranks, asked.step, asked.steps, reports, asked.generation, asked.wait)


def _reports(body: BatchesBody, columns: dict[str, pa.Array], limit: int) -> list[Report]:
    for name in _COLUMNS:
        check_count("reports", len(columns.get(name, getattr(body, name))), limit)
    ranks, steps = (_integers(name, columns, getattr(body, name)) for name in ("report_ranks", "report_steps"))
    losses: list[Any] = _lists(columns["losses"]) if "losses" in columns else body.losses
    if not len(ranks) == len(steps) == len(losses):
        raise Refusal(
            "bad-body",
            f"report_ranks, report_steps and losses have {len(ranks)}, {len(steps)} and {len(losses)} entries: "
            "each report has one in all three",
        )
    with np.errstate(over="ignore"):
        return [
            Report(rank, step, np.asarray(values, np.float64).astype(np.float32))
            for rank, step, values in zip(ranks, steps, losses, strict=True)
        ]


def _integers(name: str, columns: dict[str, pa.Array], values: list[int]) -> list[int]:
    if name not in columns:
        return values
    if not pa.types.is_integer(columns[name].type):
        raise Refusal("bad-body", f"column {name} must be integers, not {columns[name].type}")
    return columns[name].to_pylist()  # type: ignore[no-any-return]


def _lists(column: pa.Array) -> list[Any]:
    kind = column.type
    if not isinstance(column, pa.ListArray | pa.LargeListArray) or not pa.types.is_floating(kind.value_type):
        raise Refusal("bad-body", f"column losses must be a list of floats for each report, not {kind}")
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=False)
    return [values[start:stop] for start, stop in pairwise(offsets)]


def _write(batches: Sequence[RankBatch], generation: int, ignored: list[int], arrow: bool) -> Response:
    last = batches[-1].batch if batches else None
    facts = {
        "epoch": last.epoch if last else None,
        "epoch_end": last.epoch_end if last else None,
        "end_of_session": last is not None and last.end_of_session,
        "generation": generation,
    }
    if not arrow:
        lines = [
            {
                "rank": rank,
                "step": batch.step,
                "indices": batch.indices.tolist(),
                "weights": batch.weights.tolist(),
            }
            for rank, batch in batches
        ]
        return Response(to_json({"batches": lines, **facts, "ignored": ignored}), media_type=JSON)
    offsets = np.cumsum([0, *(len(one.batch.indices) for one in batches)])
    columns = {
        "rank": pa.array([one.rank for one in batches], pa.int64()),
        "step": pa.array([one.batch.step for one in batches], pa.int64()),
        "indices": _list_column(offsets, [one.batch.indices for one in batches], np.int64),
        "weights": _list_column(offsets, [one.batch.weights for one in batches], np.float32),
    }
    metadata = {name: "" if value is None else str(int(value)) for name, value in facts.items()}
    metadata |= {"ignored": json.dumps(ignored)} if ignored else {}
    return Response(write_table(pa.table(columns).replace_schema_metadata(metadata)), media_type=ARROW)


def _list_column(offsets: Any, parts: list[Any], dtype: Any) -> pa.Array:
    values = np.concatenate([*parts, np.empty(0, dtype)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


SCHEMAS: tuple[type[BaseModel], ...] = (BatchesBody,)
