"""Sessions as the dashboard draws them: bounded samples of what the store holds, whatever the size of a session."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field
from sqlalchemy import func, select

from curation.service.manager.sessions import Entry
from curation.service.session.session import LOSS, Session
from curation.service.session.spec import SessionSpec
from curation.service.store import Store
from curation.service.store.tables import epochs, reports, sessions

POINTS = 240
RANKS = 8
VALUES = 1 << 19
BINS = 30
WEIGHT_STEPS = 32


class Line(BaseModel):
    """One session of the list, and how far it is."""

    id: str
    method: str
    size: int
    epochs: int
    world_size: int
    created: float
    open_epoch: int | None = Field(description="the latest epoch that was opened; null where epochs are all open")
    last_step: int | None = Field(description="the last step reported")


class Point(BaseModel):
    """Losses of one step: their mean, and the range that holds the middle 80 % of them."""

    step: int
    epoch: int
    mean: float
    low: float
    high: float


class EpochLosses(BaseModel):
    """Losses of the sampled steps of one epoch. ``counts`` are over the bins of all epochs."""

    number: int
    mean: float
    values: int
    counts: list[int]


class Curve(BaseModel):
    """The losses of a session, thinned. Losses beyond ``edges`` are counted in the end bins."""

    points: list[Point]
    epochs: list[EpochLosses]
    edges: list[float]
    every: int = Field(description="one step of so many was read; the last one always")
    ranks: int = Field(description="ranks that were read")


class Weight(BaseModel):
    """A weight, and its share among the rows that the newest epoch hands out."""

    weight: float
    share: float


class _Sample(NamedTuple):
    step: int
    losses: npt.NDArray[np.float64]


def newest_sessions(store: Store, owner: str | None, before: int | None, limit: int) -> tuple[list[Line], int | None]:
    """Sessions of an owner (None: everyone's), newest first, and what to pass as ``before`` for the following ones."""
    opened = select(func.max(epochs.c.number)).where(epochs.c.session == sessions.c.key).scalar_subquery()
    last = select(func.max(reports.c.step)).where(reports.c.session == sessions.c.key).scalar_subquery()
    query = select(sessions, opened.label("opened"), last.label("last")).order_by(sessions.c.key.desc()).limit(limit)
    if before is not None:
        query = query.where(sessions.c.key < before)
    if owner is not None:
        query = query.where(sessions.c.owner == owner)
    lines, key = [], 0
    with store.engine.connect() as connection:
        for row in connection.execute(query):
            spec, key = SessionSpec.model_validate_json(row.spec), row.key
            lines.append(
                Line(
                    id=row.id,
                    method=spec.method,
                    size=row.size,
                    epochs=spec.epochs,
                    world_size=spec.world_size,
                    created=row.created,
                    open_epoch=row.opened,
                    last_step=row.last,
                )
            )
    return lines, key if len(lines) == limit else None


def position(entry: Entry, last_reported: int | None) -> int | None:
    """The furthest step that any rank asked for or reported; None before the first."""
    known = [*entry.asked.values(), *([] if last_reported is None else [last_reported])]
    return max(known) if known else None


def curve(store: Store, entry: Entry, last: int | None) -> Curve:
    """The losses up to ``last``, the last step reported: at most :data:`POINTS` steps, :data:`RANKS` ranks of each."""
    session, batch = entry.session, entry.row.spec.batch_size
    points = int(np.clip(VALUES // batch, 16, POINTS))
    ranks = int(np.clip(VALUES // (batch * points), 1, min(entry.row.spec.world_size, RANKS)))
    if last is None:
        return Curve(points=[], epochs=[], edges=[], every=1, ranks=ranks)
    first = session.span_of(entry.row.base)[0] if entry.row.base < session.open_epochs else 0
    steps, every = thinned(min(first, last), last, points)
    samples = _samples(store, entry.row.key, steps, ranks)
    if not samples:
        return Curve(points=[], epochs=[], edges=[], every=every, ranks=ranks)
    edges = _edges(np.concatenate([sample.losses for sample in samples]))
    by_epoch: dict[int, list[npt.NDArray[np.float64]]] = {}
    drawn = []
    for step, losses in samples:
        epoch = session.epoch_of(step)
        by_epoch.setdefault(epoch, []).append(losses)
        low, high = np.quantile(losses, [0.1, 0.9])
        drawn.append(Point(step=step, epoch=epoch, mean=float(losses.mean()), low=float(low), high=float(high)))
    summaries = []
    for number, parts in by_epoch.items():
        losses = np.concatenate(parts)
        counts = np.histogram(np.clip(losses, edges[0], edges[-1]), edges)[0]
        summaries.append(
            EpochLosses(number=number, mean=float(losses.mean()), values=len(losses), counts=counts.tolist())
        )
    return Curve(points=drawn, epochs=summaries, edges=edges.tolist(), every=every, ranks=ranks)


def thinned(first: int, last: int, points: int) -> tuple[list[int], int]:
    """About ``points`` of the steps ``first`` to ``last``, and at which distance; the last is always among them.

    The distance is a power of two, so that a curve grows at its end and keeps its shape at every new step.
    """
    every = 1 << (-(-(last + 1 - first) // points) - 1).bit_length()
    return sorted({*range(-(-first // every) * every, last + 1, every), last}), every


def weights(session: Session[Any], number: int) -> list[Weight]:
    """The weights of rank 0's rows at a few steps of an epoch, the commonest first; empty where it is not in memory."""
    epoch = session.epoch(number)
    if epoch is None:
        return []
    steps = np.unique(np.linspace(0, epoch.steps - 1, min(epoch.steps, WEIGHT_STEPS)).astype(np.int64))
    handed_out = np.concatenate([epoch.batch(0, int(step))[1] for step in steps])
    values, counts = np.unique(handed_out, return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:8]
    return [Weight(weight=float(values[i]), share=float(counts[i] / len(handed_out))) for i in commonest]


def sizes_of(lengths: npt.NDArray[Any], limit: int = 12) -> dict[str, int]:
    """How many batches there are of each size, the commonest sizes first."""
    sizes, counts = np.unique(lengths, return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:limit]
    return {str(sizes[i]): int(counts[i]) for i in commonest}


def _samples(store: Store, key: int, steps: Sequence[int], ranks: int) -> list[_Sample]:
    query = (
        select(reports.c.step, reports.c.losses)
        .where(reports.c.session == key, reports.c.step.in_(steps), reports.c.rank < ranks)
        .order_by(reports.c.step, reports.c.rank)
    )
    by_step: dict[int, list[npt.NDArray[np.float64]]] = {}
    with store.engine.connect() as connection:
        for step, data in connection.execute(query):
            losses = np.frombuffer(data, LOSS)
            by_step.setdefault(step, []).append(losses[np.isfinite(losses)].astype(np.float64))
    joined = [_Sample(step, np.concatenate(parts)) for step, parts in by_step.items()]
    return [sample for sample in joined if len(sample.losses)]


def _edges(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low, high = np.quantile(losses, [0.001, 0.999])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)
