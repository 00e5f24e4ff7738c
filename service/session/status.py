"""Status of a session: whether it is used, goes on, waits and for whom, stands still, is done, or has diverged."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from curation.service.session.session import Session

Status = Literal["idle", "running", "waiting", "stalled", "finished", "diverged"]
"""``idle``: no step was asked for yet. ``waiting``: the next epoch needs reports of some ranks. ``stalled``: nobody
asked or reported for long. ``diverged``: the newest losses are not finite."""


class Progress(NamedTuple):
    """What was asked for and reported: the last step of each rank that did, and when one did last (seconds since 1970).

    ``diverged``: whether the newest losses are not finite for the most part. ``late``: the ranks that others were told
    to wait for, where some were.
    """

    asked: Mapping[int, int]
    reported: Mapping[int, int]
    active: float | None
    diverged: bool
    late: Sequence[int] = ()

    @property
    def step(self) -> int | None:
        """The furthest step; None before the first."""
        return max([*self.asked.values(), *self.reported.values()], default=None)


NOTHING = Progress({}, {}, None, False)
"""The progress of a session that nobody used."""


def status_of(session: Session[Any], progress: Progress, now: float, since: float, stalled_seconds: float) -> Status:
    """The status of a session, ``since`` when this server could have noticed what happened to it."""
    if progress.step is None:
        return "idle"
    if progress.diverged:
        return "diverged"
    if is_finished(session, progress):
        return "finished"
    if now - max(progress.active or since, since) > stalled_seconds:
        return "stalled"
    return "waiting" if waited_for(session, progress) else "running"


def is_finished(session: Session[Any], progress: Progress) -> bool:
    """Whether all ranks reported the last step, or, where nobody reports, asked for it."""
    total = session.total_steps
    if total is None or progress.step != total - 1:
        return False
    last = progress.reported or progress.asked
    return max(last.values()) == total - 1 and not late(session, last, total - 1)


def waited_for(session: Session[Any], progress: Progress) -> Sequence[int]:
    """The ranks whose reports the next epoch waits for, the furthest behind first; none while no rank needs it."""
    ends = session.known_steps - 1
    if not session.method.stateful or session.spec.on_missing == "skip" or session.open_epochs == session.spec.epochs:
        return ()
    if session.open_epochs == 0:
        return ()
    if progress.late:  # also ranks that left out an earlier step than the last
        return sorted(progress.late, key=lambda rank: (progress.reported.get(rank, -1), rank))
    if max(progress.reported.values(), default=-1) < ends:
        return ()
    return late(session, progress.reported, ends)


def late(session: Session[Any], last: Mapping[int, int], step: int) -> list[int]:
    """Ranks that have rows at an open step and are not there, the furthest behind first."""
    behind = [rank for rank in range(session.ranks_at(step)) if last.get(rank, -1) < step]
    owing = [rank for rank in behind if session.length(rank, step)]
    return sorted(owing, key=lambda rank: (last.get(rank, -1), rank))


def share_done(session: Session[Any], progress: Progress) -> float:
    """How much of a session is done, 0 to 1: the steps that were reported, or asked for where none is reported."""
    done = max(progress.reported.values(), default=-1) + 1 if progress.reported else max(progress.step or 0, 0)
    if progress.step is None or done == 0:
        return 0.0
    epoch = session.epoch_of(done - 1)
    first, end = session.span_of(epoch)
    return (epoch + (done - first) / (end - first)) / session.spec.epochs
