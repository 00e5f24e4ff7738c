"""What is stored of JEST's choices: one blob for a step, and until it is there one for each rank that sent its part.

Blocking calls only. A choice is 8 bytes a row chosen, and stands until the session is rewound to its step or before.
"""

from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select

from curation.service.errors import Refusal
from curation.service.session.choice import Made, Sent
from curation.service.store import CHOICE, Store
from curation.service.store.blobs import get_blob, put_blob
from curation.service.store.tables import blobs


class Slot(NamedTuple):
    """A step of a session, valid while the session is of this generation."""

    key: int
    generation: int
    step: int


class Waiting(NamedTuple):
    """A step without a choice: the ranks that have sent their part."""

    ranks: set[int]


def look(store: Store, slot: Slot) -> Made | Waiting:
    """The choice of a step, or who has sent a part of it."""
    with store.engine.connect() as connection:
        return _there(connection, slot)


def put_part(store: Store, slot: Slot, rank: int, sent: Sent) -> Made | Waiting:
    """Store a rank's part, unless the choice is made or the part is there; on disk when this returns.

    Raises:
        Refusal: the rank sent something else before, or the session was rewound or deleted meanwhile.
    """
    with store.changing(slot.key, slot.generation) as connection:
        found = _there(connection, slot)
        if isinstance(found, Made):
            return found
        if rank in found.ranks:
            earlier = get_blob(connection, slot.key, _part(rank), slot.step)
            if earlier is None or Sent.unpack(earlier).digest != sent.digest:
                raise differs(rank, slot.step)
        else:
            put_blob(connection, slot.key, _part(rank), slot.step, sent.pack())
        return Waiting(found.ranks | {rank})


def keep(store: Store, slot: Slot, made: Made) -> Made:
    """Store a choice in place of the ranks' parts; another replica's stands where it was first.

    Raises:
        Refusal: the session was rewound or deleted meanwhile.
    """
    with store.changing(slot.key, slot.generation) as connection:
        found = _there(connection, slot)
        if isinstance(found, Made):
            return found
        put_blob(connection, slot.key, CHOICE, slot.step, made.pack())
        connection.execute(_all_parts(slot))
    return made


def discard(store: Store, slot: Slot) -> None:
    """Forget the parts of a step."""
    with store.changing(slot.key, slot.generation) as connection:
        connection.execute(_all_parts(slot))


def parts(store: Store, slot: Slot, world_size: int) -> list[Sent]:
    """What all ranks sent for a step.

    Raises:
        Refusal: it is not all there any more.
    """
    found = []
    with store.engine.connect() as connection:
        for rank in range(world_size):
            data = get_blob(connection, slot.key, _part(rank), slot.step)
            if data is None:
                raise Refusal("busy", "another replica made the choice just now: ask again", retry_after=0.1)
            found.append(Sent.unpack(data))
    return found


def choices_from(store: Store, key: int, first: int) -> dict[int, bytes]:
    """The choices of a session from a step on, by step, as :meth:`Made.pack` has them."""
    query = select(blobs.c.number).where(blobs.c.session == key, blobs.c.kind == CHOICE, blobs.c.number >= first)
    with store.engine.connect() as connection:
        steps = connection.execute(query.order_by(blobs.c.number)).scalars().unique().all()
        return {step: get_blob(connection, key, CHOICE, step) or b"" for step in steps}


def last_choice(store: Store, key: int) -> int | None:
    """The last step of a session that has a choice."""
    query = select(blobs.c.number).where(blobs.c.session == key, blobs.c.kind == CHOICE)
    with store.engine.connect() as connection:
        return connection.execute(query.order_by(blobs.c.number.desc()).limit(1)).scalar_one_or_none()


def differs(rank: int, step: int) -> Refusal:
    """The answer to a second report that is not the first."""
    return Refusal(
        "report-differs",
        f"rank {rank} sent something else for step {step} before, and the first counts: ask without sending, or "
        "rewind the session to that step",
    )


def _there(connection: Connection, slot: Slot) -> Made | Waiting:
    query = select(blobs.c.kind).where(
        blobs.c.session == slot.key,
        blobs.c.number == slot.step,
        blobs.c.part == 0,
        blobs.c.kind.like(f"{CHOICE}%"),
    )
    kinds = set(connection.execute(query).scalars())
    if CHOICE in kinds:
        return Made.unpack(get_blob(connection, slot.key, CHOICE, slot.step) or b"")
    return Waiting({int(kind.removeprefix(_part(""))) for kind in kinds})


def _part(rank: int | str) -> str:
    return f"{CHOICE}-part:{rank}"


def _all_parts(slot: Slot) -> Any:
    return delete(blobs).where(
        blobs.c.session == slot.key, blobs.c.number == slot.step, blobs.c.kind.like(f"{_part('')}%")
    )
