"""Losses of a session as the dashboard draws them: bounded samples of what the store holds, whatever its size."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field
from sqlalchemy import select

from curation.service.manager.memory.entry import Entry
from curation.service.monitoring.standing import is_broken
from curation.service.session.session import LOSS, Session
from curation.service.store import Store
from curation.service.store.tables import reports

POINTS = 240
RANKS = 8
VALUES = 1 << 18
BINS = 30
EPOCH_STEPS = 64
WEIGHT_STEPS = 32
_NARROWING = 64

Values = npt.NDArray[np.float64]


class Point(BaseModel):
    """Losses of one step: their mean, and the range of the middle 80 %, of those that are finite; null: none is."""

    step: int
    epoch: int
    mean: float | None
    low: float | None
    high: float | None
    losses: int
    unknown: int = Field(description="losses that are not finite")


class EpochLosses(BaseModel):
    """Losses of the sampled steps of one epoch."""

    number: int
    mean: float | None
    losses: int
    unknown: int = Field(description="losses that are not finite")


class Divergence(BaseModel):
    """Where the newest losses stopped being finite: half of them or more are not, from ``step`` to the newest."""

    step: int
    epoch: int


class Curve(BaseModel):
    """The losses of some steps, thinned."""

    points: list[Point]
    epochs: list[EpochLosses]
    first: int = Field(description="the first step of those that were sampled")
    every: int = Field(description="one step of so many was read; the last one always")
    ranks: int = Field(description="ranks that were read")
    diverged: Divergence | None


class Distribution(BaseModel):
    """Losses of one epoch's sampled steps, in bins of their own. Those beyond ``edges`` are in the end bins."""

    epoch: int
    edges: list[float]
    counts: list[int]
    before: list[int] | None = Field(description="of the epoch before, in the same bins")
    mean: float
    losses: int
    unknown: int


class Weight(BaseModel):
    """A weight, and its share among the rows that the newest epoch hands out."""

    weight: float
    share: float


class _Sample(NamedTuple):
    step: int
    losses: Values

    @property
    def finite(self) -> Values:
        return self.losses[np.isfinite(self.losses)]


def curve(store: Store, entry: Entry, last: int | None, window: tuple[int, int] | None = None) -> Curve:
    """The losses up to ``last``, the last step reported, or of the window (first, last) of steps.

    At most :data:`POINTS` steps, :data:`RANKS` ranks of each, and :data:`VALUES` losses or little more.
    """
    session = entry.session
    points, ranks = _bounds(entry, POINTS)
    first, end = _first_step(entry), -1 if last is None else last
    if window is not None:
        first, end = max(first, window[0]), min(end, window[1])
    if first > end:
        return Curve(points=[], epochs=[], first=first, every=1, ranks=ranks, diverged=None)
    steps, every = thinned(first, end, points)
    samples = _samples(store, entry.row.key, steps, ranks)
    drawn = [_point(session, sample) for sample in samples]
    summaries = []
    for number in sorted({point.epoch for point in drawn}):
        parts = [sample for sample, point in zip(samples, drawn, strict=True) if point.epoch == number]
        finite = np.concatenate([part.finite for part in parts])
        count = sum(len(part.losses) for part in parts)
        mean = float(finite.mean()) if len(finite) else None
        summaries.append(EpochLosses(number=number, mean=mean, losses=count, unknown=count - len(finite)))
    began = _divergence(store, entry.row.key, samples, ranks)
    diverged = None if began is None else Divergence(step=began, epoch=session.epoch_of(began))
    return Curve(points=drawn, epochs=summaries, first=first, every=every, ranks=ranks, diverged=diverged)


