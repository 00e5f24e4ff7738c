"""Losses of certain steps and ranks in the store, for whoever looks back. Blocking calls only."""

from collections.abc import Iterable

import numpy as np
from sqlalchemy import func, select

from curation.service.session.protocols import Losses
from curation.service.session.session import LOSS
from curation.service.store import Store
from curation.service.store.tables import reports


def losses_at(store: Store, key: int, batches: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Losses]:
    """Losses of the batches given as (step, rank), of those that were reported. A look-up of one key each."""
    query = select(reports.c.losses).where(reports.c.session == key)
    found = {}
    with store.engine.connect() as connection:
        for step, rank in batches:
            data = connection.execute(query.where(reports.c.step == step, reports.c.rank == rank)).scalar_one_or_none()
            if data is not None:
                found[step, rank] = np.frombuffer(data, LOSS)
    return found


def last_reported(store: Store, key: int) -> int | None:
    """The furthest step that was reported."""
    query = select(func.max(reports.c.step)).where(reports.c.session == key)
    with store.engine.connect() as connection:
        step: int | None = connection.execute(query).scalar_one()
    return step
