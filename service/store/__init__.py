"""Store: what survives a crash, in SQLite or PostgreSQL."""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.service.store.blobs import CHOICE as CHOICE
    from curation.service.store.records.rows import SessionRow as SessionRow
    from curation.service.store.store import Store as Store
    from curation.service.store.tokens import Token as Token

__all__ = [
    "CHOICE",
    "SessionRow",
    "Store",
    "Token",
]

__getattr__ = face(
    __name__,
    {
        "CHOICE": "blobs",
        "SessionRow": "records.rows",
        "Store": "store",
        "Token": "tokens",
    },
)
