"""Checks of a store: whether all of it fits together, as it is at one moment."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
from sqlalchemy import Connection, func, select, text

from curation.service.errors import Refusal
from curation.service.session.methods.registry import make_method
from curation.service.session.session import LOSS, Session
from curation.service.store import Store
from curation.service.store.blobs import get_blob
from curation.service.store.records.rows import epoch_of, session_of
from curation.service.store.records.states import state_sizes
from curation.service.store.segments import read_segments
from curation.service.store.tables import blobs, epochs, reports, sessions

_MOST_PROBLEMS = 100


class Problem(NamedTuple):
    """Something in a store that does not fit; ``session`` None: of the store as a whole."""

    session: str | None
    what: str


class Check(NamedTuple):
    """What a store holds, and what of it does not fit; of the problems at most a hundred."""

    sessions: int
    epochs: int
    reports: int
    problems: list[Problem]


def check_store(store: Store) -> Check:
    """Look through a whole store, as it is at one moment."""
    found: list[Problem] = []
    counts = [0, 0, 0]
    with store.engine.connect() as connection:
        if store.shared:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        else:
            for (line,) in connection.execute(text("PRAGMA quick_check(20)")):
                if line != "ok":
                    found.append(Problem(None, line))
            strays = connection.execute(text("PRAGMA foreign_key_check"))
            found.extend(Problem(None, f"a row of {row[0]} is of no session") for row in strays)
        rows = connection.execute(select(sessions).order_by(sessions.c.key)).all()
        for row in rows:
            if row.cut is not None:
                continue  # it is being rewound or removed, and a server goes on with it
            counts[0] += 1
            problems = (Problem(row.id, problem) for problem in _session_problems(connection, row, counts))
            found.extend(islice(problems, _MOST_PROBLEMS))
            if len(found) >= _MOST_PROBLEMS:
                break
    return Check(counts[0], counts[1], counts[2], found[:_MOST_PROBLEMS])


def _session_problems(connection: Connection, row: Any, counts: list[int]) -> Iterator[str]:
    try:
        stored = session_of(row)
        tables = {}
        kinds = select(blobs.c.kind).where(blobs.c.session == row.key, blobs.c.kind.like("table:%")).distinct()
        for kind in connection.execute(kinds).scalars().all():
            tables[kind[6:]] = pa.ipc.open_stream(get_blob(connection, row.key, kind, 0) or b"").read_all()
        resized = read_segments(connection, row.key)
        opened = connection.execute(select(epochs).where(epochs.c.session == row.key).order_by(epochs.c.number)).all()
        records = [epoch_of(stored.spec, resized, epoch) for epoch in opened]
        session = Session(stored.spec, make_method(stored.spec, stored.size, tables), list(records), resized)
    except (ValueError, KeyError, pa.ArrowException, Refusal) as error:
        yield f"it cannot be read: {error}"
        return
    counts[1] += len(records)
    end = 0
    for number, (record, epoch) in enumerate(zip(records, opened, strict=True)):
        if record.number != number or record.first_step != end:
            yield f"epoch {record.number} at step {record.first_step} does not follow the one before, to step {end}"
            return
        end = record.end
        if epoch.state is not None:
            for array, has, needs in state_sizes(connection, row.key, number, epoch.state):
                if has != needs:
                    yield f"the state of epoch {number} has {has} of {needs} bytes of {array}"
    if row.base >= max(1, session.open_epochs):
        yield f"its base is epoch {row.base}, but {session.open_epochs} are open"
    sizes = select(reports.c.rank, reports.c.step, func.length(reports.c.losses)).where(reports.c.session == row.key)
    known = session.known_steps
    world_size = max([stored.spec.world_size, *(segment.world_size for segment in resized)])
    for rank, step, size in connection.execute(sizes.execution_options(yield_per=10_000)):
        counts[2] += 1
        if not (0 <= rank < world_size and 0 <= step < known):
            yield f"there is a report of rank {rank}, step {step}, which was never handed out"
        elif size != session.length(rank, step) * LOSS.itemsize:
            yield f"the report of rank {rank}, step {step} has {size} bytes for {session.length(rank, step)} losses"