def distribution(store: Store, entry: Entry, number: int, last: int) -> Distribution | None:
    """The losses of an epoch, beside those of the epoch before; None where none is finite, or none was reported."""
    samples = _of_epoch(store, entry, number, last)
    losses = np.concatenate([np.empty(0), *(sample.losses for sample in samples)])
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        return None
    edges = _edges(finite)
    before = None
    if number > entry.row.base:
        earlier = np.concatenate([np.empty(0), *(s.finite for s in _of_epoch(store, entry, number - 1, last))])
        before = _counts(earlier, edges) if len(earlier) else None
    return Distribution(
        epoch=number,
        edges=edges.tolist(),
        counts=_counts(finite, edges),
        before=before,
        mean=float(finite.mean()),
        losses=len(losses),
        unknown=len(losses) - len(finite),
    )


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


def _bounds(entry: Entry, most: int) -> tuple[int, int]:
    """How many steps are read, and how many ranks of each."""
    batch = entry.row.spec.batch_size
    points = int(np.clip(VALUES // batch, 16, most))
    return points, int(np.clip(VALUES // (batch * points), 1, min(entry.session.world_size, RANKS)))


def _first_step(entry: Entry) -> int:
    return entry.session.span_of(entry.row.base)[0] if entry.row.base < entry.session.open_epochs else 0


def _of_epoch(store: Store, entry: Entry, number: int, last: int) -> list[_Sample]:
    first, end = entry.session.span_of(number)
    steps, ranks = _bounds(entry, EPOCH_STEPS)
    if first > last:
        return []
    return _samples(store, entry.row.key, thinned(first, min(end - 1, last), steps)[0], ranks)


def _point(session: Session[Any], sample: _Sample) -> Point:
    finite = sample.finite
    low, mean, high = (None, None, None)
    if len(finite):
        low, high = (float(value) for value in np.quantile(finite, [0.1, 0.9]))
        mean = float(finite.mean())
    counts = {"losses": len(sample.losses), "unknown": len(sample.losses) - len(finite)}
    return Point(step=sample.step, epoch=session.epoch_of(sample.step), mean=mean, low=low, high=high, **counts)


def _divergence(store: Store, key: int, samples: Sequence[_Sample], ranks: int) -> int | None:
    """The step from which on losses are broken, if the newest are; steps between samples are looked at, too."""
    sound, began = _last_sound(samples)
    while began is not None and sound is not None and began - sound > 1:
        steps = np.unique(np.linspace(sound + 1, began - 1, min(began - sound - 1, _NARROWING)).astype(np.int64))
        found = _samples(store, key, steps.tolist(), ranks)
        if not found:
            break
        later, first = _last_sound(found)
        began = began if first is None else first
        sound = max(sound, steps[-1].item()) if first is None else sound if later is None else later
    return began


def _last_sound(samples: Sequence[_Sample]) -> tuple[int | None, int | None]:
    """The last step of which most losses are finite, and the one after it, where the newest is not of that kind."""
    began = None
    for sample in reversed(samples):
        if not is_broken(sample.losses):
            return sample.step, began
        began = sample.step
    return None, began


def _samples(store: Store, key: int, steps: Sequence[int], ranks: int) -> list[_Sample]:
    """What was reported of some steps, by the first ranks."""
    query = (
        select(reports.c.step, reports.c.losses)
        .where(reports.c.session == key, reports.c.step.in_(steps), reports.c.rank < ranks)
        .order_by(reports.c.step, reports.c.rank)
    )
    by_step: dict[int, list[npt.NDArray[np.float32]]] = {}
    with store.engine.connect() as connection:
        for step, data in connection.execute(query):
            by_step.setdefault(step, []).append(np.frombuffer(data, LOSS))
    return [_Sample(step, np.concatenate(parts).astype(np.float64)) for step, parts in by_step.items() if parts]


def _counts(losses: Values, edges: Values) -> list[int]:
    counts: list[int] = np.histogram(np.clip(losses, edges[0], edges[-1]), edges)[0].tolist()
    return counts


def _edges(losses: Values) -> Values:
    low, high = np.quantile(losses, [0.001, 0.999])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)
