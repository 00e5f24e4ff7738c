"""Opening of a store: what a database or the system says against it, in one line with what to do."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from curation.service.store.database import checked_url
from curation.service.store.sqlite.ownership import StoreError
from curation.service.store.store import Store

_ADVICE = {
    "file is not a database": "name another file, or move this one away",
    "unable to open database file": "check that its folder exists and that this user may write there",
    "attempt to write a readonly database": "check that this user may write the file and its folder",
    "database is locked": "another process holds it: stop that one",
    "password authentication failed": "check the user and the password in the URL, or in ~/.pgpass",
    "does not exist": "create the database and the user first, or correct the URL",
    "failed to resolve host": "check the host in the URL",
    "Connection refused": "check that PostgreSQL runs and listens there",
}


def open_store(url: str, *, make: bool = True) -> Store:
    """The store of a URL. A SQLite file that is made now is readable for this user only.

    ``make=False``: one that is not there is an error. A backup or a check of a name that is spelled wrong would find an
    empty store in order.

    Raises:
        StoreError: it cannot be opened; says why and what to do.
        StoreVersionError: a newer release wrote it.
    """
    parsed = checked_url(url)
    with explained(parsed):
        if parsed.get_backend_name() == "sqlite":
            file = Path(str(parsed.database))
            if not make and not file.exists():
                raise StoreError(f"{file}: there is no such store: correct the name; `curation serve` makes a new one")
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return Store(url)


@contextmanager
def explained(url: URL) -> Iterator[None]:
    """Turn what the database or the system says against a store into a ``StoreError``."""
    try:
        yield
    except (DBAPIError, sqlite3.Error, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        text = " ".join(str(cause).split()) or type(cause).__name__
        advice = next((advice for said, advice in _ADVICE.items() if said in text), "see docs/service/operations.md")
        name = url.database if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
        raise StoreError(f"{name}: the store cannot be opened: {text[:500].rstrip('.')}. To do: {advice}.") from error
