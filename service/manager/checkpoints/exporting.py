"""Checkpoints of sessions: exported from one server, for another or to be carried by a training checkpoint.

:mod:`curation.service.session.checkpoint` has their form. They are written into a file, batch by batch: of one with a
state of 400 MB that state is in memory once.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from typing import IO, Any

import pyarrow as pa

from curation.service.errors import Refusal
from curation.service.manager.memory.entry import Entry
from curation.service.manager.resizing import first_unreported
from curation.service.manager.sessions import SessionManager
from curation.service.session.checkpoint import FORMAT, SCHEMA
from curation.service.session.session import LOSS, EpochRecord, Report
from curation.service.store import Store
from curation.service.store.blobs import write_state
from curation.service.store.choices import choices_from, last_choice

Line = tuple[str, int, int, Any]
"""A row: kind, number, rank, data."""
_ROWS, _BYTES = 256, 1 << 20
"""Rows and bytes after which a batch is written."""


def export(store: Store, sessions: SessionManager, entry: Entry, file: IO[bytes]) -> None:
    """Write all of a session from its present epoch on; where epochs depend on no reports, those of the one before too,
    so that the copy can be resized. Blocking.

    Raises:
        Refusal: the session was rewound or deleted meanwhile.
    """
    row, session = entry.row, entry.session
    metadata = {"format": FORMAT, "spec": row.spec.model_dump_json(), "size": str(row.size)}
    metadata |= {"digest": row.digest} if row.digest else {}
    schema = SCHEMA.with_metadata(metadata)
    records = list(session.records)
    with pa.ipc.new_stream(pa.PythonFile(file, "w"), schema) as stream:
        _write(stream, ((f"table:{name}", 0, 0, data) for name, data in store.tables(row.key).items()))
        resized = session.segments
        _write(stream, (("segment", segment.first_step, segment.epoch, segment.pack()) for segment in resized))
        _write(stream, (("epoch", record.number, 0, _epoch(record)) for record in records))
        if records:
            last = records[-1]
            if last.number:
                with _packed_state(sessions, entry, last.number) as state:
                    _write(stream, [("state", last.number, 0, state)])
            _write(stream, map(_report, store.reports(row.key, last.first_step, last.end)))
        elif session.method.choosing is not None:
            newest = last_choice(store, row.key)
            if newest is not None:
                first, end = session.span_of(session.epoch_of(newest))
                _write(stream, (("choice", step, 0, data) for step, data in choices_from(store, row.key, first)))
                _write(stream, map(_report, store.reports(row.key, first, end)))
        elif not session.method.stateful:
            reached = session.epoch_of(min(first_unreported(store, entry), session.known_steps - 1))
            first = session.span_of(max(reached - 1, 0))[0]  # a resize where an epoch begins asks for the one before
            _write(stream, map(_report, store.reports(row.key, first, session.known_steps)))
    now = store.session(row.id)
    if now is None or (now.key, now.generation) != (row.key, row.generation):
        raise Refusal("session-changed", "the session was rewound or deleted meanwhile: ask again", retry_after=0.1)


@contextmanager
def _packed_state(sessions: SessionManager, entry: Entry, number: int) -> Iterator[Any]:
    """The state that an epoch starts with as an Arrow stream, mapped from a file."""
    with NamedTemporaryFile() as file:
        write_state(sessions.maker.state(entry.row, entry.session, number), file)
        file.flush()
        with pa.memory_map(file.name) as mapped:
            yield mapped.read_buffer()


def _write(stream: pa.RecordBatchStreamWriter, lines: Iterable[Line]) -> None:
    for some in _batches(lines):
        kinds, numbers, ranks, data = zip(*some, strict=True)
        columns = [pa.array(values, kind) for values, kind in zip((kinds, numbers, ranks), SCHEMA.types, strict=False)]
        stream.write_batch(pa.record_batch([*columns, _binary(data)], schema=SCHEMA))


def _batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    some: list[Line] = []
    size = 0
    for line in lines:
        if some and (size + len(line[3]) > _BYTES or len(some) == _ROWS):
            yield some
            some, size = [], 0
        some.append(line)
        size += len(line[3])
    if some:
        yield some


def _binary(values: tuple[Any, ...]) -> pa.Array:
    """A column of values; one alone is not copied."""
    if len(values) > 1:
        return pa.array(values, pa.large_binary())
    offsets = pa.array([0, len(values[0])], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(values[0])])


def _report(report: Report) -> Line:
    return "report", report.step, report.rank, report.losses.astype(LOSS).tobytes()


def _epoch(record: EpochRecord) -> bytes:
    values: dict[str, Any] = {
        "first_step": record.first_step,
        "rows": record.layout.rows,
        "reweighted": record.reweighted,
        "missing": record.missing.tolist(),
    }
    return json.dumps(values).encode()
