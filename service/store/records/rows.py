"""Rows of the store's tables, as what they stand for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curation.service.session.segments import Segment
from curation.service.session.session import LOSS, EpochRecord, Report, record_of
from curation.service.session.spec import SessionSpec


@dataclass(frozen=True)
class SessionRow:
    """A session as it is stored.

    ``generation`` is negative while a rewind is under way; ``base`` is the first epoch that can still be computed (an
    import may start later), ``digest`` that of what it was created from (None: an older release did), ``last_rewind``
    the name of the request that rewound it last, ``used`` about when a trainer used it last.
    """

    key: int
    id: str
    owner: str | None
    generation: int
    spec: SessionSpec
    size: int
    base: int
    created: float
    digest: str | None = None
    last_rewind: str | None = None
    used: float | None = field(default=None, compare=False)


def session_of(row: Any) -> SessionRow:
    """A row of ``sessions``."""
    spec = SessionSpec.model_validate_json(row.spec)
    about = (row.base, row.created, row.digest, row.last_rewind, row.used)
    return SessionRow(row.key, row.id, row.owner, row.generation, spec, row.size, *about)


def epoch_row(key: int, record: EpochRecord, state: str | None = None) -> dict[str, Any]:
    """A row of ``epochs``."""
    return {
        "session": key,
        "number": record.number,
        "first_step": record.first_step,
        "rows": record.layout.rows,
        "reweighted": record.reweighted,
        "missing": record.missing.astype("<i8").tobytes(),
        "state": state,
    }


def epoch_of(spec: SessionSpec, resized: Sequence[Segment], row: Any) -> EpochRecord:
    """The inverse of :func:`epoch_row`, in a session with these segments."""
    missing = np.frombuffer(row.missing, "<i8").reshape(-1, 2)
    return record_of(spec, resized, row.number, row.first_step, row.rows, row.reweighted, missing)


def report_row(key: int, report: Report) -> dict[str, Any]:
    """A row of ``reports``."""
    return {"session": key, "step": report.step, "rank": report.rank, "losses": report.losses.astype(LOSS).tobytes()}
