"""Resizing against a plain model: whatever dies and joins, every row of every epoch is reported exactly once."""

import asyncio
import tempfile
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from curation.plan import BatchPlan
from curation.service.arrow import write_table
from curation.service.auth import ANYONE
from curation.service.errors import Refusal
from curation.service.manager.batches import BatchesRequest, take_batches
from curation.service.manager.resizing import Resize, resize
from curation.service.manager.sessions import SessionManager
from curation.service.session.session import Report, StepRequest
from curation.service.session.spec import SessionSpec
from curation.service.store import Store

SIZE, BATCH, EPOCHS, RANKS = 47, 3, 3, 3
OFFSETS = np.array([0, 3, 4, 9, 12, 13, 20, 21, 24, 30, 33, 40, 41, 47])
"""Batches of a plan of the rows in their order: a row's batch is where it lies between these."""


def loss_of(rows: np.ndarray[Any, Any], epoch: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A loss that tells the row and the epoch, so that one credited wrongly shows."""
    return (rows + 100 * epoch + 1).astype(np.float32)


class Elastic(RuleBasedStateMachine):
    """Trainers that come and go, and report some of their batches; a dict of who reported which row is the model."""

    @initialize(method=st.sampled_from(["random", "plan", "infobatch", "acquisition"]), ranks=st.integers(1, 5))
    def begin(self, method: str, ranks: int) -> None:
        parameters: dict[str, Any] = {"prune_ratio": 0.0} if method == "infobatch" else {}
        self.spec = SessionSpec(
            method=method, size=SIZE, batch_size=BATCH, epochs=EPOCHS, world_size=ranks, seed=3, parameters=parameters
        )
        tables = {}
        if method == "plan":
            plan = BatchPlan(indices=np.arange(SIZE), offsets=OFFSETS)
            tables = {"plan": write_table(plan.to_arrow())}
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.store = Store(f"sqlite:///{self.folder.name}/store.db")
        self.manager = SessionManager(self.store, resident_bytes=1 << 30)
        created, _ = self.run(self.manager.create(ANYONE, "s", self.spec, SIZE, tables))
        self.ranks, self.generation, self.step = ranks, created.row.generation, 0
        self.ends: dict[int, int] = {}
        self.reported: dict[tuple[int, int], np.ndarray[Any, Any]] = {}
        self.epochs: dict[int, int] = {}

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def ask(self, rank: int, step: int | None, reports: list[Report] | None = None) -> Any:
        request = StepRequest(rank, step, reports or [], self.generation)
        batch, generation, _ = self.run(self.manager.step(ANYONE, "s", request))
        assert generation == self.generation
        return batch

    @property
    def over(self) -> bool:
        session = self.run(self.manager.entry(ANYONE, "s")).session
        return session.total_steps == self.step

    def take(self, silent: set[int]) -> None:
        """All ranks take the next step; those that are not silent report it."""
        for rank in range(self.ranks):
            batch = self.ask(rank, self.step)
            assert len(batch.indices) == len(batch.weights)
            if self.spec.method == "plan":
                assert len(set(np.searchsorted(OFFSETS, batch.indices, side="right"))) <= 1, "rows of two batches"
            if rank not in silent:
                self.ask(rank, None, [Report(rank, self.step, loss_of(batch.indices, batch.epoch))])
                self.reported[rank, self.step] = batch.indices[batch.weights > 0]
                self.epochs[self.step] = batch.epoch
        self.step += 1

    @precondition(lambda self: not self.over)
    @rule(steps=st.integers(1, 9))
    def train(self, steps: int) -> None:
        for _ in range(steps):
            if self.over:
                return
            self.take(set())

    @precondition(lambda self: not self.over)
    @rule(ranks=st.sampled_from([1, 2, 3, 5, 40]), back=st.integers(0, 3), data=st.data(), server=st.booleans())
    def some_die_in_the_middle_of_a_step(self, ranks: int, back: int, data: Any, server: bool) -> None:
        silent = data.draw(st.sets(st.integers(0, self.ranks - 1), min_size=1))
        self.take(silent)
        self.replace(ranks, None if server else max(0, self.step - back))

    def replace(self, ranks: int, step: int | None) -> None:
        """Other ranks go on from a step, and ask for it twice, as one whose answer was lost."""
        asked = Resize(step, ranks, self.generation)
        _, segment = self.run(resize(self.manager, ANYONE, "s", asked))
        entry, again = self.run(resize(self.manager, ANYONE, "s", asked))
        assert (again.first_step, again.left.tolist()) == (segment.first_step, segment.left.tolist())
        with pytest.raises(Refusal) as refused:
            self.run(resize(self.manager, ANYONE, "s", asked._replace(world_size=ranks + 1)))
        assert refused.value.kind == "stale-generation"
        self.generation += 1
        assert entry.row.generation == self.generation
        self.ranks, self.step = ranks, segment.first_step
        self.forget()

    @rule(back=st.integers(0, 30))
    def rewind(self, back: int) -> None:
        self.step = max(0, self.step - back)
        entry = self.run(self.manager.rewind(ANYONE, "s", self.step))
        self.generation += 1
        session = entry.session
        self.ranks = session.world_size
        if self.step < session.known_steps:
            self.ranks = session.layout(session.epoch_of(self.step), self.step).part(self.step).split.world_size
        self.forget()

    @rule()
    def the_server_dies(self) -> None:
        self.manager.group_commit.stop()
        self.manager = SessionManager(self.store, resident_bytes=1 << 30)

    def forget(self) -> None:
        self.reported = {key: rows for key, rows in self.reported.items() if key[1] < self.step}

    @invariant()
    def no_row_is_reported_twice(self) -> None:
        for rows in self.rows_by_epoch().values():
            assert max(Counter(rows).values(), default=0) <= 1

    def rows_by_epoch(self) -> dict[int, list[int]]:
        rows: dict[int, list[int]] = {epoch: [] for epoch in range(EPOCHS)}
        for (_, step), indices in self.reported.items():
            rows[self.epochs[step]] += indices.tolist()
        return rows

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        while not self.over:
            self.train(9)
        assert {epoch: sorted(rows) for epoch, rows in self.rows_by_epoch().items()} == {
            epoch: list(range(SIZE)) for epoch in range(EPOCHS)
        }
        self.check_losses()
        self.manager.group_commit.stop()
        self.store.close()
        self.loop.close()
        self.folder.cleanup()

    def check_losses(self) -> None:
        """What is stored stands under the batch that it is of, and what an epoch begins with is the one before's."""
        entry = self.run(self.manager.entry(ANYONE, "s"))
        for report in self.store.reports(entry.row.key, 0, 10**6):
            epoch = self.run(self.manager.epoch(entry, entry.session.epoch_of(report.step)))
            batch = entry.session.batch(report.rank, report.step, epoch)
            assert np.array_equal(report.losses, loss_of(batch.indices, batch.epoch))
        if entry.session.method.stateful:
            scores = self.manager.maker.state(entry.row, entry.session, EPOCHS - 1)["scores"]
            assert np.array_equal(scores, loss_of(np.arange(SIZE), EPOCHS - 2))


Elastic.TestCase.settings = settings(deadline=None, max_examples=10, stateful_step_count=15)
TestElastic = Elastic.TestCase


@pytest.mark.parametrize("method", ["random", "plan", "infobatch", "acquisition"])
def test_fewer_rows_than_ranks_go_to_all_and_count_once(method: str) -> None:
    trainers = Elastic()
    trainers.begin(method, 3)
    trainers.train(2)
    trainers.take({1})
    trainers.replace(40, 3)
    batches = [trainers.ask(rank, 3) for rank in range(40)]
    assert {len(batch.indices) for batch in batches} == {1}
    assert 0 < sum(float(batch.weights.sum()) for batch in batches) < 40
    trainers.take(set())
    trainers.no_row_is_reported_twice()
    trainers.teardown()


def test_many_batches_are_for_ranks_that_there_are() -> None:
    trainers = Elastic()
    trainers.begin("random", 2)
    trainers.train(1)
    trainers.replace(1, 1)
    for ranks, step in (([0, 1], 1), ([0, 7], 0), ([0, 1], 40)):
        asked = BatchesRequest(ranks, step, 1, [], None)
        with pytest.raises(Refusal, match=f"rank {ranks[1]} is unknown"):
            trainers.run(take_batches(trainers.manager, ANYONE, "s", asked, max_rows=1000))
    trainers.teardown()


def test_what_cannot_be_resized_says_why() -> None:
    trainers = Elastic()
    trainers.begin("random", 2)
    trainers.train(1)
    now = trainers.generation
    asked = Resize(0, 2, now)
    for wrong, kind in (({"from_step": 400}, "bad-step"), ({"generation": now + 7}, "stale-generation")):
        with pytest.raises(Refusal) as refused:
            trainers.run(resize(trainers.manager, ANYONE, "s", asked._replace(**wrong)))
        assert refused.value.kind == kind
    late = StepRequest(1, None, [Report(1, 0, loss_of(trainers.ask(1, 0).indices, 0))], None)
    trainers.replace(1, 1)
    for rank, step in ((1, 1), (2, 0), (1, 40)):
        with pytest.raises(Refusal, match=f"rank {rank} is unknown"):
            trainers.ask(rank, step)
    with pytest.raises(Refusal, match="resized at step 1"):
        trainers.run(trainers.manager.step(ANYONE, "s", late))
    trainers.teardown()


def test_rows_of_a_training_that_reports_nothing_are_not_repeated_where_it_says_so() -> None:
    trainers = Elastic()
    trainers.begin("plan", 2)
    seen = [trainers.ask(rank, step).indices for step in range(3) for rank in range(2)]
    _, segment = trainers.run(resize(trainers.manager, ANYONE, "s", Resize(3, 3, trainers.generation, "all")))
    trainers.generation += 1
    seen += [trainers.ask(rank, step).indices for step in range(3, 3 + segment.steps) for rank in range(3)]
    assert sorted(np.concatenate(seen)) == list(range(SIZE))
    trainers.ranks, trainers.step = 3, 0
    trainers.replace(3, 0)
    trainers.teardown()
