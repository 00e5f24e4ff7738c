"""Choices in the store: one blob for a step, and until it is there one for each rank that sent its part.

Blocking calls only. A choice is 8 bytes a row chosen, and stands until the session is rewound to its step or before.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, text

from curation.service.errors import Refusal
from curation.service.session.choice import Choice, RankPart
from curation.service.store import CHOICE, Store
from curation.service.store.blobs import get_blob, put_blob
from curation.service.store.tables import blobs


class StepKey(NamedTuple):
    """A step of a session, valid while the session is of this generation."""

    session: int
    generation: int
    step: int


class Pending(NamedTuple):
    """A step without a choice: the ranks that have sent their part."""

    ranks: set[int]


def read_choice(store: Store, key: StepKey) -> Choice | Pending:
    """The choice of a step, or who has sent a part of it."""
    with store.engine.connect() as connection:
        return _choice_or_pending(connection, key)


def put_part(store: Store, key: StepKey, rank: int, part: RankPart) -> Choice | Pending:
    """Store a rank's part, unless the choice is made or the part is there.

    PostgreSQL does not wait for its disk: a part that is lost in a crash is sent again.

    Raises:
        Refusal: the rank sent something else before, or the session was rewound or deleted meanwhile.
    """
    with store.changing(key.session, key.generation) as connection:
        if store.shared:
            connection.execute(text("SET LOCAL synchronous_commit = off"))
        stored = _choice_or_pending(connection, key)
        if isinstance(stored, Choice):
            return stored
        if rank in stored.ranks:
            earlier = get_blob(connection, key.session, _part_kind(rank), key.step)
            if earlier is None or RankPart.unpack(earlier).digest != part.digest:
                raise part_differs(rank, key.step)
        else:
            put_blob(connection, key.session, _part_kind(rank), key.step, part.pack())
        return Pending(stored.ranks | {rank})


def put_choice(store: Store, key: StepKey, choice: Choice) -> Choice:
    """Store a choice in place of the ranks' parts; another replica's stands where it was first.

    Raises:
        Refusal: the session was rewound or deleted meanwhile.
    """
    with store.changing(key.session, key.generation) as connection:
        stored = _choice_or_pending(connection, key)
        if isinstance(stored, Choice):
            return stored
        put_blob(connection, key.session, CHOICE, key.step, choice.pack())
        connection.execute(_delete_parts(key))
    return choice


def delete_parts(store: Store, key: StepKey) -> None:
    """Forget the parts of a step."""
    with store.changing(key.session, key.generation) as connection:
        connection.execute(_delete_parts(key))


def read_parts(store: Store, key: StepKey, ranks: Sequence[int]) -> dict[int, RankPart]:
    """What some ranks sent for a step.

    Raises:
        Refusal: it is not all there any more.
    """
    parts = {}
    with store.engine.connect() as connection:
        for rank in ranks:
            data = get_blob(connection, key.session, _part_kind(rank), key.step)
            if data is None:
                raise Refusal("busy", "the choice was made just now, or the parts are gone: ask again", retry_after=0.1)
            parts[rank] = RankPart.unpack(data)
    return parts


def choices_from(store: Store, key: int, first: int) -> Iterator[tuple[int, bytes]]:
    """Steps of a session from one on, and their choices as :meth:`Choice.pack` has them; read as they are used."""
    query = select(blobs.c.number).where(blobs.c.session == key, blobs.c.kind == CHOICE, blobs.c.number >= first)
    with store.engine.connect() as connection:
        steps = connection.execute(query.order_by(blobs.c.number)).scalars().unique().all()
        for step in steps:
            yield step, get_blob(connection, key, CHOICE, step) or b""


def steps_chosen(connection: Connection, key: int, first: int, end: int) -> list[int]:
    """Those of some steps of a session that have a choice, rising."""
    query = select(blobs.c.number).where(
        blobs.c.session == key, blobs.c.kind == CHOICE, blobs.c.part == 0, blobs.c.number >= first, blobs.c.number < end
    )
    return list(connection.execute(query.order_by(blobs.c.number)).scalars())


def last_choice(store: Store, key: int) -> int | None:
    """The last step of a session that has a choice."""
    query = select(blobs.c.number).where(blobs.c.session == key, blobs.c.kind == CHOICE)
    with store.engine.connect() as connection:
        return connection.execute(query.order_by(blobs.c.number.desc()).limit(1)).scalar_one_or_none()


def part_differs(rank: int, step: int) -> Refusal:
    """The answer to a second report that is not the first."""
    return Refusal(
        "report-differs",
        f"rank {rank} sent something else for step {step} before, and the first counts: ask without sending, or "
        "rewind the session to that step",
    )


def _choice_or_pending(connection: Connection, key: StepKey) -> Choice | Pending:
    query = select(blobs.c.kind).where(
        blobs.c.session == key.session,
        blobs.c.number == key.step,
        blobs.c.part == 0,
        blobs.c.kind.like(f"{CHOICE}%"),
    )
    kinds = set(connection.execute(query).scalars())
    if CHOICE in kinds:
        return Choice.unpack(get_blob(connection, key.session, CHOICE, key.step) or b"")
    return Pending({int(kind.removeprefix(_part_kind(""))) for kind in kinds})


def _part_kind(rank: int | str) -> str:
    return f"{CHOICE}-part:{rank}"


def _delete_parts(key: StepKey) -> Any:
    return delete(blobs).where(
        blobs.c.session == key.session, blobs.c.number == key.step, blobs.c.kind.like(f"{_part_kind('')}%")
    )
