"""Sessions in the store: made, found, rewound, removed. Blocking."""

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, or_, select, update

from curation.service.session.caller import Caller
from curation.service.session.spec import SessionSpec
from curation.service.store.audit import record
from curation.service.store.blobs import CHOICE, IMPORTED, PACKED, Bytes, get_blob
from curation.service.store.database import Database, outdated
from curation.service.store.maintenance.removal import GONE, Remover, finish_removal
from curation.service.store.records.creation import Contents, create
from curation.service.store.records.rows import SessionRow, session_of
from curation.service.store.segments import forget_segments
from curation.service.store.tables import PRESENT, WHOLE, blobs, epochs, reports, sessions

UPKEEP = Caller("", frozenset({"admin"}))
"""Who removes sessions that nobody used, in the audit trail."""


class Sessions(Database):
    """The sessions of a store."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.remover = Remover(self)

    def own(self) -> None:
        super().own()
        self.remover.resume()

    def close(self) -> None:
        self.remover.close()
        super().close()

    def create(
        self,
        id: str,
        caller: Caller,
        spec: SessionSpec,
        size: int,
        tables: Mapping[str, Bytes],
        generation: int = 0,
        digest: str | None = None,
    ) -> SessionRow | None:
        """Store a new session, the caller's; None where the id is taken. Others commit between its pieces.

        Raises:
            Refusal: the caller's owner has as many sessions as it may.
        """
        row = SessionRow(0, id, caller.owner, generation, spec, size, 0, time.time(), digest)
        return create(self, self.remover, caller, row, Contents(tables), "session.create")

    def restore(self, caller: Caller, row: SessionRow, contents: Contents) -> SessionRow | None:
        """As :meth:`create`, of a session that is on its way already; it gets a key, which the row returned has.

        Raises:
            Refusal: the caller's owner has as many sessions as it may, or ``contents.reports`` raised it.
        """
        return create(self, self.remover, caller, row, contents, "session.import")

    def imported(self, key: int) -> tuple[int, str] | None:
        """The generation that a session was imported with, and a digest of the request; None where it was created, or
        by an older release."""
        with self.engine.connect() as connection:
            data = get_blob(connection, key, IMPORTED, 0)
        generation, _, digest = (data or b"").decode().partition(" ")
        return (int(generation), digest) if digest else None

    def session(self, id: str) -> SessionRow | None:
        """One session by its id."""
        with self.engine.connect() as connection:
            row = connection.execute(select(sessions).where(sessions.c.id == id, PRESENT)).one_or_none()
        return None if row is None else session_of(row)

    def owner_of(self, id: str) -> str | None:
        """Whose a session is; None where it is nobody's, or there is none of that id."""
        query = select(sessions.c.owner).where(sessions.c.id == id, PRESENT)
        with self.engine.connect() as connection:
            return connection.execute(query).scalar_one_or_none()

    def list_sessions(self, owner: str | None, after: int, limit: int) -> list[SessionRow]:
        """Sessions of an owner (None: everyone's), oldest first, with keys above ``after``."""
        query = select(sessions).where(sessions.c.key > after, PRESENT).order_by(sessions.c.key).limit(limit)
        if owner is not None:
            query = query.where(sessions.c.owner == owner)
        with self.engine.connect() as connection:
            return [session_of(row) for row in connection.execute(query)]

    def count_sessions(self) -> int:
        """How many sessions are stored."""
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(sessions).where(PRESENT)).scalar_one()

    def delete_session(self, key: int, caller: Caller) -> None:
        """Forget a session and all its reports: at once to see, from the file in a while."""
        values = {"id": f":{key}", "owner": None, "generation": GONE, "cut": WHOLE}
        with self.writing() as connection:
            query = select(sessions.c.id).where(sessions.c.key == key, PRESENT)
            id = connection.execute(query if not self.shared else query.with_for_update()).scalar_one_or_none()
            if id is not None:
                connection.execute(update(sessions).where(sessions.c.key == key).values(values))
                record(connection, caller, "session.delete", id)
        self.remover.finish(key)

    def note_use(self, used: Mapping[int, float]) -> None:
        """Store when sessions were used last, by key, in seconds since 1970."""
        query = update(sessions).where(sessions.c.key == bindparam("at_key")).values(used=bindparam("at"))
        with self.writing() as connection:
            connection.execute(query, [{"at_key": key, "at": at} for key, at in sorted(used.items())])

    def remove_unused(self, before: float) -> list[str]:
        """Remove the sessions that were last used, or else created, before a time; their ids."""
        query = select(sessions.c.key, sessions.c.id).where(
            sessions.c.cut.is_(None), func.coalesce(sessions.c.used, sessions.c.created) < before
        )
        with self.engine.connect() as connection:
            found = connection.execute(query).all()
        for key, _ in found:
            self.delete_session(key, UPKEEP)
        return [id for _, id in found]

    def forget_reports(self, key: int, generation: int, step: int, base: int) -> None:
        """Remove the reports before a step, some time; the session starts at epoch ``base`` from now on.

        Raises:
            Refusal: the session was rewound or deleted meanwhile.
        """
        with self.changing(key, generation) as connection:
            raised = update(sessions).where(sessions.c.key == key, sessions.c.base < base)
            connection.execute(raised.values(base=base))  # a replica that is behind would lower it
        self.remover.remove_reports(key, step)

    def base(self, key: int) -> int | None:
        """The first epoch of a session that can be computed, as it is now."""
        with self.engine.connect() as connection:
            return connection.execute(select(sessions.c.base).where(sessions.c.key == key)).scalar_one_or_none()

    def note(self, row: SessionRow, caller: Caller, act: str, **detail: Any) -> None:
        """Write an act on a session to the audit trail.

        Raises:
            Refusal: the session was rewound or deleted meanwhile.
        """
        with self.changing(row.key, row.generation) as connection:
            record(connection, caller, act, row.id, **detail)

    def change(self, row: SessionRow, spec: SessionSpec, caller: Caller) -> None:
        """Store what may change of a session's parameters.

        Raises:
            Refusal: another request rewound, changed or deleted the session meanwhile.
        """
        with self.changing(row.key, row.generation) as connection:
            stored = connection.execute(select(sessions.c.spec).where(sessions.c.key == row.key)).scalar_one()
            if SessionSpec.model_validate_json(stored) != row.spec:
                raise outdated()
            values = {"spec": spec.model_dump_json()}
            connection.execute(update(sessions).where(sessions.c.key == row.key).values(**values))
            now, before = spec.model_dump(mode="json"), row.spec.model_dump(mode="json")
            changed = {name: value for name, value in now.items() if before[name] != value}
            record(connection, caller, "session.change", row.id, **changed)

    def rewind(
        self, key: int, generation: int, step: int, epoch: int, caller: Caller, request: str | None = None
    ) -> int:
        """Forget reports from ``step`` on and epochs after ``epoch``; returns the new generation.

        ``request`` names this rewind, so that a repeated one is known. Until all is removed the session takes nothing,
        and others' commits go on.

        Raises:
            Refusal: another request rewound or deleted the session meanwhile, or its reports of the epoch went.
        """
        following = generation + 1
        with self.changing(key, generation) as connection:
            check_kept(connection, key, epoch)
            forget_segments(connection, key, step, epoch)
            connection.execute(delete(epochs).where(epochs.c.session == key, epochs.c.number > epoch))
            values = {"generation": -following, "cut": step, "last_rewind": request, "used": time.time()}
            marked = update(sessions).where(sessions.c.key == key).values(values).returning(sessions.c.id)
            id = connection.execute(marked).scalar_one()
            record(connection, caller, "session.rewind", id, step=step, generation=following)
        finish_removal(self, key)
        return following

    def finish_rewind(self, row: SessionRow) -> None:
        """Remove what a rewind left that was killed, or is still on its way in another replica."""
        finish_removal(self, row.key)

    def tables(self, key: int) -> dict[str, bytes]:
        """The Arrow tables that came with a session, by name."""
        with self.engine.connect() as connection:
            kinds = connection.execute(
                select(blobs.c.kind).where(blobs.c.session == key, blobs.c.kind.like("table:%")).distinct()
            )
            return {kind[6:]: get_blob(connection, key, kind, 0) or b"" for kind in kinds.scalars().all()}


