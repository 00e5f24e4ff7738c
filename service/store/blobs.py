"""Large values of the store: a session's tables, states and choices, each an Arrow stream cut into parts."""

from collections.abc import Iterator
from typing import IO, Any, TypeAlias

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection, insert, select

from curation.service.session.protocols import State
from curation.service.store.tables import blobs

PART = 2 << 20
Bytes: TypeAlias = bytes | pa.Buffer

CHOICE = "choice"
"""The kind of a choice from a super-batch; its number is the step."""
IMPORTED = "import"
"""The kind of what an imported session was made from: its generation then, and a digest."""
PACKED = "state"
"""The kind of a state that is one Arrow stream: of an imported session, or as release 0.1 stored it."""


def put_blob(connection: Connection, key: int, kind: str, number: int, data: Bytes) -> None:
    """Store a value under (session, kind, number)."""
    for row in blob_rows(key, kind, number, data):
        connection.execute(insert(blobs).values(row))


def blob_rows(key: int, kind: str, number: int, data: Bytes) -> Iterator[dict[str, Any]]:
    """The rows of a value, a part each."""
    view = memoryview(data)
    for part, start in enumerate(range(0, max(len(data), 1), PART)):
        yield {"session": key, "kind": kind, "number": number, "part": part, "data": bytes(view[start : start + PART])}


def get_blob(connection: Connection, key: int, kind: str, number: int) -> bytes | None:
    """The value under (session, kind, number); None where there is none."""
    query = (
        select(blobs.c.data)
        .where(blobs.c.session == key, blobs.c.kind == kind, blobs.c.number == number)
        .order_by(blobs.c.part)
    )
    parts = connection.execute(query).scalars().all()
    return b"".join(parts) if parts else None


def write_state(state: State, file: IO[bytes]) -> None:
    """Write a state as an Arrow IPC stream of one row, a list column for each array; nothing of it is copied."""
    columns = {
        name: pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), pa.array(np.asarray(values)))
        for name, values in state.items()
    }
    batch = pa.record_batch(columns) if columns else pa.record_batch({"none": pa.array([0])})
    with pa.ipc.new_stream(pa.PythonFile(file, "w"), batch.schema) as writer:
        writer.write_batch(batch)


def unpack_state(data: bytes) -> State:
    """The inverse of :func:`write_state`; views of ``data``."""
    columns = pa.ipc.open_stream(data).read_all()
    return {name: columns[name].chunk(0).values.to_numpy() for name in columns.column_names if name != "none"}
