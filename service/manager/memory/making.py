"""Making of epochs: opened with the reports of the one before, or made again from what is stored. Blocking, O(N)."""

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from curation.service.errors import Refusal
from curation.service.logs import logger
from curation.service.manager.memory.spool import Spool
from curation.service.session.protocols import Epoch, Indices, Losses, State
from curation.service.session.session import EpochRecord, Session
from curation.service.store import SessionRow, Store


class EpochMaker:
    """Makes the epochs of a store's sessions.

    Args:
        store: where their states and reports are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(
        self, row: SessionRow, session: Session[Any], number: int, missing: np.ndarray[Any, Any]
    ) -> tuple[EpochRecord, Epoch]:
        """Open an epoch. At 10^8 candidates the order of these lines decides how much memory it takes."""
        if number == 0:
            state = session.method.start()
        else:
            if session.epoch(number - 1) is None:
                session.put(number - 1, self.compute(row, session, number - 1))
            self._make_way(session)
            state = self.fold(row, session, number - 1, self.state(row, session, number - 1), missing)
        stored = self._store.put_state(row.key, row.generation, number, state)
        record, epoch = session.opening(number, state, missing)
        if not self._store.open_epoch(row.key, row.generation, record, stored):
            record = self._store.records(row, number)[0]
            if not np.array_equal(record.missing, missing):
                other = self._store.state(row.key, number)
                if other is None or other[0] != number:
                    raise Refusal("busy", "another replica opened the epoch: ask again", retry_after=0.1)
                epoch = session.make_epoch(number, other[1])
        del state
        epoch.prepare()
        return record, epoch

    def _make_way(self, session: Session[Any]) -> None:
        """Have epochs that are large served from disk while the next one is made, and after."""
        try:
            session.move(Spool)
        except OSError:
            logger.warning("no room on disk for an epoch (%s): it stays in memory", tempfile.gettempdir())

    def compute(self, row: SessionRow, session: Session[Any], number: int) -> Epoch:
        """An open epoch, made again."""
        state = self.state(row, session, number)
        epoch: Epoch = session.make_epoch(number, state)
        del state
        epoch.prepare()
        self._store.check_generation(row.key, row.generation)  # or the reports it was computed from may be others'
        return epoch

    def state(self, row: SessionRow, session: Session[Any], number: int) -> State:
        """The state that an open epoch starts from: stored, or computed from the reports since the last one stored."""
        stored = self._store.state(row.key, number) if number else None
        start, state = stored or (0, session.method.start())
        for epoch in range(start, number):
            state = self.fold(row, session, epoch, state, session.records[epoch + 1].missing)
        if start < number and (self._store.base(row.key) or 0) > start:
            raise Refusal("session-changed", "reports of old epochs were removed just now: ask again", retry_after=0.1)
        return state

    def fold(
        self,
        row: SessionRow,
        session: Session[Any],
        number: int,
        state: State,
        missing: np.ndarray[Any, Any],
        epoch: Epoch | None = None,
    ) -> State:
        """The state after an open epoch, from the one it starts with and its reports. Blocking."""
        record = session.records[number]
        epoch = epoch or session.epoch(number) or session.make_epoch(number, state)
        skipped = {(int(rank), int(step)) for rank, step in missing}

        def reports() -> Iterator[tuple[Indices, Losses]]:
            for report in self._store.reports(row.key, record.first_step, record.end, row.spec.batch_size):
                if (report.rank, report.step) not in skipped:
                    yield epoch.batch(report.rank, report.step - record.first_step)[0], report.losses

        return session.method.fold(state, epoch, reports())
