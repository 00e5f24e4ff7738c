"""The session machine against a plain model: lists of rows, reports in a dict, everything computed anew."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from curation.selectors.infobatch import InfoBatch
from curation.selectors.samplers.split import RowSplit
from curation.service.errors import Refusal
from curation.service.manager.sessions import SessionManager
from curation.service.session.caller import ANYONE
from curation.service.session.methods.registry import make_method
from curation.service.session.session import EpochRecord, Report, Session, StepRequest
from curation.service.session.spec import SessionSpec
from curation.service.store import Store


@settings(deadline=None, max_examples=200)
@given(rows=st.integers(0, 500), batch_size=st.integers(1, 40), world_size=st.integers(1, 9), drop_last=st.booleans())
def test_reports_are_due_of_the_batches_that_have_rows(
    rows: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    layout = RowSplit(rows, batch_size, world_size, drop_last)
    spans = [layout.span(rank, step) for step in range(layout.steps) for rank in range(world_size)]
    due = EpochRecord(0, 0, layout).expected()
    assert due.shape == (layout.steps, world_size)
    assert due.reshape(-1).tolist() == [stop > start for start, stop in spans]


SIZE, BATCH, EPOCHS, RANKS = 60, 4, 5, 2


class SessionModel(RuleBasedStateMachine):
    """InfoBatch in a session, with a server that loses its memory at will, against InfoBatch in this process."""

    @initialize(wait=st.booleans())
    def begin(self, wait: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.spec = SessionSpec(
            method="infobatch",
            size=SIZE,
            batch_size=BATCH,
            epochs=EPOCHS,
            world_size=RANKS,
            seed=5,
            on_missing="wait" if wait else "skip",
            non_finite="reject",
        )
        self.loop = asyncio.new_event_loop()
        self.store = Store(f"sqlite:///{self.folder.name}/store.db")
        self.manager = self.new_manager()
        self.run(self.manager.create(ANYONE, "s", self.spec, SIZE, {}))
        self.reports: dict[tuple[int, int], Any] = {}
        self.missing: list[set[tuple[int, int]]] = [set()]
        self.steps = [0]

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def new_manager(self) -> SessionManager:
        return SessionManager(self.store, resident_bytes=1 << 30)

    def model(self) -> list[tuple[Any, Any]]:
        """(indices, weights) of the epochs opened so far, computed anew from the reports."""
        info = InfoBatch(size=SIZE, epochs=EPOCHS, seed=5)
        orders = []
        for epoch, first in enumerate(self.steps):
            selection = info.epoch(epoch)
            layout = RowSplit(len(selection), BATCH, RANKS)
            orders.append((selection.indices, selection.weights))
            if epoch + 1 < len(self.steps):
                for (rank, step), losses in self.reports.items():
                    if first <= step < first + layout.steps and (rank, step) not in self.missing[epoch + 1]:
                        start, stop = layout.span(rank, step - first)
                        info.update(selection.indices[start:stop], losses)
        return orders

    def layout(self, epoch: int) -> RowSplit:
        return RowSplit(len(self.model()[epoch][0]), BATCH, RANKS)

    def end(self) -> int:
        return self.steps[-1] + self.layout(len(self.steps) - 1).steps

    def due(self) -> set[tuple[int, int]]:
        return {(rank, step) for step in range(self.steps[-1], self.end()) for rank in range(RANKS)} - set(self.reports)

    def check(self, rank: int, step: int) -> None:
        batch, *_ = self.run(self.manager.step(ANYONE, "s", StepRequest(rank, step, [], None)))
        epoch = max(e for e, first in enumerate(self.steps) if first <= step)
        indices, weights = self.model()[epoch]
        start, stop = self.layout(epoch).span(rank, step - self.steps[epoch])
        assert np.array_equal(batch.indices, indices[start:stop])
        assert np.array_equal(batch.weights, weights[start:stop])
        assert (batch.epoch, batch.step) == (epoch, step)

    @rule(rank=st.integers(0, RANKS - 1), place=st.floats(0, 1, exclude_max=True))
    def ask_for_an_open_step(self, rank: int, place: float) -> None:
        self.check(rank, int(place * self.end()))

    @rule(rank=st.integers(0, RANKS - 1), place=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 9))
    def report(self, rank: int, place: float, seed: int) -> None:
        step = int(place * self.end())
        self.send(rank, [step], seed)

    @rule(rank=st.integers(0, RANKS - 1), seed=st.integers(0, 9))
    def report_all_that_is_due(self, rank: int, seed: int) -> None:
        self.send(rank, [step for r, step in sorted(self.due()) if r == rank], seed)

    def send(self, rank: int, steps: list[int], seed: int) -> None:
        self.check(0, self.steps[-1])
        given = []
        for step in steps:
            epoch = max(e for e, first in enumerate(self.steps) if first <= step)
            start, stop = self.layout(epoch).span(rank, step - self.steps[epoch])
            losses = np.random.default_rng((seed, rank, step)).random(stop - start, np.float32)
            given.append(Report(rank, step, losses))
        self.run(self.manager.step(ANYONE, "s", StepRequest(rank, None, given, None)))
        for report in given:
            self.reports.setdefault((rank, report.step), report.losses)

    @precondition(lambda self: len(self.steps) < EPOCHS)
    @rule(rank=st.integers(0, RANKS - 1))
    def ask_for_the_next_epoch(self, rank: int) -> None:
        self.check(0, self.steps[-1])
        due, end = self.due(), self.end()
        if due and self.spec.on_missing == "wait":
            with pytest.raises(Refusal) as refused:
                self.run(self.manager.step(ANYONE, "s", StepRequest(rank, end, [], None)))
            assert refused.value.kind == "missing-reports"
            assert {(m["rank"], m["step"]) for m in refused.value.members["missing"]} == due
            return
        self.missing.append(due)
        self.steps.append(end)
        self.check(rank, end)

    @rule(rank=st.integers(0, RANKS - 1), bad=st.sampled_from(["rank", "past", "long", "nan", "negative", "later"]))
    def bad_requests_change_nothing(self, rank: int, bad: str) -> None:
        self.check(rank, 0)
        request = {
            "rank": StepRequest(RANKS, 0, [], None),
            "past": StepRequest(rank, self.end() + 1, [], None),
            "long": StepRequest(rank, None, [Report(rank, 0, np.zeros(BATCH + 2, np.float32))], None),
            "nan": StepRequest(rank, None, [Report(rank, 0, np.full(BATCH, np.nan, np.float32))], None),
            "negative": StepRequest(rank, -1, [], None),
            "later": StepRequest(rank, None, [Report(rank, self.end(), np.zeros(BATCH, np.float32))], None),
        }[bad]
        with pytest.raises(Refusal):
            self.run(self.manager.step(ANYONE, "s", request))

    @rule(place=st.floats(0, 1))
    def rewind(self, place: float) -> None:
        self.check(0, self.steps[-1])
        step = int(place * self.end())
        self.run(self.manager.rewind(ANYONE, "s", step))
        keep = max([e for e, first in enumerate(self.steps) if first <= step], default=0)
        if step == self.end():
            keep = len(self.steps) - 1
        self.steps, self.missing = self.steps[: keep + 1], self.missing[: keep + 1]
        self.reports = {key: losses for key, losses in self.reports.items() if key[1] < step}

    @rule()
    def lose_all_memory(self) -> None:
        self.manager.group_commit.stop()
        self.manager = self.new_manager()

    @invariant()
    def what_was_acknowledged_is_stored(self) -> None:
        if not hasattr(self, "reports"):
            return
        stored = {(report.rank, report.step): report.losses for report in self.store.reports(1, 0, 10**6)}
        assert stored.keys() == self.reports.keys()
        assert all(np.array_equal(stored[key], losses) for key, losses in self.reports.items())

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            self.manager.group_commit.stop()
            self.store.close()
            self.loop.close()
            self.folder.cleanup()


SessionModel.TestCase.settings = settings(deadline=None, max_examples=12, stateful_step_count=25)
TestSessionModel = SessionModel.TestCase


def test_an_epoch_is_opened_by_its_number_whoever_else_opens_it_meanwhile() -> None:
    spec = SessionSpec(method="infobatch", size=SIZE, batch_size=BATCH, epochs=EPOCHS, seed=5)
    method = make_method(spec, SIZE, {})
    session, nothing = Session(spec, method), np.empty((0, 2), np.int64)
    for number in range(3):
        state = {"scores": np.arange(SIZE, dtype=np.float32)} if number else method.start()
        record, epoch = session.opening(number, state, nothing)
        session.opened(record)  # learned from another replica, while this one computes
        late, again = session.opening(number, state, nothing)
        assert (late.number, late.first_step, late.layout) == (number, record.first_step, record.layout)
        assert np.array_equal(epoch.batch(0, 0)[0], again.batch(0, 0)[0])
        session.opened(late, again)
    assert [record.number for record in session.records] == [0, 1, 2]


def test_a_store_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    from sqlalchemy import update

    from curation.service.store.tables import StoreVersionError, schema

    store = Store(f"sqlite:///{tmp_path}/store.db")
    with store.engine.begin() as connection:
        connection.execute(update(schema).values(version=99))
    store.close()
    with pytest.raises(StoreVersionError, match="version 99"):
        Store(f"sqlite:///{tmp_path}/store.db")
