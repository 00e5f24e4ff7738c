"""Backups: a store as it is at one moment, copied beside a server that runs."""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from curation.service.store import Store
from curation.service.store.sqlite.ownership import StoreError


class Backup(NamedTuple):
    """A copy that was made."""

    file: str
    bytes: int
    sessions: int
    seconds: float


def make_backup(store: Store, file: Path) -> Backup:
    """Copy a SQLite store as it is at one moment, whether or not a server runs; whole or not at all.

    Raises:
        StoreError: the file exists, or the store is PostgreSQL's, which has a tool of its own.
    """
    if store.shared:
        raise StoreError(f"PostgreSQL makes its own backups: pg_dump --format=custom --file={file} '{_for_pg(store)}'")
    if file.exists():
        raise StoreError(f"{file} exists: name another file, so that an older backup is not lost")
    begin = time.monotonic()
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(f"file:{Path(str(store.url.database)).resolve()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(unfinished)) as target,
    ):
        # At once: step by step it would start anew whenever the server commits.
        source.backup(target, pages=-1)
        count = int(target.execute("SELECT count(*) FROM sessions WHERE cut IS NULL OR cut >= 0").fetchone()[0])
        target.execute("PRAGMA journal_mode=DELETE")
    unfinished.chmod(0o600)
    with unfinished.open("rb") as written:
        os.fsync(written.fileno())
    unfinished.rename(file)
    return Backup(str(file), file.stat().st_size, count, time.monotonic() - begin)


def _for_pg(store: Store) -> str:
    return store.url.set(drivername="postgresql").render_as_string(hide_password=True)
