"""Status of sessions, from what was asked for and reported."""

from typing import Any

import numpy as np
import pytest

from curation.service.session.methods.registry import make_method
from curation.service.session.session import Session
from curation.service.session.spec import SessionSpec
from curation.service.session.status import Progress, is_finished, share_done, status_of, waited_for

NOW = 10_000.0


def session(method: str = "infobatch", opened: int = 1, **changes: Any) -> Session[Any]:
    """A session of 40 rows in steps of 10, on two ranks; of its epochs, some are open."""
    spec = SessionSpec(**{"method": method, "size": 40, "batch_size": 5, "world_size": 2, "epochs": 2, **changes})
    made: Session[Any] = Session(spec, make_method(spec, spec.size or 0, {}))
    for number in range(opened if made.method.stateful else 0):
        made.opened(*made.opening(number, made.method.start(), np.empty((0, 2), np.int64)))
    return made


def told(asked: dict[int, int], reported: dict[int, int], ago: float = 0, *, diverged: bool = False) -> Progress:
    return Progress(asked, reported, NOW - ago, diverged)


@pytest.mark.parametrize(
    ("of", "progress", "status", "done"),
    [
        (session(opened=0), told({}, {}), "idle", 0),
        (session("random"), Progress({}, {}, None, False), "idle", 0),
        (session(), told({0: 0}, {}), "running", 0),
        (session(), told({0: 2, 1: 2}, {0: 1, 1: 1}), "running", 2 / 8),
        (session(), told({0: 2, 1: 2}, {0: 1, 1: 1}, ago=299), "running", 2 / 8),
        (session(), told({0: 2, 1: 2}, {0: 1, 1: 1}, ago=301), "stalled", 2 / 8),
        (session(), told({0: 3, 1: 3}, {0: 3, 1: 2}), "waiting", 4 / 8),
        (session(), told({}, {0: 3}), "waiting", 4 / 8),
        (session(on_missing="skip"), told({0: 3, 1: 3}, {0: 3, 1: 2}), "running", 4 / 8),
        (session("random"), told({0: 3, 1: 3}, {0: 3, 1: 2}), "running", 4 / 8),
        (session(), told({0: 3, 1: 3}, {0: 3, 1: 2}, ago=301), "stalled", 4 / 8),
        (session(opened=2), told({0: 7, 1: 7}, {0: 7, 1: 6}), "running", 1),
        (session(opened=2), told({0: 7, 1: 7}, {0: 7, 1: 7}, ago=10**6), "finished", 1),
        (session("random"), told({0: 7, 1: 7}, {}, ago=10**6), "finished", 7 / 8),
        (session("random"), told({0: 7, 1: 6}, {}), "running", 7 / 8),
        (session(), told({0: 2}, {0: 1}, ago=10**6, diverged=True), "diverged", 2 / 8),
    ],
)
def test_status(of: Session[Any], progress: Progress, status: str, done: float) -> None:
    assert status_of(of, progress, NOW, NOW - 1000, 300) == status
    assert share_done(of, progress) == done


def test_a_server_that_just_started_calls_nothing_stalled() -> None:
    progress = Progress({}, {0: 1}, None, False)
    assert status_of(session(), progress, NOW, NOW - 10, 300) == "running"
    assert status_of(session(), progress, NOW, NOW - 301, 300) == "stalled"


def test_who_is_waited_for_is_told_the_furthest_behind_first() -> None:
    of = session(world_size=4)
    assert waited_for(of, told({}, {0: 1, 1: 0, 2: 1})) == [3, 1]
    assert waited_for(of, told({}, {0: 0, 1: 0})) == ()


def test_ranks_without_rows_in_the_last_step_are_not_waited_for() -> None:
    of = session("random", size=3, world_size=4, epochs=1)
    lengths = [of.length(rank, 0) for rank in range(4)]
    assert sorted(lengths) == [0, 1, 1, 1]
    owing = {rank: 0 for rank in range(4) if lengths[rank]}
    assert is_finished(of, told({}, owing))
    assert not is_finished(of, told({}, {rank: step for rank, step in owing.items() if rank != max(owing)}))