def check_kept(connection: Connection, key: int, epoch: int) -> None:
    """Refuse to go back to an epoch, in a transaction that changes the session, whose reports went meanwhile."""
    if connection.execute(select(sessions.c.base).where(sessions.c.key == key)).scalar_one() > epoch:
        raise outdated()


def forget_from(connection: Connection, key: int, step: int, epoch: int, request: str | None = None) -> str:
    """Forget reports from ``step`` on and epochs after ``epoch``, in a transaction that changes the session; its id."""
    connection.execute(delete(reports).where(reports.c.session == key, reports.c.step >= step))
    forget_segments(connection, key, step, epoch)
    connection.execute(delete(epochs).where(epochs.c.session == key, epochs.c.number > epoch))
    of_later = or_(
        and_(blobs.c.kind.like(f"{PACKED}%"), blobs.c.number > epoch),
        and_(blobs.c.kind.like(f"{CHOICE}%"), blobs.c.number >= step),
    )
    connection.execute(delete(blobs).where(blobs.c.session == key, of_later))
    values = {"generation": sessions.c.generation + 1, "last_rewind": request, "used": time.time()}
    risen = update(sessions).where(sessions.c.key == key).values(**values)
    id: str = connection.execute(risen.returning(sessions.c.id)).scalar_one()
    return id
