"""Ranks that die and join under torch.distributed: every row of every epoch is reported exactly once."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import distributed

from curation.service.client import Client, RemoteBatchSampler, ServiceError

TRAINER = Path(__file__).parents[3] / "examples" / "elastic.py"


@pytest.fixture
def one_process() -> Iterator[None]:
    """torch.distributed of this process alone."""
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def url(live: Callable[..., Any]) -> str:
    return str(live().url)


def train(sampler: RemoteBatchSampler, most: int | None = None) -> list[int]:
    """Rows that were trained on, of ``most`` batches or up to the session's end."""
    rows: list[int] = []
    batches = 0
    while True:
        before = batches
        for batch in sampler:
            sampler.update(torch.tensor(batch), torch.ones(len(batch)))
            rows += batch
            batches += 1
            if batches == most:
                return rows
        if batches == before:
            return rows


def reported_rows(client: Client, session: str) -> dict[int, Counter[int]]:
    """By epoch, how often each row was reported: by the reports that the server has, and the batches it hands out."""
    info = client.session(session)
    worlds = [(0, info.raw["spec"]["world_size"])] + [(s["from_step"], s["world_size"]) for s in info.raw["segments"]]
    rows: dict[int, Counter[int]] = {}
    first: int | None = 0
    while first is not None:
        page = client.losses(session, first=first, limit=1000)
        for report in page["reports"]:
            assert report["rank"] < [world for step, world in worlds if step <= report["step"]][-1]
            batch = client.step(session, report["step"], rank=report["rank"])
            rows.setdefault(int(batch.epoch or 0), Counter()).update(batch.indices[batch.weights > 0].tolist())
        first = page["next"]
    return rows


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("method", ["infobatch", "random"])
@pytest.mark.parametrize("loaded", [True, False])
def test_the_last_rank_of_three_goes_on_alone(url: str, method: str, loaded: bool) -> None:
    with Client(url, patience=20) as client:
        parameters = {"parameters": {"prune_ratio": 0.0}} if method == "infobatch" else {}
        session = client.create_session(method, size=100, batch_size=4, epochs=2, world_size=3, **parameters).id
        generation = client.session(session).generation
        samplers = [RemoteBatchSampler(client, session, rank=rank, prefetch=0) for rank in range(3)]
        for sampler, most in zip(samplers, (5, 5, 3), strict=True):
            train(sampler, most)
        states = [sampler.state_dict() for sampler in samplers]
        alone = RemoteBatchSampler(client, session, elastic=True)
        if loaded:
            alone.load_state_dict(states[1])
            assert alone.state_dict()["step"] == 5
        else:
            with pytest.raises(RuntimeError, match="save after it"):
                alone.state_dict()
        assert len(alone) == (-(-(100 - 5 * 12 + 2 * 4) // 4) if loaded else -(-(100 - 3 * 12) // 4))
        assert alone.generation == generation + 1
        with pytest.raises(ServiceError, match="stale-generation"):
            train(samplers[0])
        train(alone)
        info = client.session(session)
        assert (info.world_size, info.from_step) == (1, 5 if loaded else 3)
        assert reported_rows(client, session) == {0: Counter(range(100)), 1: Counter(range(100))}


@pytest.mark.usefixtures("one_process")
def test_a_session_that_nobody_began_is_left_as_it_is(url: str) -> None:
    with Client(url, patience=20) as client:
        session = client.create_session("random", size=10, batch_size=4).id
        generation = client.session(session).generation
        sampler = RemoteBatchSampler(client, session, elastic=True)
        assert sorted(train(sampler)) == list(range(10))
        assert client.session(session).generation == sampler.generation == generation


@pytest.mark.usefixtures("one_process")
def test_the_other_ranks_hear_of_whatever_fails_on_the_first(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(distributed, "broadcast_object_list", lambda objects, src: told.extend(objects))
    with Client(url, patience=0) as client:
        session = client.create_session("random", size=8, batch_size=2).id
        sampler = RemoteBatchSampler(client, session, elastic=True)
        monkeypatch.setattr(client, "session", lambda session: {}["segments"])
        with pytest.raises(KeyError, match="segments"):
            len(sampler)
    assert isinstance(told[0], KeyError)


def test_elastic_asks_for_a_process_group(url: str) -> None:
    with Client(url, patience=20) as client:
        session = client.create_session("random", size=10, batch_size=4).id
        with pytest.raises(ValueError, match="init_process_group"):
            RemoteBatchSampler(client, session, elastic=True)
        assert not RemoteBatchSampler(client, session).elastic


class Torchrun:
    """torchrun over some ranks, which restarts all of them where one dies."""

    def __init__(self, log: Path, ranks: int, arguments: list[str]) -> None:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
            *("--max-restarts=3", "--monitor-interval=0.1", str(TRAINER), *arguments),
        ]
        self.log = log
        with log.open("wb") as output:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    def kill_a_rank(self) -> None:
        """SIGKILL, as by the kernel."""
        psutil.Process(self.process.pid).children()[-1].kill()

    def kill(self) -> None:
        """All of it, as a machine that is gone."""
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for child in children:
                child.kill()
            self.process.wait()

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 180
        while not what():
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            assert self.process.poll() in (None, 0), self.log.read_text()[-4000:]
            time.sleep(0.05)


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Callable[..., Torchrun]]:
    """Starts torchruns, which end with the test."""
    started: list[Torchrun] = []

    def start(ranks: int, *arguments: str) -> Torchrun:
        started.append(Torchrun(tmp_path / f"{len(started)}.log", ranks, list(arguments)))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_ranks_one_killed_two_go_on_and_a_fourth_joins(
    url: str, torchrun: Callable[..., Torchrun], tmp_path: Path
) -> None:
    options = ["--checkpoint", str(tmp_path / "state.pt"), "--epochs", "3", "--pause", "0.03"]
    with Client(url, patience=60) as client:

        def resizes() -> list[int]:
            return [segment["world_size"] for segment in client.session("elastic").raw["segments"]]

        def reports() -> int:
            try:
                return sum(rank["reports"] for rank in client.session("elastic").raw["ranks"])
            except ServiceError:
                return 0

        three = torchrun(3, url, "elastic", *options)
        three.until(lambda: reports() >= 40)
        three.kill_a_rank()
        three.until(lambda: resizes() == [3])
        before = reports()
        three.until(lambda: reports() >= before + 40)
        three.kill()

        two = torchrun(2, url, "elastic", *options)
        two.until(lambda: 2 in resizes())
        before = reports()
        two.until(lambda: reports() >= before + 40)
        two.kill()

        joined = torchrun(3, url, "elastic", *options)
        joined.until(lambda: joined.process.poll() == 0)
        assert "3 ranks at the end, accuracy 0.9" in joined.log.read_text()
        assert resizes()[-2:] == [2, 3]
        assert client.session("elastic").from_step > 0
        rows = reported_rows(client, "elastic")
        assert [set(counts.values()) for counts in rows.values()] == [{1}] * 3
        assert [len(rows[epoch]) for epoch in range(3)] == [epoch["rows"] for epoch in client.epochs("elastic")]
        assert len(rows[0]) == 1437
