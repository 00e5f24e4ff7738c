"""Reports in the store: added by many requests at once, read by step. Blocking."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, bindparam, func, select, tuple_

from curation.service.errors import Refusal
from curation.service.session.session import LOSS, Report
from curation.service.store.database import Database, outdated
from curation.service.store.records.rows import report_row
from curation.service.store.reports import Ignored, ReportWriter, Write
from curation.service.store.tables import reports, sessions

# Built once: for a group of reports, building them took as long as running them. In the order of keys, so that two
# replicas never wait for each other's rows.
_GENERATIONS = (
    select(sessions.c.key, sessions.c.generation)
    .where(sessions.c.key.in_(bindparam("keys", expanding=True)))
    .order_by(sessions.c.key)
)
_LOCKED_GENERATIONS = _GENERATIONS.with_for_update(read=True)
_LOSSES_AT_ONCE = 1 << 18
_PAIRS_AT_ONCE = 1 << 16
_PLACES = 500


class ReportLog(Database):
    """The reports of a store."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._add_reports = self.upsert(reports).on_conflict_do_nothing()
        self._report_writer = ReportWriter(self.engine, self.checkpointer)

    def close(self) -> None:
        self._report_writer.close()
        super().close()

    def add_reports(self, writes: Sequence[Write]) -> list[Ignored | Refusal]:
        """Store the reports of many requests in one transaction; on disk when this returns.

        A report that is there already stays as it is. Returns for each request which of its reports were others than
        those; or what hindered it: its session was rewound or deleted by another replica.

        Raises:
            Refusal: the store's file is gone: nothing was stored.
        """
        if not self.shared:
            with self.one_writer:
                done = self._report_writer.add(writes)
            self.check_file()
            return [outdated() if ignored is None else ignored for ignored in done]
        keys = {"keys": list({write.key for write in writes})}
        reporting = any(write.reports for write in writes)
        query = _LOCKED_GENERATIONS if reporting else _GENERATIONS
        with self.writing() if reporting else self.engine.connect() as connection:
            known = {key: generation for key, generation in connection.execute(query, keys)}  # noqa: C416 (typed rows)
            valid = [write for write in writes if known.get(write.key) == write.generation]
            rows = [report_row(write.key, report) for write in valid for report in write.reports]
            # In one order, so that two replicas that add the same ones never wait for each other.
            rows.sort(key=lambda row: (row["session"], row["step"], row["rank"]))
            stored: dict[tuple[int, int, int], bytes] = {}
            if rows and connection.execute(self._add_reports, rows).rowcount < len(rows):
                stored = _losses(connection, [(row["session"], row["step"], row["rank"]) for row in rows])
        return [_ignored(write, stored) if known.get(write.key) == write.generation else outdated() for write in writes]

    def reports(self, key: int, first: int, end: int, length: int = 1024) -> Iterator[Report]:
        """Reports of the steps ``first .. end - 1``, by step and rank; read as they are used.

        ``length`` is about how many losses each has: so few are read at once that they fit in a megabyte.
        """
        query = (
            select(reports.c.rank, reports.c.step, reports.c.losses)
            .where(reports.c.session == key, reports.c.step >= first, reports.c.step < end)
            .order_by(reports.c.step, reports.c.rank)
            .execution_options(yield_per=int(np.clip(_LOSSES_AT_ONCE // length, 1, 256)))
        )
        with self.engine.connect() as connection:
            for rank, step, losses in connection.execute(query):
                yield Report(rank, step, np.frombuffer(losses, LOSS))

    def reported(self, key: int, first: int, end: int) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """int64[n] ranks and int64[n] steps of the reports of some steps, a piece at a time."""
        query = (
            select(reports.c.rank, reports.c.step)
            .where(reports.c.session == key, reports.c.step >= first, reports.c.step < end)
            .execution_options(yield_per=_PAIRS_AT_ONCE)
        )
        with self.engine.connect() as connection:
            for rows in connection.execute(query).partitions():
                pairs = np.array([tuple(row) for row in rows], np.int64)
                yield pairs[:, 0], pairs[:, 1]

    def arrived(self, key: int, places: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
        """Those of int64[m, 2] (rank, step) whose report is stored."""
        query = select(reports.c.rank, reports.c.step).where(
            reports.c.session == key,
            tuple_(reports.c.step, reports.c.rank).in_([(step, rank) for rank, step in places.tolist()]),
        )
        with self.engine.connect() as connection:
            return [(rank, step) for rank, step in connection.execute(query)]

    def progress(self, key: int) -> dict[int, tuple[int, int]]:
        """For each rank that reported: how many reports, and the last step among them. Reads all of them."""
        query = (
            select(reports.c.rank, func.count(), func.max(reports.c.step))
            .where(reports.c.session == key)
            .group_by(reports.c.rank)
        )
        with self.engine.connect() as connection:
            return {rank: (count, last) for rank, count, last in connection.execute(query)}


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
