"""Resizing of sessions: ranks die and join, and what was handed out and not reported is handed out again, once.

What is left is decided and stored in one transaction, in which nobody can report: a row that is left was never
reported, and what was reported is not left.
"""

import asyncio
from collections.abc import Collection, Mapping
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection

from curation.service.errors import Refusal
from curation.service.manager.memory.entry import Entry, check_base, check_generation, open_tables
from curation.service.manager.sessions import SessionManager
from curation.service.session.caller import Caller
from curation.service.session.methods.base import Limits
from curation.service.session.methods.registry import check_limits, make_method
from curation.service.session.segments import Layout, Segment, left_at
from curation.service.session.spec import SessionSpec
from curation.service.store import Store
from curation.service.store.audit import record
from curation.service.store.choices import steps_chosen
from curation.service.store.records.sessions import check_kept, forget_from
from curation.service.store.segments import put_segments, ranks_reported, steps_reported

Trained = Literal["reported", "all"]


class Resize(NamedTuple):
    """What a resize asks for.

    Args:
        from_step: the next step that is asked for; None: the first that not all of its ranks reported.
        world_size: ranks from then on.
        generation: the session's, as the caller knows it. The same request again finds that it was done.
        trained: which rows of the epoch's earlier steps count as trained on: those reported, or all.
    """

    from_step: int | None
    world_size: int
    generation: int
    trained: Trained = "reported"


async def resize(
    sessions: SessionManager, caller: Caller, id: str, asked: Resize, limits: Limits | None = None
) -> tuple[Entry, Segment]:
    """Lay out what is left of a session over other ranks, and the segment that begins with it.

    What was reported and chosen for ``from_step`` and later ones is forgotten, as by a rewind, and the generation
    rises. Where the method chooses from super-batches, one counts as reported once its choice is made.

    Args:
        sessions: those of this server.
        caller: who asks.
        id: the session's.
        asked: what for.
        limits: of the server, which super-batches keep to.

    Raises:
        Refusal: the session is of another generation, the step was never open, or its method cannot be split anew, or
            not over so many ranks.
    """
    entry = await sessions.current(caller, id)
    done = _done_before(entry, asked)
    if done is not None:
        return entry, done
    check_generation(entry.row, asked.generation)
    if entry.session.method.choosing is not None:
        tables = open_tables(await asyncio.to_thread(sessions.store.tables, entry.row.key))
        await asyncio.to_thread(check_ranks, entry.row.spec, entry.row.size, tables, asked.world_size, limits)
    if entry.session.open_epochs == 0:
        await sessions.epoch(entry, 0)
    places = await asyncio.to_thread(_places, sessions.store, entry, asked)
    segment = await sessions.carry_out(entry, partial(_resize, sessions.store, caller, entry, asked, *places))
    return await sessions.entry(caller, id), segment


def check_ranks(
    spec: SessionSpec, size: int, tables: Mapping[str, pa.Table], world_size: int, limits: Limits | None
) -> None:
    """Refuse ranks for whom a session that chooses from super-batches could not be created. Blocking.

    Raises:
        Refusal: super-batches would be too large, or so small that a rank trains on nothing.
    """
    changed = spec.model_copy(update={"world_size": world_size})
    make_method(changed, size, tables)
    if limits is not None:
        check_limits(changed, size, limits)


def _done_before(entry: Entry, asked: Resize) -> Segment | None:
    """What an earlier try did, whose answer was lost."""
    if entry.row.generation != asked.generation + 1 or not entry.session.segments:
        return None
    for segment in entry.session.segments:
        if segment.replaced == asked.generation and segment.world_size == asked.world_size:
            return segment if asked.from_step in (None, segment.first_step) else None
    return None


def _places(store: Store, entry: Entry, asked: Resize) -> tuple[int, dict[int, Layout]]:
    """The step to begin at, and the epochs it may belong to, the last of them unless rows of an earlier are left.

    Where an epoch begins, the one before comes first, unless it is closed: what was not reported of it comes again.
    """
    session = entry.session
    step = first_unreported(store, entry) if asked.from_step is None else asked.from_step
    if not 0 <= step <= session.known_steps:
        raise Refusal("bad-step", f"step {step} was never handed out: {session.open_range}")
    number = session.epoch_of(step) if step < session.known_steps else session.open_epochs - 1
    check_base(entry.row, number)
    begins = not session.method.stateful and number > entry.row.base and step == session.span_of(number)[0]
    return step, {one: session.layout(one, step) for one in range(number - begins, number + 1)}


def first_unreported(store: Store, entry: Entry) -> int:
    """The first step, of those after the last resize and of open epochs, that not all of its ranks reported; or of
    which nothing was chosen yet."""
    session = entry.session
    first = session.segments[-1].first_step if session.segments else 0
    kept = len(session.records) - 1 if session.method.stateful else entry.row.base
    first = max(first, session.span_of(kept)[0])
    if session.method.choosing is not None:
        with store.engine.connect() as connection:
            chosen = steps_chosen(connection, entry.row.key, first, session.known_steps)
        return next((step for step, made in enumerate(chosen, first) if made != step), first + len(chosen))
    known = store.progress(entry.row.key)
    last = min(known.get(rank, (0, -1))[1] for rank in range(session.world_size))
    step = min(max(last + 1, first), session.known_steps)
    if step == first:
        return step  # what lies before is not looked at: an epoch that is closed, or that an import left behind
    number = session.epoch_of(max(step - 1, 0))
    layout = session.layout(number, step)
    with store.engine.connect() as connection:
        reported = _reported(connection, entry.row.key, layout, step, False)
    part = layout.parts[-1]
    due = part.due().sum(axis=1)[: max(step - part.first_step, 0)]
    counts = np.array([len(reported.get(part.first_step + local, ())) for local in range(len(due))], np.int64)
    return part.first_step + int(np.argmax(counts < due)) if (counts < due).any() else step


def _resize(
    store: Store, caller: Caller, entry: Entry, asked: Resize, step: int, places: Mapping[int, Layout]
) -> Segment:
    row, choosing = entry.row, entry.session.method.choosing is not None
    with store.changing(row.key, row.generation) as connection:
        check_kept(connection, row.key, min(places))
        left = {
            number: left_at(
                layout,
                step,
                _reported(connection, row.key, layout, step, choosing) if asked.trained == "reported" else None,
            )
            for number, layout in places.items()
        }
        number = next((number for number, spans in left.items() if len(spans)), max(places))
        steps = places[number].whole.rest(asked.world_size, left[number]).steps
        segment = Segment(number, step, steps, asked.world_size, left[number], row.generation)
        forget_from(connection, row.key, step, number)
        put_segments(connection, row.key, [segment])
        record(connection, caller, "session.resize", row.id, step=step, world_size=asked.world_size)
    return segment


def _reported(
    connection: Connection, key: int, layout: Layout, step: int, choosing: bool
) -> dict[int, Collection[int]]:
    """By step of a layout's last part, before ``step``: the ranks that reported it; all where its choice is made."""
    part = layout.parts[-1]
    ranks = range(part.split.world_size)
    if choosing:
        return dict.fromkeys(steps_chosen(connection, key, part.first_step, min(step, part.end)), ranks)
    counts = steps_reported(connection, key, part.first_step, min(step, part.end))
    return {
        step: ranks if count == len(ranks) else ranks_reported(connection, key, step) for step, count in counts.items()
    }
