"""Models of the flight recorder's routes, and how they are made of what it found."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from curation.service.http.rows import Cell, Rows
from curation.service.manager.spikes import Outlier
from curation.service.manager.trace_results import RowVisits, Spike, Spikes, StepRows


class TracedRow(BaseModel):
    """One row of a step."""

    rank: int
    position: int = Field(description="in the rank's batch, or in its share of what was chosen")
    row: int
    weight: float
    loss: float | None = Field(description="null: not reported, or not finite")
    reported: bool
    score: float | None = Field(default=None, description="the logit, in nats, that the row was chosen at")
    cells: list[Cell] | None = Field(default=None, description="the row's values, where values were asked for")


class StepTrace(BaseModel):
    """Rows of a step on all ranks, or on one."""

    session: str
    generation: int
    step: int
    epoch: int
    chosen: bool | None = Field(description="false: a super-batch of which nothing is chosen yet; null: none is chosen")
    rows: list[TracedRow]
    start: int
    total: int = Field(description="rows of the step, on the ranks asked for")
    reported: int = Field(description="those whose loss was reported")
    columns: list[str] | None = Field(default=None, description="names of the cells")
    text: str | None = Field(default=None, description="the column that says most to a reader")
    images: list[str] = Field(default=[], description="columns of pictures")


class TracedVisit(BaseModel):
    """One handing out of a row."""

    epoch: int
    step: int
    rank: int
    position: int
    weight: float
    loss: float | None = Field(description="null: not reported, or not finite")
    reported: bool
    chosen: bool | None = Field(description="whether it was chosen of its super-batch; null where none is chosen")
    score: float | None


class RowTrace(BaseModel):
    """Every visit of a row, in the epochs from ``first_epoch`` on. Pass ``next`` as ``first`` for the following."""

    session: str
    generation: int
    row: int
    first_epoch: int
    visits: list[TracedVisit]
    next: int | None


class TracedSpike(BaseModel):
    """A step whose mean loss stands out."""

    step: int
    epoch: int
    mean: float | None
    median: float | None = Field(description="of the means of the steps before")
    z: float | None = Field(description="robust score; null: half of the losses or more are not finite")
    losses: int
    unknown: int = Field(description="losses that are not finite")
    steps: int = Field(description="steps in a row of which half of the losses or more are not finite; else 1")
    rows: list[TracedRow] | None = Field(
        description="those of the highest losses; null: the server had no time for them, ask for the step's rows"
    )


class SpikeList(BaseModel):
    """Spikes among the steps ``first .. end - 1``, the worst first. ``next``: the first step that was not read."""

    session: str
    generation: int
    spikes: list[TracedSpike]
    first: int
    end: int
    next: int | None


def traced_rows(rows: StepRows, values: Rows | None = None) -> list[TracedRow]:
    """A model for each row; ``values`` of the same rows."""
    scores = [None] * len(rows.rows) if rows.scores is None else rows.scores.tolist()
    cells = [None] * len(rows.rows) if values is None else values.cells
    columns = (rows.ranks, rows.positions, rows.rows, rows.weights, rows.losses, rows.reported)
    return [
        TracedRow(
            rank=rank,
            position=position,
            row=row,
            weight=weight,
            loss=_finite(loss),
            reported=reported,
            score=score,
            cells=own,
        )
        for rank, position, row, weight, loss, reported, score, own in zip(
            *(column.tolist() for column in columns), scores, cells, strict=True
        )
    ]


def step_trace(
    session: str, generation: int, rows: StepRows, *, by_loss: bool, start: int, limit: int, values: Any = None
) -> StepTrace:
    """A page of a step's rows. ``values``: gives the :class:`Rows` at some positions of the session's dataset."""
    order = rows.by_loss() if by_loss else np.arange(len(rows.rows))
    page = rows.take(order[start : start + limit])
    shown = None if values is None else values(page.rows)
    return StepTrace(
        session=session,
        generation=generation,
        step=rows.step,
        epoch=rows.epoch,
        chosen=rows.chosen,
        rows=traced_rows(page, shown),
        start=start,
        total=len(rows.rows),
        reported=int(np.count_nonzero(rows.reported)),
        columns=None if shown is None else shown.columns,
        text=None if shown is None else shown.text,
        images=[] if shown is None else shown.images,
    )


def step_table(rows: StepRows, generation: int) -> pa.Table:
    """A step's rows as columns; a loss that was not reported is null, one that is not finite stays as it is."""
    columns = {
        "rank": pa.array(rows.ranks),
        "position": pa.array(rows.positions),
        "row": pa.array(rows.rows),
        "weight": pa.array(rows.weights),
        "loss": pa.array(rows.losses, mask=~rows.reported),
        "reported": pa.array(rows.reported),
    }
    if rows.scores is not None:
        columns["score"] = pa.array(rows.scores)
    chosen = "" if rows.chosen is None else str(int(rows.chosen))
    about = {"epoch": str(rows.epoch), "step": str(rows.step), "chosen": chosen, "generation": str(generation)}
    return pa.table(columns).replace_schema_metadata(about)


def row_trace(session: str, generation: int, row: int, found: RowVisits) -> RowTrace:
    """The visits of a row."""
    visits = [
        TracedVisit(**visit._replace(loss=_finite(visit.loss))._asdict(), reported=visit.loss is not None)
        for visit in found.visits
    ]
    return RowTrace(
        session=session, generation=generation, row=row, first_epoch=found.first, visits=visits, next=found.next
    )


def spike_list(session: str, generation: int, found: Spikes) -> SpikeList:
    """The steps that stand out."""
    return SpikeList(
        session=session,
        generation=generation,
        spikes=[_spike(spike) for spike in found.spikes],
        first=found.first,
        end=found.end,
        next=found.next,
    )


def _spike(spike: Spike) -> TracedSpike:
    about: Outlier = spike.outlier
    rows = None if spike.rows is None else traced_rows(spike.rows)
    return TracedSpike(**about._asdict(), epoch=spike.epoch, rows=rows)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
