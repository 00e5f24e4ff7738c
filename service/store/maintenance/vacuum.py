"""Vacuum: space that is free goes back to the file system, beside a server or without one."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select, text

from curation.service.store import Store
from curation.service.store.maintenance.removal import finish_removal, shrink
from curation.service.store.sqlite.ownership import StoreError
from curation.service.store.tables import sessions


class Vacuum(NamedTuple):
    """Space that was given back; ``online``: a server went on working meanwhile."""

    bytes_before: int
    bytes_after: int
    online: bool
    seconds: float


def vacuum_store(store: Store) -> Vacuum:
    """Give space that is free back to the file system, after removing what is left to remove.

    Raises:
        StoreError: a server uses the file, which is one of release 0.1: that can only be done while none does.
    """
    begin, before = time.monotonic(), _size(store)
    if store.shared:
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE) sessions, epochs, blobs, reports"))
        return Vacuum(before, _size(store), True, time.monotonic() - begin)
    try:
        store.take_file()
        online = False
    except StoreError:
        online = True
    if online:
        with store.engine.connect() as connection:
            if connection.execute(text("PRAGMA auto_vacuum")).scalar_one() != 2:
                raise StoreError(
                    f"{store.safe_url}: a server uses this store, and it is of release 0.1, which cannot give space "
                    "back meanwhile: stop the server and try again. From then on it can"
                )
        shrink(store, free_pages=0)
    else:
        with store.engine.connect() as connection:
            marked = connection.execute(select(sessions.c.key).where(sessions.c.cut.is_not(None))).scalars().all()
        for key in marked:
            finish_removal(store, key)
        with closing(sqlite3.connect(str(store.url.database), isolation_level=None)) as raw:
            raw.execute("PRAGMA auto_vacuum=INCREMENTAL")
            raw.execute("VACUUM")
    with closing(sqlite3.connect(str(store.url.database), timeout=10)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return Vacuum(before, _size(store), online, time.monotonic() - begin)


def _size(store: Store) -> int:
    if store.shared:
        with store.engine.connect() as connection:
            return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    path = Path(str(store.url.database))
    return sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())
