"""States in the store: what an epoch starts from, each array in parts, every part a transaction of its own.

At 10^8 candidates a state is hundreds of megabytes, and others commit between its parts. A state is valid once its
epoch's row names it (``epochs.state``); parts that no row names are left over from a server that was killed, or from
another replica that was slower, and are removed when a later epoch opens.
"""

import json
import secrets
from collections.abc import Iterator

import numpy as np
from sqlalchemy import Connection, func, insert, select

from curation.service.session.protocols import State
from curation.service.store.blobs import PACKED, get_blob, put_blob, unpack_state
from curation.service.store.database import Database, turns
from curation.service.store.tables import blobs, epochs

PART = 2 << 20
KIND = "state:"


def put_state(database: Database, key: int, generation: int, number: int, state: State) -> str:
    """Store a state, a part at a time; the name under which an epoch's row makes it valid.

    Raises:
        Refusal: the session was rewound or deleted meanwhile.
    """
    name = secrets.token_hex(8)
    with database.changing(key, generation) as connection:
        _put_header(connection, key, number, name, state)
    for _, (kind, part, data) in zip(turns(), _parts(name, state), strict=False):
        with database.changing(key, generation) as connection:
            _put_part(connection, key, number, kind, part, data)
    return name


def latest_state(connection: Connection, key: int, number: int) -> tuple[int, State] | None:
    """The latest stored state of an epoch up to ``number``, and which epoch's; None where none is stored."""
    query = (
        select(epochs.c.number, epochs.c.state)
        .where(epochs.c.session == key, epochs.c.number <= number, epochs.c.state.is_not(None))
        .order_by(epochs.c.number.desc())
        .limit(1)
    )
    old = (
        select(blobs.c.number)
        .where(blobs.c.session == key, blobs.c.kind == PACKED, blobs.c.number <= number)
        .order_by(blobs.c.number.desc())
        .limit(1)
    )
    row, old_number = connection.execute(query).one_or_none(), connection.execute(old).scalar_one_or_none()
    if row is not None and (old_number is None or row.number >= old_number):
        return row.number, _read(connection, key, row.number, row.state)
    if old_number is None:
        return None
    return old_number, unpack_state(get_blob(connection, key, PACKED, old_number) or b"")


def state_sizes(connection: Connection, key: int, number: int, name: str) -> Iterator[tuple[str, int, int]]:
    """Of each array of a stored state: its name, the bytes that are there, and those that there should be."""
    for field, (array, (dtype, length)) in enumerate(_header(connection, key, number, name).items()):
        query = select(func.coalesce(func.sum(func.length(blobs.c.data)), 0)).where(
            blobs.c.session == key, blobs.c.kind == f"{KIND}{name}:{field}", blobs.c.number == number
        )
        yield array, int(connection.execute(query).scalar_one()), length * np.dtype(dtype).itemsize


def _header(connection: Connection, key: int, number: int, name: str) -> dict[str, tuple[str, int]]:
    """Of each array of a stored state its dtype and length."""
    data = get_blob(connection, key, KIND + name, number)
    if data is None:
        raise ValueError(f"the state of epoch {number} is not there")
    return json.loads(data)  # type: ignore[no-any-return]


def _put_header(connection: Connection, key: int, number: int, name: str, state: State) -> None:
    header = {field: (values.dtype.newbyteorder("<").str, len(values)) for field, values in state.items()}
    put_blob(connection, key, KIND + name, number, json.dumps(header).encode())


def _parts(name: str, state: State) -> Iterator[tuple[str, int, memoryview]]:
    for field, values in enumerate(state.values()):
        data = memoryview(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8).data)
        for part, start in enumerate(range(0, len(data), PART)):
            yield f"{KIND}{name}:{field}", part, data[start : start + PART]


def _put_part(connection: Connection, key: int, number: int, kind: str, part: int, data: memoryview) -> None:
    connection.execute(insert(blobs).values(session=key, kind=kind, number=number, part=part, data=data))


def _read(connection: Connection, key: int, number: int, name: str) -> State:
    state = {}
    for field, (array, (dtype, length)) in enumerate(_header(connection, key, number, name).items()):
        values = np.empty(length, dtype)
        target, filled = values.view(np.uint8), 0
        query = (
            select(blobs.c.data)
            .where(blobs.c.session == key, blobs.c.kind == f"{KIND}{name}:{field}", blobs.c.number == number)
            .order_by(blobs.c.part)
            .execution_options(yield_per=1)
        )
        for data in connection.execute(query).scalars():
            target[filled : filled + len(data)] = np.frombuffer(data, np.uint8)
            filled += len(data)
        if filled != len(target):
            raise ValueError(f"the state of epoch {number} has {filled} of {len(target)} bytes of {array}")
        state[array] = values
    return state
