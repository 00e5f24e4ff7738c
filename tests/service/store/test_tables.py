"""Tables of the store: a store of any older release is moved on to what a new one has."""

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, inspect

from curation.service.store import Store
from curation.service.store.tokens import read_tokens

FIRST = Path(__file__).with_name("version-1.sql")


def open_first(path: Path) -> Store:
    """A store as release 0.1 wrote it, opened by this one."""
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST.read_text())
    connection.close()
    return Store(f"sqlite:///{path}")


def tables_of(store: Store) -> dict[str, dict[str, tuple[str, bool]]]:
    engine = create_engine(store.url)
    looked = inspect(engine)
    described: dict[str, Any] = {
        table: {column["name"]: (str(column["type"]), column["nullable"]) for column in looked.get_columns(table)}
        | {str(index["column_names"]): ("index", index["unique"]) for index in looked.get_indexes(table)}
        for table in looked.get_table_names()
    }
    engine.dispose()
    return described


def test_an_older_store_is_moved_on_to_what_a_new_one_has(tmp_path: Path) -> None:
    old, new = open_first(tmp_path / "old.db"), Store(f"sqlite:///{tmp_path}/new.db")
    try:
        assert tables_of(old) == tables_of(new)
        row = old.session("old")
        assert row is not None
        assert (row.size, row.spec.method) == (100, "infobatch")
        assert [(token.name, token.owner == token.id) for token in read_tokens(old)] == [("old", True)]
    finally:
        old.close()
        new.close()
