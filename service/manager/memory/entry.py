"""Entries: sessions in the memory of a server, and what requests are held against first."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from curation.service.errors import Refusal
from curation.service.manager.memory.residency import Tenure
from curation.service.manager.progress import Progress
from curation.service.session.methods.registry import make_method
from curation.service.session.protocols import Epoch
from curation.service.session.segments import Segment
from curation.service.session.session import EpochRecord, Session
from curation.service.session.spec import SessionSpec
from curation.service.store import SessionRow
from curation.service.store.blobs import Bytes

RECENT_SECONDS = 60.0
"""A session is at work, and a rank waits, if it asked so short a time ago."""


@dataclass(eq=False)
class Entry:
    """A session in memory.

    ``asked``: the last step that each rank asked this server for; ``seen``: when it last sent anything, in seconds
    since 1970; ``waits``: when it was last told to wait for others, of :func:`time.monotonic`. ``outdated``: the store
    has it otherwise.
    """

    row: SessionRow
    session: Session[Any]
    progress: Progress
    asked: dict[int, int] = field(default_factory=dict)
    seen: dict[int, float] = field(default_factory=dict)
    tasks: "dict[int, asyncio.Task[Epoch | None]]" = field(default_factory=dict)
    look: "asyncio.Task[None] | None" = None
    outdated: bool = False
    waits: dict[int, float] = field(default_factory=dict)
    tenure: Tenure = field(default_factory=Tenure)
    making: int = 0

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def nbytes(self) -> int:
        return self.session.nbytes

    @property
    def working(self) -> bool:
        return self.making > 0

    def release(self) -> None:
        self.session.forget_epochs()

    @property
    def active(self) -> float | None:
        """When a trainer last asked or reported, in seconds since 1970, also before this server's start."""
        return max([*dict(self.seen).values(), *([] if self.row.used is None else [self.row.used])], default=None)

    def waiting(self, now: float) -> list[int]:
        """The ranks that wait for other ranks' reports."""
        return [rank for rank, at in list(self.waits.items()) if now - at < RECENT_SECONDS]


def build_session(
    spec: SessionSpec,
    size: int,
    tables: Mapping[str, Bytes],
    records: list[EpochRecord],
    segments: Sequence[Segment] = (),
) -> Session[Any]:
    """A session of what is stored of it. Blocking.

    Raises:
        Refusal: its parameters are wrong.
    """
    session = Session(spec, make_method(spec, size, open_tables(tables)), records, segments)
    if not session.method.stateful:
        session.batch(0, 0)  # what its first batch compiles is compiled in this thread, and not in the loop
    return session


def open_tables(tables: Mapping[str, Bytes]) -> dict[str, pa.Table]:
    """Tables that came with a session, as they are stored, for its method."""
    return {name: pa.ipc.open_stream(data).read_all() for name, data in tables.items()}


def check_generation(row: SessionRow, generation: int | None) -> None:
    """Refuse a request that names another generation than the session's."""
    if generation is not None and generation != row.generation:
        raise Refusal(
            "stale-generation",
            f"the request is of generation {generation}, but the session was rewound and is at {row.generation}: "
            "resume from its state",
            generation=row.generation,
        )


def check_base(row: SessionRow, epoch: int) -> None:
    """Refuse an epoch that lies before what there is of the session."""
    if epoch < row.base:
        raise Refusal(
            "before-base",
            f"epoch {epoch} is not kept any more: this session starts at epoch {row.base}, because it was made from a "
            "checkpoint or its earlier reports were removed (keep_epochs)",
        )
