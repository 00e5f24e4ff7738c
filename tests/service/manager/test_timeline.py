"""A session's timeline where its changes meet: what is under way while it is resized, rewound, changed, removed."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.service.auth import ANYONE
from curation.service.errors import Refusal
from curation.service.manager import resizing
from curation.service.manager.batches import BatchesRequest, take_batches
from curation.service.manager.memory.entry import Entry
from curation.service.manager.memory.parts import Parts
from curation.service.manager.memory.spool import Spool
from curation.service.manager.resizing import Resize, resize
from curation.service.manager.sessions import SessionManager
from curation.service.manager.upkeep import Upkeep
from curation.service.session.choice import RankPart
from curation.service.session.session import Batch, Report, StepRequest
from curation.service.session.spec import Grace, SessionSpec, SpecChange
from curation.service.store import Store
from curation.service.store.choices import StepKey

SIZE, BATCH, RANKS = 24, 2, 2


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/store.db")
    yield store
    store.close()


class Trainers:
    """Ranks of one session of InfoBatch that drops nothing, over one manager."""

    def __init__(self, store: Store) -> None:
        self.store, self.manager = store, SessionManager(store, resident_bytes=1 << 30)

    async def begin(self, id: str = "s", **change: Any) -> Entry:
        fields: dict[str, Any] = {"method": "infobatch", "size": SIZE, "batch_size": BATCH, "world_size": RANKS}
        fields |= {"epochs": 4, "parameters": {"prune_ratio": 0.0}}
        return (await self.manager.create(ANYONE, id, SessionSpec(**(fields | change)), SIZE, {}))[0]

    async def ask(self, rank: int, step: int | None, reports: Any = (), generation: int | None = None) -> Batch | None:
        losses = np.ones(BATCH, np.float32)
        sent = [Report(rank, one, losses) for one in reports]
        return (await self.manager.step(ANYONE, "s", StepRequest(rank, step, sent, generation)))[0]

    async def train(self, steps: range, ranks: int = RANKS) -> None:
        for step in steps:
            for rank in range(ranks):
                batch = await self.ask(rank, step)
                assert batch is not None
                report = Report(rank, step, np.ones(len(batch.indices), np.float32))
                await self.manager.step(ANYONE, "s", StepRequest(rank, None, [report], None))


@pytest.fixture
def drive(store: Store) -> Callable[[Callable[[Trainers], Coroutine[Any, Any, None]]], None]:
    def run(story: Callable[[Trainers], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            trainers = Trainers(store)
            try:
                await asyncio.wait_for(story(trainers), 30)
            finally:
                trainers.manager.group_commit.stop()

        asyncio.run(main())

    return run


class Gate:
    """Holds a blocking call at its begin or its end until it is opened."""

    def __init__(self, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, *, after: bool = False) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        real = getattr(owner, name)

        def held(*args: Any, **named: Any) -> Any:
            result = real(*args, **named) if after else None
            self.reached.set()
            assert self.open.wait(20)
            return result if after else real(*args, **named)

        monkeypatch.setattr(owner, name, held)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 20)


Drive = Callable[[Callable[[Trainers], Coroutine[Any, Any, None]]], None]


@pytest.mark.parametrize(("before", "ranks", "quorum"), [(4, 2, 0.5), (2, 4, 0.75), (4, 2, 1.0)])
def test_a_quorum_is_of_the_ranks_there_are(drive: Drive, before: int, ranks: int, quorum: float) -> None:
    async def story(trainers: Trainers) -> None:
        grace = Grace(after_seconds=0, quorum=quorum)
        entry = await trainers.begin(world_size=before, on_missing=grace)
        await trainers.ask(0, 0)
        await resize(trainers.manager, ANYONE, "s", Resize(0, ranks, entry.row.generation))
        steps = SIZE // BATCH // ranks
        needed = int(np.ceil(quorum * ranks))
        for rank in range(needed):
            with pytest.raises(Refusal, match="waits for"):
                await trainers.ask(0, steps)
            await trainers.ask(rank, None, range(steps))
        batch = await trainers.ask(0, steps)
        assert batch is not None
        assert batch.epoch == 1

    drive(story)


@pytest.mark.parametrize("act", ["resize", "change", "delete"])
def test_a_change_whose_request_gave_up_is_known(drive: Drive, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(trainers: Trainers) -> None:
        generation = (await trainers.begin()).row.generation
        await trainers.ask(0, 0)
        asked, manager = Resize(0, 3, generation), trainers.manager
        calls = {
            "resize": lambda: resize(manager, ANYONE, "s", asked),
            "change": lambda: manager.change(ANYONE, "s", SpecChange(epochs=7)),
            "delete": lambda: manager.delete(ANYONE, "s"),
        }
        with monkeypatch.context() as held:
            name = {"resize": "changing", "change": "change", "delete": "delete_session"}[act]
            gate = Gate(trainers.store, name, held)
            request = asyncio.create_task(calls[act]())
            await gate.wait()
            request.cancel()
            await asyncio.wait([request])
            gate.open.set()
            await asyncio.sleep(0.3)
        if act == "resize":
            entry, segment = await resize(manager, ANYONE, "s", asked)
            assert (segment.world_size, entry.row.generation) == (3, generation + 1)
            assert await trainers.ask(2, 0, generation=generation + 1) is not None
        elif act == "change":
            assert (await manager.entry(ANYONE, "s")).row.spec.epochs == 7
        else:
            with pytest.raises(Refusal, match="no session"):
                await trainers.ask(0, 0)

    drive(story)


def test_what_was_read_before_a_resize_is_not_kept(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(trainers: Trainers) -> None:
        manager, generation = trainers.manager, (await trainers.begin()).row.generation
        await trainers.train(range(3))
        entry = await manager.entry(ANYONE, "s")
        with monkeypatch.context() as held:
            gate = Gate(manager, "_from_store", held, after=True)
            changing = Gate(resizing, "_resize", held)
            resized = asyncio.create_task(resize(manager, ANYONE, "s", Resize(0, 3, generation)))
            await changing.wait()
            manager.forget(entry)
            early = asyncio.create_task(trainers.ask(0, 0))
            await gate.wait()
            changing.open.set()
            await asyncio.sleep(0.3)
            gate.open.set()
            assert (await resized)[0].row.generation == generation + 1
            await early
        assert await trainers.ask(2, 0, generation=generation + 1) is not None

    drive(story)


def test_an_epoch_that_opens_while_the_session_is_changed_is_known(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(trainers: Trainers) -> None:
        await trainers.begin()
        await trainers.train(range(6))
        with monkeypatch.context() as held:
            gate = Gate(trainers.store, "open_epoch", held)
            opening = asyncio.create_task(trainers.ask(0, 6))
            await gate.wait()
            await trainers.manager.change(ANYONE, "s", SpecChange(epochs=7))
            gate.open.set()
            first = await opening
        assert first is not None
        assert first.epoch == 1
        await trainers.ask(0, None, [6])
        following = await trainers.ask(0, 7)
        assert following is not None
        assert following.epoch == 1

    drive(story)


def test_batches_asked_for_while_the_session_is_rewound(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(trainers: Trainers) -> None:
        await trainers.begin()
        await trainers.train(range(12))
        step = trainers.manager.step

        async def rewound(*args: Any) -> Any:
            answer = await step(*args)
            await trainers.manager.rewind(ANYONE, "s", 0)
            return answer

        with monkeypatch.context() as held:
            held.setattr(trainers.manager, "step", rewound)
            with pytest.raises(Refusal, match="rewound while"):
                await take_batches(
                    trainers.manager, ANYONE, "s", BatchesRequest([0, 1], 12, 2, [], None), max_rows=1000
                )

    drive(story)


def test_upkeep_goes_on_after_a_session_that_others_changed(drive: Drive) -> None:
    async def story(trainers: Trainers) -> None:
        first = await trainers.begin("other")
        trainers.store.rewind(first.row.key, first.row.generation, 0, 0, ANYONE)
        for epoch in range(3):
            first.session.opened(first.session.opening(epoch, first.session.method.start(), np.empty((0, 2)))[0])
        entry = await trainers.begin()
        await trainers.train(range(19))
        upkeep = Upkeep(trainers.manager, keep_days=None, keep_epochs=2)
        await upkeep.once()
        trainers.store.remover.wait()
        assert {report.step for report in trainers.store.reports(entry.row.key, 0, 12)} == set()

    drive(story)


def test_what_is_kept_does_not_go_back(store: Store, drive: Drive) -> None:
    async def story(trainers: Trainers) -> None:
        row = (await trainers.begin()).row
        store.forget_reports(row.key, row.generation, 18, 2)
        store.forget_reports(row.key, row.generation, 6, 0)
        assert store.base(row.key) == 2

    drive(story)


def test_a_resized_epoch_is_prepared_and_moved_as_another(drive: Drive) -> None:
    async def story(trainers: Trainers) -> None:
        entry = await trainers.begin()
        await trainers.ask(0, 0)
        await resize(trainers.manager, ANYONE, "s", Resize(1, 3, entry.row.generation))
        session = (await trainers.manager.entry(ANYONE, "s")).session
        for number in (0, 1):
            epoch = session.make_epoch(number, session.method.start())
            order = session.method.epoch(number, session.method.start())
            expected = order.take(0, SIZE)[0]
            epoch.prepare()
            assert epoch.nbytes
            epoch.move(Spool)
            assert epoch.nbytes == 0
            assert np.array_equal(epoch.take(0, SIZE)[0], expected)

    drive(story)


def test_a_rank_of_before_a_rewind_takes_nothing_from_those_after(store: Store, drive: Drive) -> None:
    async def story(trainers: Trainers) -> None:
        row = (await trainers.begin()).row
        parts = Parts(store, 1 << 20)
        part = RankPart({}, np.ones(4), {})
        now, before = (StepKey(row.key, generation, 0) for generation in (row.generation + 1, row.generation))
        parts.put(now, 0, part)
        parts.put(before, 1, part)
        assert parts.read(now).ranks == {0}  # type: ignore[union-attr]

    drive(story)
