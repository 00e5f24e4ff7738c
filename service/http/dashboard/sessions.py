"""Sessions as the dashboard lists them: searched, sorted and paged by the store, each with how it stands."""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from curation.service.errors import Refusal
from curation.service.http.dashboard.progress import Standing
from curation.service.store import Store
from curation.service.store.tables import PRESENT, sessions

Sort = Literal["newest", "oldest", "name", "largest"]
_COLUMNS = {
    "newest": (sessions.c.key, True),
    "oldest": (sessions.c.key, False),
    "name": (sessions.c.id, False),
    "largest": (sessions.c.size, True),
}


class Line(BaseModel):
    """One session of the list."""

    id: str
    owner: str | None
    method: str
    size: int
    epochs: int
    world_size: int
    created: float
    standing: Standing | None = Field(description="null: not in memory, and too large to be loaded for a list")


class Found(NamedTuple):
    """Ids of a page's sessions, how many there are in all, and where the next page starts."""

    ids: list[str]
    total: int
    next: str | None


def find_sessions(store: Store, owner: str | None, search: str, sort: Sort, after: str | None, limit: int) -> Found:
    """A page of the sessions of an owner (None: everyone's) whose id, owner or method contains ``search``.

    ``after`` is what the page before ended with, so that sessions made or deleted meanwhile shift nothing.

    Raises:
        Refusal: ``after`` is not that.
    """
    column, falling = _COLUMNS[sort]
    query = select(sessions.c.id, sessions.c.key, column.label("value")).where(PRESENT)
    if owner is not None:
        query = query.where(sessions.c.owner == owner)
    if search:
        query = query.where(_contains(search))
    counted: Select[Any] = select(func.count()).select_from(query.subquery())
    if after is not None:
        query = query.where(_beyond(column, falling, after))
    order = [column.desc() if falling else column.asc(), sessions.c.key.desc() if falling else sessions.c.key.asc()]
    with store.engine.connect() as connection:
        total: int = connection.execute(counted).scalar_one()
        rows = connection.execute(query.order_by(*order).limit(limit)).all()
    following = f"{rows[-1].key}-{rows[-1].value}" if len(rows) == limit else None
    return Found([row.id for row in rows], total, following)


def sizes_of(lengths: npt.NDArray[Any], limit: int = 12) -> dict[str, int]:
    """How many batches there are of each size, the commonest sizes first."""
    sizes, counts = np.unique(lengths, return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:limit]
    return {str(sizes[i]): int(counts[i]) for i in commonest}


def _contains(search: str) -> ColumnElement[bool]:
    needle = search.lower()
    columns = (sessions.c.id, func.coalesce(sessions.c.owner, ""))
    method = func.lower(sessions.c.spec).contains(f'"method":"{needle}', autoescape=True)
    return or_(*(func.lower(column).contains(needle, autoescape=True) for column in columns), method)


def _beyond(column: Any, falling: bool, after: str) -> ColumnElement[bool]:
    number, _, text = after.partition("-")
    try:
        key, value = int(number), text if column is sessions.c.id else int(text)
        if max(abs(key), 0 if isinstance(value, str) else abs(value)) >= 1 << 62:
            raise ValueError
    except ValueError:
        raise Refusal("bad-body", "after is not what an answer named as next") from None
    other, later = (column < value, sessions.c.key < key) if falling else (column > value, sessions.c.key > key)
    return or_(other, and_(column == value, later))
