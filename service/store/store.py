"""Store of sessions, opened epochs and reports, which survive a crash, in SQLite or PostgreSQL; blocking.

A report's losses are one blob of little-endian float32, a state one Arrow stream cut into parts; nothing is a row for
each candidate. On SQLite every commit is on disk when it returns (WAL, ``synchronous=FULL``), and one server at a
time owns the file; on PostgreSQL several replicas share the store.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, tuple_, update

from curation.service.errors import Refusal
from curation.service.session.caller import Caller
from curation.service.session.protocols import State
from curation.service.session.segments import Segment
from curation.service.session.session import LOSS, EpochRecord, Report, record_of
from curation.service.session.spec import SessionSpec
from curation.service.store.audit import record
from curation.service.store.blobs import Bytes, get_blob, pack_state, put_blob, unpack_state
from curation.service.store.database import checked_url, make_engine, own_file
from curation.service.store.owners import check_quota, lock_quota
from curation.service.store.reports import Ignored, ReportWriter, Write
from curation.service.store.segments import forget_segments, put_segments, read_segments
from curation.service.store.tables import blobs, epochs, heartbeat, migrate, reports, sessions

CHOICE = "choice"
_PLACES = 500

# Built once: for a group of reports, building them took as long as running them. In the order of keys, so that two
# replicas never wait for each other's rows.
_GENERATIONS = (
    select(sessions.c.key, sessions.c.generation)
    .where(sessions.c.key.in_(bindparam("keys", expanding=True)))
    .order_by(sessions.c.key)
)
_LOCKED_GENERATIONS = _GENERATIONS.with_for_update(read=True)


@dataclass(frozen=True)
class SessionRow:
    """A session as it is stored.

    ``base`` is the first epoch that can still be computed (an import may start later), ``digest`` that of what it was
    created from (None: an older release did), ``last_rewind`` the name of the request that rewound it last.
    """

    key: int
    id: str
    owner: str | None
    generation: int
    spec: SessionSpec
    size: int
    base: int
    created: float
    digest: str | None = None
    last_rewind: str | None = None


class Store:
    """One store.

    Args:
        url: ``sqlite:///file`` or ``postgresql+psycopg://user@host/database``.

    Raises:
        StoreError: the URL is not understood.
        StoreVersionError: a newer release wrote the store.
    """

    def __init__(self, url: str) -> None:
        self.url = checked_url(url)
        self.shared = self.url.get_backend_name() == "postgresql"
        self.engine = make_engine(self.url)
        self._writes = self.engine.execution_options(immediate=True)
        self._one_writer = threading.Lock()
        self._owner: Any = None
        self._upsert = _upsert(self.shared)
        self._add_reports = self._upsert(reports).on_conflict_do_nothing()
        self._report_writer = ReportWriter(self.engine)
        migrate(self._writes)

    def own(self) -> None:
        """Become the one server of a SQLite file; nothing to do where stores are shared.

        Raises:
            StoreError: another server has it.
        """
        if self.shared or self._owner is not None:
            return
        self._owner = own_file(str(self.url.database))

    @property
    def safe_url(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Let go of all connections, and of the file."""
        self._report_writer.close()
        self.engine.dispose()
        if self._owner is not None:
            self._owner.close()
            self._owner = None

    def ping(self) -> None:
        """Raise where the store takes no writes."""
        query = self._upsert(heartbeat).values(id=0, at=time.time())
        with self.writing() as connection:
            connection.execute(query.on_conflict_do_update(index_elements=["id"], set_={"at": query.excluded.at}))

    # Sessions

    def create(
        self,
        id: str,
        caller: Caller,
        spec: SessionSpec,
        size: int,
        tables: Mapping[str, bytes],
        generation: int = 0,
        digest: str | None = None,
    ) -> SessionRow | None:
        """Store a new session, the caller's; None where the id is taken.

        Raises:
            Refusal: the caller's owner has as many sessions as it may.
        """
        about: dict[str, Any] = {"generation": generation, "digest": digest, "act": "session.create"}
        return self.restore(id, caller, spec, size, tables, 0, (), None, (), **about)

    def restore(
        self,
        id: str,
        caller: Caller,
        spec: SessionSpec,
        size: int,
        tables: Mapping[str, Bytes],
        base: int,
        records: Sequence[EpochRecord],
        state: Bytes | None,
        restored: Iterable[Report],
        choices: Mapping[int, Bytes] = MappingProxyType({}),
        resized: Sequence[Segment] = (),
        generation: int = 0,
        digest: str | None = None,
        *,
        act: str = "session.import",
    ) -> SessionRow | None:
        """Store a new session that is on its way already; None where the id is taken.

        ``state`` is packed, ``restored`` is read as it is stored, ``choices`` are by step.

        Raises:
            Refusal: the caller's owner has as many sessions as it may.
        """
        created = time.time()
        values = {"id": id, "owner": caller.owner, "spec": spec.model_dump_json(), "size": size, "base": base}
        query = self._upsert(sessions).values(**values, generation=generation, created=created, digest=digest)
        with self.writing() as connection:
            lock_quota(connection, caller)
            key = connection.execute(query.on_conflict_do_nothing().returning(sessions.c.key)).scalar_one_or_none()
            if key is None:
                return None
            check_quota(connection, caller)
            for name, data in tables.items():
                put_blob(connection, key, f"table:{name}", 0, data)
            put_segments(connection, key, resized)
            if records:
                connection.execute(insert(epochs), [_epoch_row(key, record) for record in records])
            if state is not None and base > 0:
                put_blob(connection, key, "state", base, state)
            remaining = iter(restored)
            while some := [_report_row(key, report) for report in islice(remaining, 256)]:
                connection.execute(insert(reports), some)
            for step, data in choices.items():
                put_blob(connection, key, CHOICE, step, data)
            record(connection, caller, act, id, method=spec.method, size=size)
        return SessionRow(key, id, caller.owner, generation, spec, size, base, created, digest)

    def session(self, id: str) -> SessionRow | None:
        """One session by its id."""
        with self.engine.connect() as connection:
            row = connection.execute(select(sessions).where(sessions.c.id == id)).one_or_none()
        return None if row is None else _session(row)

    def owner_of(self, id: str) -> str | None:
        """Whose a session is; None where it is nobody's, or there is none of that id."""
        with self.engine.connect() as connection:
            return connection.execute(select(sessions.c.owner).where(sessions.c.id == id)).scalar_one_or_none()

    def list_sessions(self, owner: str | None, after: int, limit: int) -> list[SessionRow]:
        """Sessions of an owner (None: everyone's), oldest first, with keys above ``after``."""
        query = select(sessions).where(sessions.c.key > after).order_by(sessions.c.key).limit(limit)
        if owner is not None:
            query = query.where(sessions.c.owner == owner)
        with self.engine.connect() as connection:
            return [_session(row) for row in connection.execute(query)]

    def count_sessions(self) -> int:
        """How many sessions are stored."""
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(sessions)).scalar_one()

    def delete_session(self, key: int, caller: Caller) -> None:
        """Forget a session and all its reports."""
        with self.writing() as connection:
            deleted = connection.execute(
                delete(sessions).where(sessions.c.key == key).returning(sessions.c.id)
            ).scalar()
            if deleted is not None:
                record(connection, caller, "session.delete", deleted)

    def tables(self, key: int) -> dict[str, bytes]:
        """The Arrow tables that came with a session, by name."""
        with self.engine.connect() as connection:
            kinds = connection.execute(
                select(blobs.c.kind).where(blobs.c.session == key, blobs.c.kind.like("table:%")).distinct()
            )
            return {kind[6:]: get_blob(connection, key, kind, 0) or b"" for kind in kinds.scalars().all()}

    # Epochs

    def records(self, row: SessionRow, first: int = 0) -> list[EpochRecord]:
        """The epochs opened so far, in order, from one on.

        Raises:
            Refusal: the session was rewound or deleted since the row was read.
        """
        query = (
            select(sessions.c.generation, epochs)
            .outerjoin_from(sessions, epochs, and_(epochs.c.session == sessions.c.key, epochs.c.number >= first))
            .where(sessions.c.key == row.key)
            .order_by(epochs.c.number)
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
            resized = read_segments(connection, row.key)
        if not rows or rows[0].generation != row.generation:
            raise _outdated()
        return [_record(row.spec, resized, epoch) for epoch in rows if epoch.number is not None]

    def segments(self, key: int) -> list[Segment]:
        """How a session was resized, by first step."""
        with self.engine.connect() as connection:
            return read_segments(connection, key)

    def open_epoch(self, key: int, generation: int, record: EpochRecord, state: State) -> bool:
        """Store an epoch that opens, with the state it starts from; False where another replica was first.

        States of the two latest epochs stay, and that of the base; others can be computed again from the reports.

        Raises:
            Refusal: the session was rewound or deleted meanwhile.
        """
        with self.writing() as connection:
            _check_generation(connection, key, generation, self.shared)
            done = connection.execute(self._upsert(epochs).values(**_epoch_row(key, record)).on_conflict_do_nothing())
            if done.rowcount == 0:
                return False
            if record.number > 0:
                put_blob(connection, key, "state", record.number, pack_state(state))
            connection.execute(
                delete(blobs).where(
                    blobs.c.session == key,
                    blobs.c.kind == "state",
                    blobs.c.number < record.number - 1,
                    blobs.c.number > select(sessions.c.base).where(sessions.c.key == key).scalar_subquery(),
                )
            )
        return True

    def state(self, key: int, number: int) -> tuple[int, State] | None:
        """The latest stored state of an epoch up to ``number``, and which epoch's; None where none is stored."""
        with self.engine.connect() as connection:
            latest = connection.execute(
                select(func.max(blobs.c.number)).where(
                    blobs.c.session == key, blobs.c.kind == "state", blobs.c.number <= number
                )
            ).scalar_one()
            data = None if latest is None else get_blob(connection, key, "state", latest)
        return None if latest is None or data is None else (latest, unpack_state(data))

    def check_generation(self, key: int, generation: int) -> None:
        """Refuse a session that was rewound or deleted since it was of this generation."""
        with self.engine.connect() as connection:
            _check_generation(connection, key, generation, locked=False)

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
                raise _outdated()
            values = {"spec": spec.model_dump_json()}
            connection.execute(update(sessions).where(sessions.c.key == row.key).values(**values))
            now, before = spec.model_dump(mode="json"), row.spec.model_dump(mode="json")
            changed = {name: value for name, value in now.items() if before[name] != value}
            record(connection, caller, "session.change", row.id, **changed)

    def rewind(
        self, key: int, generation: int, step: int, epoch: int, caller: Caller, request: str | None = None
    ) -> int:
        """Forget reports from ``step`` on and epochs after ``epoch``; returns the new generation.

        ``request`` names this rewind, so that a repeated one is known.

        Raises:
            Refusal: another request rewound or deleted the session meanwhile.
        """
        with self.changing(key, generation) as connection:
            id = forget_from(connection, key, step, epoch, request)
            record(connection, caller, "session.rewind", id, step=step, generation=generation + 1)
        return generation + 1

    # Reports

    def add_reports(self, writes: Sequence[Write]) -> list[Ignored | Refusal]:
        """Store the reports of many requests in one transaction; on disk when this returns.

        A report that is there already stays as it is. Returns for each request which of its reports were others than
        those; or what hindered it: its session was rewound or deleted by another replica.
        """
        if not self.shared:
            with self._one_writer:
                done = self._report_writer.add(writes)
            return [_outdated() if ignored is None else ignored for ignored in done]
        keys = {"keys": list({write.key for write in writes})}
        reporting = any(write.reports for write in writes)
        query = _LOCKED_GENERATIONS if reporting else _GENERATIONS
        with self.writing() if reporting else self.engine.connect() as connection:
            known = {key: generation for key, generation in connection.execute(query, keys)}  # noqa: C416 (typed rows)
            valid = [write for write in writes if known.get(write.key) == write.generation]
            rows = [_report_row(write.key, report) for write in valid for report in write.reports]
            stored: dict[tuple[int, int, int], bytes] = {}
            if rows and connection.execute(self._add_reports, rows).rowcount < len(rows):
                stored = _losses(connection, [(row["session"], row["step"], row["rank"]) for row in rows])
        return [
            _ignored(write, stored) if known.get(write.key) == write.generation else _outdated() for write in writes
        ]

    def reports(self, key: int, first: int, end: int) -> Iterator[Report]:
        """Reports of the steps ``first .. end - 1``, by step and rank; read as they are used."""
        query = (
            select(reports.c.rank, reports.c.step, reports.c.losses)
            .where(reports.c.session == key, reports.c.step >= first, reports.c.step < end)
            .order_by(reports.c.step, reports.c.rank)
            .execution_options(yield_per=256)
        )
        with self.engine.connect() as connection:
            for rank, step, losses in connection.execute(query):
                yield Report(rank, step, np.frombuffer(losses, LOSS))

    def reported(self, key: int, first: int, end: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """int64[n] ranks and int64[n] steps of the reports of some steps."""
        query = select(reports.c.rank, reports.c.step).where(
            reports.c.session == key, reports.c.step >= first, reports.c.step < end
        )
        with self.engine.connect() as connection:
            pairs = np.array([tuple(row) for row in connection.execute(query)], np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def arrived(self, key: int, places: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
        """Those of int64[m, 2] (rank, step) whose report is stored."""
        query = select(reports.c.rank, reports.c.step).where(
            reports.c.session == key,
            tuple_(reports.c.step, reports.c.rank).in_([(step, rank) for rank, step in places.tolist()]),
        )
        with self.engine.connect() as connection:
            return [(rank, step) for rank, step in connection.execute(query)]

    def progress(self, key: int) -> dict[int, tuple[int, int]]:
        """For each rank that reported: how many reports, and the last step among them."""
        query = (
            select(reports.c.rank, func.count(), func.max(reports.c.step))
            .where(reports.c.session == key)
            .group_by(reports.c.rank)
        )
        with self.engine.connect() as connection:
            return {rank: (count, last) for rank, count, last in connection.execute(query)}

    @contextmanager
    def changing(self, key: int, generation: int) -> Iterator[Connection]:
        """A transaction that changes one session; others that do wait.

        Raises:
            Refusal: the session was rewound or deleted meanwhile.
        """
        with self.writing() as connection:
            _check_generation(connection, key, generation, self.shared)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction; on SQLite one at a time in this process, which is fairer than its busy handler."""
        with nullcontext() if self.shared else self._one_writer, self._writes.begin() as connection:
            yield connection


def forget_from(connection: Connection, key: int, step: int, epoch: int, request: str | None = None) -> str:
    """Forget reports from ``step`` on and epochs after ``epoch``, in a transaction that changes the session; its id."""
    connection.execute(delete(reports).where(reports.c.session == key, reports.c.step >= step))
    forget_segments(connection, key, step, epoch)
    connection.execute(delete(epochs).where(epochs.c.session == key, epochs.c.number > epoch))
    connection.execute(delete(blobs).where(blobs.c.session == key, blobs.c.kind == "state", blobs.c.number > epoch))
    connection.execute(
        delete(blobs).where(blobs.c.session == key, blobs.c.kind.like(f"{CHOICE}%"), blobs.c.number >= step)
    )
    values = {"generation": sessions.c.generation + 1, "last_rewind": request}
    risen = update(sessions).where(sessions.c.key == key).values(**values)
    id: str = connection.execute(risen.returning(sessions.c.id)).scalar_one()
    return id


def _check_generation(connection: Connection, key: int, generation: int, locked: bool) -> None:
    query = select(sessions.c.generation).where(sessions.c.key == key)
    stored = connection.execute(query.with_for_update() if locked else query).scalar_one_or_none()
    if stored != generation:
        raise _outdated()


def _upsert(shared: bool) -> Any:
    """The ``insert`` that knows conflicts. PostgreSQL's takes long to import: only who has one pays."""
    if shared:
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    return insert


def _outdated() -> Refusal:
    return Refusal(
        "session-changed", "the session was rewound or deleted while this request ran: ask again", retry_after=0.1
    )


def _losses(connection: Connection, places: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], bytes]:
    """The losses stored of some (session, step, rank)."""
    place = tuple_(reports.c.session, reports.c.step, reports.c.rank)
    found: dict[tuple[int, int, int], bytes] = {}
    for start in range(0, len(places), _PLACES):
        query = select(reports).where(place.in_(places[start : start + _PLACES]))
        found |= {(row.session, row.step, row.rank): bytes(row.losses) for row in connection.execute(query)}
    return found


def _ignored(write: Write, stored: Mapping[tuple[int, int, int], bytes]) -> Ignored:
    return tuple(
        report.step
        for report in write.reports
        if stored and stored.get((write.key, report.step, report.rank)) != report.losses.astype(LOSS).tobytes()
    )


def _report_row(key: int, report: Report) -> dict[str, Any]:
    return {"session": key, "step": report.step, "rank": report.rank, "losses": report.losses.astype(LOSS).tobytes()}


def _epoch_row(key: int, record: EpochRecord) -> dict[str, Any]:
    return {
        "session": key,
        "number": record.number,
        "first_step": record.first_step,
        "rows": record.layout.rows,
        "reweighted": record.reweighted,
        "missing": record.missing.astype("<i8").tobytes(),
    }


def _session(row: Any) -> SessionRow:
    spec = SessionSpec.model_validate_json(row.spec)
    about = (row.base, row.created, row.digest, row.last_rewind)
    return SessionRow(row.key, row.id, row.owner, row.generation, spec, row.size, *about)


def _record(spec: SessionSpec, resized: Sequence[Segment], row: Any) -> EpochRecord:
    missing = np.frombuffer(row.missing, "<i8").reshape(-1, 2)
    return record_of(spec, resized, row.number, row.first_step, row.rows, row.reweighted, missing)
