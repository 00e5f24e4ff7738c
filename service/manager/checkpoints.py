"""Checkpoints of sessions: exported from one server, imported into another, or carried by a training checkpoint.

An Arrow IPC stream: ``kind``, ``number``, ``rank``, ``data``, a row for each epoch opened, each report since the
present epoch began, the state it began with, each choice made since then, and each table that came with the session.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from curation.selectors.samplers.split import RowSplit
from curation.service.arrow import read_table
from curation.service.errors import Refusal
from curation.service.manager.sessions import Entry, SessionManager
from curation.service.session.caller import Caller
from curation.service.session.choice import Choice
from curation.service.session.methods.registry import check_limits, make_method
from curation.service.session.protocols import State
from curation.service.session.session import LOSS, EpochRecord, Report, Session
from curation.service.session.spec import SessionSpec
from curation.service.settings import Settings
from curation.service.store import Store
from curation.service.store.blobs import pack_state, unpack_state
from curation.service.store.choices import choices_from, last_choice

FORMAT = b"1"
_SCHEMA = pa.schema([("kind", pa.string()), ("number", pa.int64()), ("rank", pa.int64()), ("data", pa.large_binary())])


def export(store: Store, sessions: SessionManager, entry: Entry) -> pa.Table:
    """All of a session from its present epoch on. Blocking."""
    row, session = entry.row, entry.session
    lines: list[tuple[str, int, int, bytes]] = [
        (f"table:{name}", 0, 0, data) for name, data in store.tables(row.key).items()
    ]
    records = list(session.records)
    if records:
        last = records[-1]
        lines += [("epoch", record.number, 0, _epoch(record)) for record in records]
        lines.append(("state", last.number, 0, pack_state(sessions.state(row, session, last.number))))
        lines += [_report(report) for report in store.reports(row.key, last.first_step, last.end)]
    if session.method.choosing is not None:
        newest = last_choice(store, row.key)
        first = 0 if newest is None else session.span_of(session.epoch_of(newest))[0]
        lines += [("choice", step, 0, data) for step, data in choices_from(store, row.key, first).items()]
        lines += [_report(report) for report in store.reports(row.key, first, session.known_steps)]
    columns = [pa.array([line[at] for line in lines], kind) for at, kind in enumerate(_SCHEMA.types)]
    metadata = {"format": FORMAT, "spec": row.spec.model_dump_json(), "size": str(row.size)}
    return pa.table(columns, schema=_SCHEMA.with_metadata(metadata))


def restore(store: Store, caller: Caller, id: str, body: bytes, settings: Settings) -> bool:
    """Make a session of an exported one; False where the id is taken. Blocking.

    Raises:
        Refusal: the body is no checkpoint, expands to more than the settings allow, or its parts do not fit each other.
    """
    max_bytes = settings.max_body_bytes
    table = read_table(body, max_bytes)
    try:
        spec, size, tables, records, state, reports, choices = _read(table, max_bytes)
    except (pa.ArrowException, ValueError, KeyError, TypeError, OverflowError, ValidationError) as error:
        raise Refusal("bad-body", f"the body is not an exported session: {str(error)[:200]}") from error
    check_limits(spec, size, settings)
    arrow_tables = {name: read_table(data, max_bytes) for name, data in tables.items()}
    session = Session(spec, make_method(spec, size, arrow_tables))
    base = len(records) - 1 if records else 0
    if session.method.stateful:
        session.records.extend(records)
        _check_epochs(session, state)
    elif records or (reports and session.method.choosing is None):
        raise Refusal("bad-body", f"method {spec.method} has no epochs or reports to restore")
    if choices:
        base = _check_choices(session, choices)
    for report in reports:
        session.check_rank(report.rank)
        session.check_report(report)
    return store.restore(id, caller.owner, spec, size, tables, base, records, state, reports, choices) is not None


def _read(
    table: pa.Table, max_bytes: int
) -> tuple[SessionSpec, int, dict[str, bytes], list[EpochRecord], State | None, list[Report], dict[int, bytes]]:
    metadata = table.schema.metadata or {}
    if metadata.get(b"format") != FORMAT or not table.schema.equals(_SCHEMA):
        raise ValueError(f"its format is {metadata.get(b'format')!r}; this release reads {FORMAT!r}")
    spec = SessionSpec.model_validate_json(metadata[b"spec"])
    size = int(metadata[b"size"])
    if size < 1 or (spec.size is not None and spec.size != size):
        raise ValueError(f"its size is {size}, and its parameters say {spec.size}")
    tables: dict[str, bytes] = {}
    records: list[EpochRecord] = []
    state: State | None = None
    reports: list[Report] = []
    choices: dict[int, bytes] = {}
    for line in table.to_batches():
        for kind, number, rank, data in zip(*(column.to_pylist() for column in line.columns), strict=True):
            if kind.startswith("table:"):
                tables[kind[6:]] = data
            elif kind == "epoch":
                records.append(_record(spec, number, json.loads(data)))
            elif kind == "state":
                read_table(data, max_bytes)
                state = unpack_state(data)
            elif kind == "report":
                reports.append(Report(rank, number, np.frombuffer(data, LOSS)))
            elif kind == "choice":
                read_table(data, max_bytes)
                choices[number] = data
            else:
                raise ValueError(f"it has a part of the unknown kind {kind!r}")
    return spec, size, tables, records, state, reports, choices


def _check_epochs(session: Session[Any], state: State | None) -> None:
    """Refuse epochs that do not follow each other, and a state of another shape than the method's."""
    first = 0
    for number, record in enumerate(session.records):
        if record.number != number or record.first_step != first or number >= session.spec.epochs:
            raise Refusal("bad-body", f"epoch {record.number} does not follow the one before")
        first = record.end
    if session.records:
        expected = {name: (values.dtype, values.shape) for name, values in session.method.start().items()}
        if state is None or {name: (values.dtype, values.shape) for name, values in state.items()} != expected:
            raise Refusal("bad-body", f"the state does not fit: it must have {', '.join(expected)}")


def _check_choices(session: Session[Any], choices: dict[int, bytes]) -> int:
    """Refuse choices that are not this session's; the epoch they belong to."""
    method = session.method.choosing
    if method is None:
        raise Refusal("bad-body", f"method {session.spec.method} has no choices to restore")
    numbers = {session.epoch_of(step) for step in choices}
    if len(numbers) > 1:
        raise Refusal("bad-body", "the choices are of several epochs: a checkpoint has those of one")
    number = numbers.pop()
    epoch, first = method.epoch(number, {}), session.span_of(number)[0]
    for step, data in choices.items():
        try:
            method.check_choice(Choice.unpack(data), epoch, step - first)
        except (pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refusal("bad-body", f"the choice of step {step} does not fit: {error}") from error
    return number


def _report(report: Report) -> tuple[str, int, int, bytes]:
    return "report", report.step, report.rank, report.losses.astype(LOSS).tobytes()


def _epoch(record: EpochRecord) -> bytes:
    values: dict[str, Any] = {
        "first_step": record.first_step,
        "rows": record.layout.rows,
        "reweighted": record.reweighted,
        "missing": record.missing.tolist(),
    }
    return json.dumps(values).encode()


def _record(spec: SessionSpec, number: int, values: dict[str, Any]) -> EpochRecord:
    layout = RowSplit(int(values["rows"]), spec.batch_size, spec.world_size, spec.drop_last)
    missing = np.array(values["missing"], np.int64).reshape(-1, 2)
    return EpochRecord(number, int(values["first_step"]), layout, int(values["reweighted"]), missing)
