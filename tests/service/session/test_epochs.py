"""Epochs: where a row is handed out, for every method against a look at every batch."""

from typing import Any

import numpy as np
import pytest

from curation.service.session.methods.registry import make_method
from curation.service.session.spec import SessionSpec

SIZE = 50
PLAN = {"batches": [[0, 1, 2, 3], [7, 9], [4, 5, 6], list(range(10, 48)), [8]]}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("random", {}),
    ("plan", PLAN),
    ("plan", {**PLAN, "shuffle": False}),
    ("infobatch", {}),
    ("acquisition", {"k": 30}),
    ("jest", {"filter_ratio": 0.5, "chunks": 2}),
]


@pytest.mark.parametrize(("name", "parameters"), METHODS)
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_visits_are_where_batches_have_the_row(
    name: str, parameters: dict[str, Any], world_size: int, drop_last: bool
) -> None:
    spec = SessionSpec(
        method=name,
        size=SIZE,
        batch_size=7,
        world_size=world_size,
        drop_last=drop_last,
        epochs=3,
        seed=3,
        parameters=parameters,
    )
    method = make_method(spec, SIZE, {})
    state = method.start()
    if name == "infobatch":
        state = {"scores": np.linspace(0, 1, SIZE, dtype=np.float32)}  # so that half of the rows may be left out
    epoch = method.epoch(1, state)
    handed_out: dict[int, list[tuple[int, int, int]]] = {row: [] for row in range(SIZE)}
    for step in range(epoch.steps):
        for rank in range(world_size):
            for position, row in enumerate(epoch.batch(rank, step)[0].tolist()):
                handed_out[row].append((step, rank, position))
    assert {row: sorted(map(tuple, epoch.visits(row))) for row in range(SIZE)} == handed_out
    assert any(handed_out.values())


def test_a_row_that_several_ranks_share_is_a_visit_of_each() -> None:
    spec = SessionSpec(
        method="plan", size=9, batch_size=1, world_size=4, parameters={"batches": [[0], [1], [2], [3], [4], [5]]}
    )
    epoch = make_method(spec, 9, {}).epoch(0, {})
    last = epoch.steps - 1
    for rank in range(4):
        (row,) = epoch.batch(rank, last)[0].tolist()
        assert (last, rank, 0) in epoch.visits(row)
