"""Segments in the store: how a session's epochs go on over other ranks, and the change that makes one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, delete, func, insert, or_, select

from curation.service.session.segments import Segment
from curation.service.store.tables import reports, segments


def read_segments(connection: Connection, key: int) -> list[Segment]:
    """The segments of a session, by first step."""
    query = select(segments).where(segments.c.session == key).order_by(segments.c.epoch, segments.c.first_step)
    return [_segment(row) for row in connection.execute(query)]


def world_sizes(connection: Connection, keys: Sequence[int]) -> dict[int, int]:
    """How many ranks the sessions have that were resized, by key."""
    query = select(segments.c.session, segments.c.world_size).where(segments.c.session.in_(keys))
    found = connection.execute(query.order_by(segments.c.session, segments.c.epoch, segments.c.first_step))
    return {key: world_size for key, world_size in found}  # noqa: C416 (typed rows)


def put_segments(connection: Connection, key: int, put: Sequence[Segment]) -> None:
    """Store segments of a session, each in place of one of the same epoch and first step."""
    for segment in put:
        same = segments.c.epoch == segment.epoch, segments.c.first_step == segment.first_step
        connection.execute(delete(segments).where(segments.c.session == key, *same))
        connection.execute(insert(segments).values(**segment_row(key, segment)))


def forget_segments(connection: Connection, key: int, step: int, epoch: int) -> None:
    """Forget the segments that begin after a step, or belong to epochs after the one given."""
    later = or_(segments.c.first_step > step, segments.c.epoch > epoch)
    connection.execute(delete(segments).where(segments.c.session == key, later))


def steps_reported(connection: Connection, key: int, first: int, end: int) -> dict[int, int]:
    """How many ranks reported each of some steps; those that none reported are left out. Counted by the database."""
    query = (
        select(reports.c.step, func.count())
        .where(reports.c.session == key, reports.c.step >= first, reports.c.step < end)
        .group_by(reports.c.step)
    )
    return {step: count for step, count in connection.execute(query)}  # noqa: C416 (typed rows)


def ranks_reported(connection: Connection, key: int, step: int) -> set[int]:
    """The ranks that reported a step."""
    query = select(reports.c.rank).where(reports.c.session == key, reports.c.step == step)
    return set(connection.execute(query).scalars())


def segment_row(key: int, segment: Segment) -> dict[str, Any]:
    return {
        "session": key,
        "first_step": segment.first_step,
        "epoch": segment.epoch,
        "steps": segment.steps,
        "world_size": segment.world_size,
        "replaced": segment.replaced,
        "rows_left": segment.left.astype("<i8").tobytes(),
    }


def _segment(row: Any) -> Segment:
    left = np.frombuffer(row.rows_left, "<i8").reshape(-1, 2)
    return Segment(row.epoch, row.first_step, row.steps, row.world_size, left, row.replaced)
