"""Import of sessions: made from a checkpoint that another server, or this one, exported.

It is read from a file, part by part: of one with a state of 400 MB no copy of that is in memory. A request that is
repeated, because its answer was lost, finds what it made.
"""

import asyncio
import time
from typing import NamedTuple

import pyarrow as pa
import xxhash

from curation.service.datasets import Datasets
from curation.service.errors import Refusal
from curation.service.manager.identity import first_generation
from curation.service.manager.memory.entry import Entry
from curation.service.manager.resizing import Resize, Trained, check_ranks, resize
from curation.service.manager.sessions import SessionManager
from curation.service.session.caller import Caller
from curation.service.session.checkpoint import Checkpoint
from curation.service.session.methods.registry import check_limits, make_method, method_kind
from curation.service.session.protocols import Epoch
from curation.service.session.session import Session
from curation.service.settings import Settings
from curation.service.store import SessionRow, Store
from curation.service.store.records.creation import Contents

_CHANGED = frozenset({"session-changed", "stale-generation"})


class Import(NamedTuple):
    """What an import asks for: the session's id, and the ranks it goes on with, as of a step; None: as it was."""

    id: str
    world_size: int | None
    from_step: int | None


class _Restored(NamedTuple):
    """A session that was made, with its present epoch: its number, and itself where the method has a state."""

    number: int
    epoch: Epoch | None


async def import_session(
    sessions: SessionManager, caller: Caller, asked: Import, file: str, settings: Settings, datasets: Datasets
) -> tuple[Entry, bool]:
    """The session of a checkpoint in a file, and whether it is new; else an earlier try made it of the same one.

    Raises:
        Refusal: the file is no checkpoint, its session could not be created here, its parts do not fit each other, it
            cannot be laid out over those ranks, or the id belongs to another session.
    """
    store, id = sessions.store, asked.id
    digest = await asyncio.to_thread(_digest, file, asked)
    restored: _Restored | None = None
    if await asyncio.to_thread(store.session, id) is None:
        restored = await asyncio.to_thread(_restore, store, caller, id, file, digest, settings, datasets)
    entry = await sessions.taken(caller, id)
    first, made_of = await asyncio.to_thread(store.imported, entry.row.key) or (0, None)
    if made_of != digest:
        raise Refusal("id-taken", f"there is a session {id!r} already, made of something else: choose another id")
    if asked.world_size not in (None, entry.session.world_size) and entry.row.generation == first:
        method = entry.session.method
        trained: Trained = "reported" if method.stateful or method.choosing is not None else "all"
        try:
            resizing = Resize(asked.from_step, asked.world_size or 1, first, trained)
            entry, _ = await resize(sessions, caller, id, resizing, settings)
        except Refusal as refusal:
            # One that an earlier try made may have reports by now.
            if restored is not None and refusal.kind not in _CHANGED:
                await sessions.delete(caller, id)
            raise
    if restored is not None and restored.epoch is not None:
        sessions.keep_epoch(entry, restored.number, restored.epoch)
    return entry, restored is not None


def _digest(file: str, asked: Import) -> str:
    """32 hexadecimal digits, the same for the same request."""
    hashed = xxhash.xxh3_128(f"{asked.world_size} {asked.from_step} ".encode())
    with pa.memory_map(file) as mapped:
        hashed.update(mapped.read_buffer())
    return hashed.hexdigest()


def _restore(
    store: Store, caller: Caller, id: str, file: str, digest: str, settings: Settings, datasets: Datasets
) -> _Restored | None:
    """Make a session of an exported one; None where the id is taken. Blocking."""
    with pa.memory_map(file) as mapped:
        checkpoint = Checkpoint.read(mapped.read_buffer(), settings.max_body_bytes)
        spec, size = checkpoint.spec, checkpoint.size
        if spec.dataset is not None:
            datasets.size(spec.dataset, size)
        check_limits(spec, size, settings)
        known = method_kind(spec.method).table
        for name, data in checkpoint.tables.items():
            if name != known:
                raise Refusal("bad-body", f"method {spec.method} has no table {name[:40]!r}")
            if len(data) > max(settings.max_body_bytes, settings.resident_bytes):
                raise Refusal("too-large", f"table {name} has {len(data)} bytes, more than this server keeps in memory")
        tables = checkpoint.open_tables()
        method = make_method(spec, size, tables)
        for segment in checkpoint.segments if method.choosing is not None else ():
            check_ranks(spec, size, tables, segment.world_size, settings)
        session = Session(spec, method, segments=checkpoint.segments)
        base = checkpoint.check(session)
        row = SessionRow(0, id, caller.owner, first_generation(), spec, size, base, time.time(), checkpoint.digest)
        parts = (checkpoint.tables, checkpoint.records, checkpoint.segments, checkpoint.state)
        contents = Contents(*parts, checkpoint.reports(session, base), checkpoint.choices, digest)
        if store.restore(caller, row, contents) is None:
            return None
        epoch: Epoch | None = session.epoch(base) if session.method.stateful else None
        if epoch is not None:
            epoch.prepare()
    return _Restored(base, epoch)
