"""Segments of a session: from which step on how many ranks share what is left of an epoch.

An epoch's order of rows is fixed by the session's seed and state. How it falls into steps and ranks is a list of
segments, one for each time that the session was resized in this epoch: the rows that were not reported by then are
split anew, by the rule of :mod:`curation.selectors.samplers.split`, and the epochs after it have the new ranks too.
Work and memory are in the batches that were not reported, not in rows.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from curation.selectors.samplers.split import ElasticSplit, Spans
from curation.service.session.epochs import Ordered, visits_of
from curation.service.session.protocols import Indices, Visit, Weights

MAX_WORLD_SIZE = 65_536


class _SegmentLine(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    steps: int = Field(ge=0, lt=1 << 62)
    world_size: int = Field(ge=1, le=MAX_WORLD_SIZE)
    left: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Segment:
    """What a resize left of an epoch.

    Args:
        epoch: the epoch that goes on.
        first_step: the first step of the new ranks, counted over the session.
        steps: how many they need; 0 where nothing was left.
        world_size: ranks, of the later epochs too.
        left: where the rows that are left lie in the epoch's order.
        replaced: the session's generation before, which the request named.
    """

    epoch: int
    first_step: int
    steps: int
    world_size: int
    left: Spans
    replaced: int

    @property
    def end(self) -> int:
        return self.first_step + self.steps

    def pack(self) -> bytes:
        """JSON of what a checkpoint carries beside epoch and first step."""
        return json.dumps({"steps": self.steps, "world_size": self.world_size, "left": self.left.tolist()}).encode()

    @classmethod
    def unpack(cls, epoch: int, first_step: int, data: bytes) -> "Segment":
        """The inverse of :meth:`pack`; raises ``ValueError`` where it is not one."""
        line = _SegmentLine.model_validate_json(data)
        left = np.array(line.left, np.int64).reshape(-1, 2)
        return cls(epoch, first_step, line.steps, line.world_size, left, replaced=-1)


class Run(NamedTuple):
    """Epochs of ``steps`` steps each, from ``epoch`` on, which begins at ``first_step``."""

    epoch: int
    first_step: int
    steps: int


class Part(NamedTuple):
    """Steps of one epoch that the same ranks share. ``left`` None: it began with the whole order."""

    first_step: int
    end: int
    split: ElasticSplit
    left: Spans | None

    def pieces(self, rank: int, step: int) -> Spans:
        """Where a rank's batch of a step of the session lies in the epoch's order."""
        return self.located(np.array([self.split.span(rank, step - self.first_step)], np.int64))

    def located(self, spans: Spans) -> Spans:
        """Where spans of the split lie in the epoch's order, which is not changed where they began with all of it."""
        if self.left is None:
            return spans
        lengths = np.diff(self.left)[:, 0]
        before = np.cumsum(lengths) - lengths + self.split.rows - int(lengths.sum())
        starts, stops = (np.clip(spans[:, [at]] - before, 0, lengths) + self.left[:, 0] for at in (0, 1))
        located: Spans = np.stack([starts, stops], axis=2)[stops > starts]
        return located

    def place_of(self, row: int) -> int | None:
        """Where a row of the epoch's order stands in the split; None where it was not left."""
        if self.left is None:
            return row
        span = int(np.searchsorted(self.left[:, 0], row, side="right")) - 1
        if span < 0 or row >= self.left[span, 1]:
            return None
        after = int(np.diff(self.left[span:])[:, 0].sum()) - (row - int(self.left[span, 0]))
        return self.split.rows - after

    def is_copy(self, rank: int, step: int) -> bool:
        """Whether the next rank begins at the same row: there were fewer rows than ranks, and this is its only one."""
        if self.left is None or not self.split.scarce or rank + 1 == self.split.world_size:
            return False
        start, stop = self.split.span(rank, step - self.first_step)
        return stop > start == self.split.span(rank + 1, step - self.first_step)[0]

    def due(self) -> npt.NDArray[np.bool_]:
        """bool[steps, world_size]: which batches have rows."""
        due = np.ones((self.end - self.first_step, self.split.world_size), bool)
        if len(due):
            for rank in range(self.split.world_size):
                start, stop = self.split.span(rank, len(due) - 1)
                due[-1, rank] = stop > start
        return due


