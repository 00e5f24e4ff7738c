"""Epochs in the store: a row for each that was opened, and the states of the latest. Blocking."""

from collections.abc import Sequence

from sqlalchemy import and_, select, update

from curation.service.session.protocols import State
from curation.service.session.segments import Segment
from curation.service.session.session import EpochRecord
from curation.service.store.database import outdated
from curation.service.store.records.rows import SessionRow, epoch_of, epoch_row
from curation.service.store.records.sessions import Sessions
from curation.service.store.records.states import latest_state, put_state
from curation.service.store.segments import read_segments, world_sizes
from curation.service.store.tables import epochs, sessions


class Epochs(Sessions):
    """The sessions of a store, with their epochs."""

    def records(self, row: SessionRow, first: int = 0) -> list[EpochRecord]:
        """The epochs opened so far, from number ``first`` on, in order.

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
            opened = connection.execute(query).all()
            resized = read_segments(connection, row.key)
        if not opened or opened[0].generation != row.generation:
            raise outdated()
        return [epoch_of(row.spec, resized, epoch) for epoch in opened if epoch.number is not None]

    def segments(self, key: int) -> list[Segment]:
        """How a session was resized, by first step."""
        with self.engine.connect() as connection:
            return read_segments(connection, key)

    def world_sizes(self, keys: Sequence[int]) -> dict[int, int]:
        """How many ranks those of some sessions have that were resized, by key."""
        with self.engine.connect() as connection:
            return world_sizes(connection, keys)

    def put_state(self, key: int, generation: int, number: int, state: State) -> str | None:
        """Store the state that an epoch starts from, before it opens: a part at a time, between the commits of others.

        Returns its name, for :meth:`open_epoch`; None for the first epoch, whose state every method knows.

        Raises:
            Refusal: the session was rewound or deleted meanwhile.
        """
        return put_state(self, key, generation, number, state) if number else None

    def open_epoch(self, key: int, generation: int, record: EpochRecord, state: str | None) -> bool:
        """Store an epoch that opens, with the name of its state; False where another replica was first.

        States of the two latest epochs stay, and that of the base; others can be computed again from the reports.

        Raises:
            Refusal: the session was rewound or deleted meanwhile.
        """
        with self.changing(key, generation) as connection:
            query = self.upsert(epochs).values(**epoch_row(key, record, state)).on_conflict_do_nothing()
            opened = connection.execute(query).rowcount > 0
            base = select(sessions.c.base).where(sessions.c.key == key).scalar_subquery()
            old = update(epochs).where(
                epochs.c.session == key,
                epochs.c.number < record.number - 1,
                epochs.c.number > base,
                epochs.c.state.is_not(None),
            )
            connection.execute(old.values(state=None))
        if record.number:
            self.remover.remove_states(key)
        return opened

    def state(self, key: int, number: int) -> tuple[int, State] | None:
        """The latest stored state of an epoch up to ``number``, and which epoch's; None where none is stored.

        Its arrays are the caller's own, unless release 0.1 stored it.
        """
        with self.engine.connect() as connection:
            return latest_state(connection, key, number)
