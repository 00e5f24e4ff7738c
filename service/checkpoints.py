"""A session in a file: exported from one server, imported into another, or carried by a training checkpoint.

An Arrow IPC stream: ``kind``, ``number``, ``rank``, ``data``, a row for each epoch opened, each report since the
present epoch began, the state it began with, and each table that came with the session.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from curation.service.keeper import Entry, Keeper
from curation.service.methods import make_method
from curation.service.security import Caller
from curation.service.sessions import EpochRecord, Layout, Refusal, Report, Session, SessionSpec, State
from curation.service.store import LOSS, Store, pack_state, unpack_state

FORMAT = b"1"
_SCHEMA = pa.schema([("kind", pa.string()), ("number", pa.int64()), ("rank", pa.int64()), ("data", pa.large_binary())])


def export(store: Store, keeper: Keeper, entry: Entry) -> pa.Table:
    """All of a session from its present epoch on. Blocking."""
    row, session = entry.row, entry.session
    lines: list[tuple[str, int, int, bytes]] = [
        (f"table:{name}", 0, 0, data) for name, data in store.tables(row.key).items()
    ]
    records = list(session.records)
    if records:
        last = records[-1]
        lines += [("epoch", record.number, 0, _epoch(record)) for record in records]
        lines.append(("state", last.number, 0, pack_state(keeper.state(row, session, last.number))))
        given = store.reports(row.key, last.first_step, last.end)
        lines += [("report", report.step, report.rank, report.losses.astype(LOSS).tobytes()) for report in given]
    columns = [
        pa.array(column, kind) for column, kind in zip(zip(*lines, strict=True), _SCHEMA.types, strict=True)
    ] or [pa.array([], kind) for kind in _SCHEMA.types]
    metadata = {"format": FORMAT, "spec": row.spec.model_dump_json(), "size": str(row.size)}
    return pa.table(columns, schema=_SCHEMA.with_metadata(metadata))


def restore(store: Store, caller: Caller, id: str, body: bytes) -> bool:
    """Make a session of an exported one; False where the id is taken. Blocking.

    Raises:
        Refusal: the body is no checkpoint, or its parts do not fit each other.
    """
    try:
        spec, size, tables, records, state, given = _read(body)
    except (pa.ArrowException, ValueError, KeyError, TypeError, OverflowError, ValidationError) as error:
        raise Refusal("bad-body", f"the body is not an exported session: {str(error)[:200]}") from error
    session = Session(spec, make_method(spec, size, {k: pa.ipc.open_stream(v).read_all() for k, v in tables.items()}))
    if session.method.stateful:
        session.records.extend(records)
        _check(session, state)
        for report in given:
            session.check_rank(report.rank)
            session.check_report(report)
    elif records or given:
        raise Refusal("bad-body", f"method {spec.method} has no epochs or reports to restore")
    base = len(records) - 1 if records else 0
    return store.restore(id, caller.owner, spec, size, tables, base, records, state, given) is not None


def _read(
    body: bytes,
) -> tuple[SessionSpec, int, dict[str, bytes], list[EpochRecord], State | None, list[Report]]:
    table = pa.ipc.open_stream(body).read_all()
    table.validate(full=True)
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
    given: list[Report] = []
    for line in table.to_batches():
        for kind, number, rank, data in zip(*(column.to_pylist() for column in line.columns), strict=True):
            if kind.startswith("table:"):
                tables[kind[6:]] = data
            elif kind == "epoch":
                records.append(_record(spec, number, json.loads(data)))
            elif kind == "state":
                state = unpack_state(data)
            elif kind == "report":
                given.append(Report(rank, number, np.frombuffer(data, LOSS)))
            else:
                raise ValueError(f"it has a part of the unknown kind {kind!r}")
    return spec, size, tables, records, state, given


def _check(session: Session, state: State | None) -> None:
    """Refuse epochs that do not follow each other, and a state of another shape than the method's."""
    first = 0
    for number, record in enumerate(session.records):
        if record.number != number or record.first_step != first or number >= session.spec.epochs:
            raise Refusal("bad-body", f"epoch {record.number} does not follow the one before")
        first = record.end
    if session.records:
        wanted = {name: (values.dtype, values.shape) for name, values in session.method.start().items()}
        if state is None or {name: (values.dtype, values.shape) for name, values in state.items()} != wanted:
            raise Refusal("bad-body", f"the state does not fit: it must have {', '.join(wanted)}")


def _epoch(record: EpochRecord) -> bytes:
    values: dict[str, Any] = {
        "first_step": record.first_step,
        "rows": record.layout.rows,
        "reweighted": record.reweighted,
        "missing": record.missing.tolist(),
    }
    return json.dumps(values).encode()


def _record(spec: SessionSpec, number: int, values: dict[str, Any]) -> EpochRecord:
    layout = Layout(int(values["rows"]), spec.batch_size, spec.world_size, spec.drop_last)
    missing = np.array(values["missing"], np.int64).reshape(-1, 2)
    return EpochRecord(number, int(values["first_step"]), layout, int(values["reweighted"]), missing)
