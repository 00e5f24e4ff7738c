"""Identity of a session: what it was created from, so that a repeated request to create it is told from another one."""

import secrets
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import xxhash

from curation.service.arrow import write_table
from curation.service.errors import Refusal
from curation.service.session.methods.registry import method_kind
from curation.service.session.spec import SessionSpec
from curation.service.store import SessionRow, Store
from curation.service.store.blobs import Bytes


def first_generation() -> int:
    """Where the generations of a new session begin: anywhere, so that trainers of an earlier one of its id are told."""
    return secrets.randbelow(1 << 30)


def digest_of(spec: SessionSpec, size: int, tables: Mapping[str, Bytes]) -> str:
    """32 hexadecimal digits, the same for the same request."""
    hashed = xxhash.xxh3_128(f"{size} {spec.model_dump_json()}".encode())
    for name in sorted(tables):
        hashed.update(f"{name} {len(tables[name])} ".encode())
        hashed.update(tables[name])
    return hashed.hexdigest()


def check_alike(store: Store, row: SessionRow, spec: SessionSpec, size: int, tables: Mapping[str, Bytes]) -> None:
    """Refuse to create a session whose id another one has, unless that was created alike. Blocking.

    Raises:
        Refusal: ``id-taken``, and what differs.
    """
    if row.digest == digest_of(spec, size, tables):
        return
    stored = store.tables(row.key)
    kind = method_kind(row.spec.method)
    inline = kind.to_table(row.spec) if kind.table is not None and not stored else None
    if inline is not None and kind.table is not None:  # an older release kept tables that came as JSON in the spec
        row, stored = replace(row, spec=inline[0]), {kind.table: write_table(inline[1])}
    differing = [name for name in SessionSpec.model_fields if _differs(row, spec, name)]
    if row.size != size and "size" not in differing:
        differing.append("size")
    differing += [name for name in sorted({*stored, *tables}) if not _same(stored.get(name), tables.get(name))]
    if differing:
        raise Refusal(
            "id-taken",
            f"session {row.id!r} exists with another {', '.join(differing)}: leave the id out, choose another, or "
            "delete that session first",
            differing=differing,
        )


def _differs(row: SessionRow, spec: SessionSpec, name: str) -> bool:
    if name == "planned_epochs" and spec.planned_epochs is None:
        return False  # what raised the epochs of the stored one has set it
    if name == "non_finite" and row.digest is None and name not in spec.model_fields_set:
        return False  # an older release created it, whose default was another
    return bool(getattr(row.spec, name) != getattr(spec, name))


def _same(stored: bytes | None, given: Bytes | None) -> bool:
    """Whether two tables hold the same, in whichever pieces they came."""
    if stored is None or given is None or stored == given:
        return stored == given
    tables = [pa.ipc.open_stream(data).read_all() for data in (stored, given)]
    return bool(tables[0].equals(tables[1]))