@dataclass(frozen=True, eq=False)
class Layout:
    """How an epoch falls into steps and ranks.

    Args:
        whole: the split of the whole order, over the ranks that it opened with.
        first_step: the epoch's first, counted over the session.
        segments: those of this epoch, by first step.
    """

    whole: ElasticSplit
    first_step: int
    segments: Sequence[Segment] = ()

    @property
    def rows(self) -> int:
        return self.whole.rows

    @property
    def end(self) -> int:
        """The step after the epoch's last."""
        return self.segments[-1].end if self.segments else self.first_step + self.whole.steps

    def check(self) -> None:
        """Raise ``ValueError`` where the segments, out of a checkpoint, are none of this epoch."""
        end = self.first_step + self.whole.steps
        begun = self.first_step
        for segment in self.segments:
            left, bounds = segment.left, segment.left.reshape(-1)
            if not begun <= segment.first_step <= end:
                raise ValueError(f"a segment of epoch {segment.epoch} begins at step {segment.first_step}")
            if (
                (np.diff(bounds) < 0).any()
                or (np.diff(left) < 1).any()
                or (bounds < 0).any()
                or (bounds > self.rows).any()
            ):
                raise ValueError(f"what the segment at step {segment.first_step} has left is not in its epoch")
            if self.whole.rest(segment.world_size, left).steps != segment.steps:
                raise ValueError(f"the segment at step {segment.first_step} has not {segment.steps} steps")
            begun, end = segment.first_step + 1, segment.end
        if end <= self.first_step:
            raise ValueError("an epoch has no steps")

    @cached_property
    def parts(self) -> list[Part]:
        """At least one; a step belongs to the last that begins at it or before."""
        ends = [*(segment.first_step for segment in self.segments), self.end]
        parts = [Part(self.first_step, ends[0], self.whole, None)]
        for segment, end in zip(self.segments, ends[1:], strict=True):
            split = self.whole.rest(segment.world_size, segment.left)
            parts.append(Part(segment.first_step, end, split, segment.left))
        return parts

    def part(self, step: int) -> Part:
        """The part that a step of the session belongs to."""
        return next(part for part in reversed(self.parts) if part.first_step <= step)

    def length(self, rank: int, step: int) -> int:
        """Rows of a rank's batch at a step of the session."""
        part = self.part(step)
        start, stop = part.split.span(rank, step - part.first_step)
        return stop - start


class LaidOut(Ordered):
    """An epoch that was resized: its order as it was, its steps by segments.

    Where fewer rows were left than ranks, a row goes to several ranks, so that none waits for one with an empty batch;
    its weight is 0 on all of them but one, so that it counts once.
    """

    def __init__(self, order: Ordered, layout: Layout) -> None:
        super().__init__(layout.whole, order.take, **order.kept)
        self.steps = layout.end - layout.first_step
        self._layout = layout

    def length(self, rank: int, step: int) -> int:
        return self._layout.length(rank, step + self._layout.first_step)

    def batch(self, rank: int, step: int) -> tuple[Indices, Weights]:
        step += self._layout.first_step
        part = self._layout.part(step)
        taken = [self.take(start, stop) for start, stop in part.pieces(rank, step).tolist()] or [self.take(0, 0)]
        indices = np.concatenate([rows for rows, _ in taken])
        weights = np.concatenate([weights for _, weights in taken])
        return indices, np.zeros_like(weights) if part.is_copy(rank, step) else weights

    def _visits_of(self, place: int) -> Iterator[Visit]:
        for part in self._layout.parts:
            within = part.place_of(place)
            if within is not None:
                before = part.first_step - self._layout.first_step
                for visit in visits_of(part.split, part.end - part.first_step, within):
                    yield visit._replace(step=visit.step + before)


def left_at(layout: Layout, step: int, reported: Mapping[int, Collection[int]] | None) -> Spans:
    """Where the rows of an epoch lie that nobody reported, as of a step of it or its end.

    Args:
        layout: the epoch, without segments that begin later.
        step: rows of this step and later ones are left, reported or not.
        reported: by step of the layout's last part, the ranks that reported it; None: all reported all earlier steps.
    """
    part = layout.parts[-1]
    split, ranks = part.split, part.split.world_size
    spans: list[tuple[int, int]] = []
    earlier = 0 if reported is None else min(step, part.end) - part.first_step
    for local in range(earlier):
        reporting = (reported or {}).get(part.first_step + local, ())
        if not reporting:
            spans.append((split.span(0, local)[0], split.span(ranks - 1, local)[1]))
        elif len(reporting) < ranks:
            silent = (rank for rank in range(ranks) if rank not in reporting)
            spans += [split.span(rank, local) for rank in silent if not part.is_copy(rank, part.first_step + local)]
    if step < part.end:
        spans.append((split.span(0, step - part.first_step)[0], split.rows))
    return joined(part.located(joined(np.array(spans, np.int64).reshape(-1, 2))))


def joined(spans: Spans) -> Spans:
    """The same rows in as few spans as possible, rising; the spans share none."""
    spans = spans[spans[:, 1] > spans[:, 0]]
    spans = spans[np.argsort(spans[:, 0])]
    seams = np.flatnonzero(spans[1:, 0] == spans[:-1, 1])
    return np.stack([np.delete(spans[:, 0], seams + 1), np.delete(spans[:, 1], seams)], axis=1)


def world_size_of(epoch: int, world_size: int, segments: Sequence[Segment]) -> int:
    """The ranks that an epoch opens with, in a session that was made for ``world_size``."""
    before = [segment.world_size for segment in segments if segment.epoch < epoch]
    return before[-1] if before else world_size


def runs(segments: Sequence[Segment], world_size: int, steps: Callable[[int], int]) -> Iterator[Run]:
    """Runs of epochs that are as long as each other, where an epoch's steps depend on the ranks alone; those of an
    epoch that was resized are as many as its last segment says."""
    run = Run(0, 0, steps(world_size))
    yield run
    for index, segment in enumerate(segments):
        if index + 1 < len(segments) and segments[index + 1].epoch == segment.epoch:
            continue
        first = run.first_step + (segment.epoch - run.epoch) * run.steps
        yield Run(segment.epoch, first, segment.end - first)
        run = Run(segment.epoch + 1, segment.end, steps(segment.world_size))
        yield run
