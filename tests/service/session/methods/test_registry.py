"""A session method from outside: one file and one line in METHODS, and the whole service serves it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from curation.service.client import Client, ServiceError
from curation.service.session.methods.registry import METHODS, method_kind
from curation.service.session.spec import SessionSpec

HARDEST = '''
"""Sessions in the order of the losses reported last, the largest first."""

from dataclasses import dataclass

import numpy as np

from curation.service.errors import Refusal
from curation.service.session.epochs import Ordered
from curation.service.session.methods.base import Defaults, MethodKind, Parameters, check_parameters, layout_of


class HardestParameters(Parameters):
    decay: float = 0.0


@dataclass
class HardestMethod(Defaults):
    spec: object
    losses: np.ndarray
    decay: float
    stateful = True

    def start(self):
        return {"losses": self.losses}

    def epoch(self, number, state):
        order = np.argsort(-state["losses"], kind="stable")

        def take(start, stop):
            return order[start:stop], np.ones(stop - start, np.float32)

        return Ordered(layout_of(self.spec, len(order)), take, nbytes=order.nbytes)

    def fold(self, state, epoch, reports):
        losses = state["losses"] * np.float32(self.decay)
        for indices, values in reports:
            losses[indices] += values
        return {"losses": losses}


def make(spec, size, tables):
    losses = tables["losses"]["first"].to_numpy() if "losses" in tables else np.zeros(size, np.float32)
    return HardestMethod(spec, losses, check_parameters(HardestParameters, spec).decay)


def check(spec, limits):
    if spec.batch_size > limits.max_pairs:
        raise Refusal("bad-parameters", f"a batch has at most {limits.max_pairs} rows")


KIND = MethodKind(make=make, bytes_per_candidate=12, table="losses", check_limits=check)
'''

TOP = '''
"""Sessions of super-batches of which the rows of the highest scores are trained on."""

from dataclasses import dataclass

import numpy as np

from curation.service.errors import Refusal
from curation.service.session.choice import Choice
from curation.service.session.epochs import Ordered
from curation.service.session.methods.base import MethodKind, layout_of
from curation.service.session.methods.random import RandomMethod


class SuperBatches(Ordered):
    def bounds(self, step):
        last = self.layout.world_size - 1
        return self.layout.span(0, step)[0], self.layout.span(last, step)[1]

    def part(self, rank, step):
        start, stop = self.layout.span(rank, step)
        return stop - start

    def share(self, rank, step):
        start, stop = self.bounds(step)
        half, world_size = (stop - start) // 2, self.layout.world_size
        return half * rank // world_size, half * (rank + 1) // world_size

    def length(self, rank, step):
        start, stop = self.share(rank, step)
        return stop - start

    @property
    def trained(self):
        return self.rows // 2

    def super_batch(self, step):
        return self.take(*self.bounds(step))[0]


@dataclass
class TopMethod(RandomMethod):
    @property
    def choosing(self):
        return self

    def epoch(self, number, state):
        whole = super().epoch(number, state)
        return SuperBatches(whole.layout, whole.take)

    def check(self, part, rows):
        if part.scores is None or len(part.scores) != rows:
            raise Refusal("bad-report", f"send {rows} scores")

    def choose(self, parts, seed):
        scores = np.concatenate([part.scores for part in parts])
        best = np.argsort(-scores, kind="stable")[: len(scores) // 2]
        digests = [part.digest for part in parts]
        return Choice(best.astype(np.int32), scores[best].astype(np.float32), digests)

    def check_choice(self, choice, epoch, step):
        start, stop = epoch.bounds(step)
        if len(choice.positions) != (stop - start) // 2:
            raise ValueError("it is of another length")


KIND = MethodKind(make=lambda spec, size, tables: TopMethod(spec, size))
'''


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods_from_outside").mkdir()
    for name, source in (("hardest", HARDEST), ("top", TOP)):
        (tmp_path / "methods_from_outside" / f"{name}.py").write_text(source)
        monkeypatch.setitem(METHODS, name, f"methods_from_outside.{name}:KIND")  # type: ignore[arg-type]
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def server(live: Callable[..., Any], methods: None) -> Any:
    return live(resident_bytes=12_000, max_pairs=100)


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, patience=10) as client:
        yield client


def losses_of(epoch: int) -> Any:
    return np.random.default_rng(epoch).random(20).astype(np.float32)


def test_a_method_that_learns_from_reports_is_one_file_and_one_line(server: Any, client: Client) -> None:
    table = pa.table({"first": losses_of(0)})
    options = {"size": 20, "batch_size": 5, "epochs": 4, "parameters": {"decay": 0.0}}
    session = client.create_session("hardest", **options, table=table).id
    given: list[list[int]] = []
    for epoch in range(3):
        order: list[int] = []
        for step in range(4 * epoch, 4 * epoch + 4):
            batch = client.step(session, step)
            order += batch.indices.tolist()
            client.report(session, [(step, losses_of(epoch + 1)[batch.indices])])
            if step == 6:  # in the middle of an epoch
                server.stop()
                server.start()
        assert order == np.argsort(-losses_of(epoch), kind="stable").tolist()
        given.append(order)
    checkpoint = client.checkpoint(session)
    copy = client.restore(checkpoint).id
    for one in (session, copy):
        assert client.step(one, 12).indices.tolist() == np.argsort(-losses_of(3), kind="stable")[:5].tolist()
    before = client.session(session).generation
    assert client.rewind(session, 4).generation == before + 1
    assert client.step(session, 5).indices.tolist() == given[1][5:10]
    with pytest.raises(ServiceError, match="missing-reports"), Client(server.url, patience=0) as impatient:
        impatient.step(session, 8)
    epochs = httpx.get(f"{server.url}/v1/sessions/{session}/epochs").json()["epochs"]
    assert [(epoch["rows"], epoch["trained"]) for epoch in epochs] == [(20, 20)] * 2
    view = httpx.get(f"{server.url}/dashboard/sessions/{session}").json()
    assert (view["chooses"], view["has_plan"]) == (False, False)


def test_a_methods_limits_and_parameters_are_its_own(client: Client) -> None:
    options: dict[str, Any] = {"size": 20, "batch_size": 5}
    for changed, detail in [
        ({"size": 1001}, "12012 bytes of memory, and this server's limit (resident_bytes) is 12000"),
        ({"batch_size": 101}, "a batch has at most 100 rows"),
        ({"parameters": {"surprise": 1}}, "(parameters of hardest: decay)"),
    ]:
        with pytest.raises(ServiceError, match="bad-parameters") as refused:
            client.create_session("hardest", **{**options, **changed})
        assert detail in refused.value.detail
    with pytest.raises(ServiceError, match="method 'top' takes no table"):
        client.create_session("top", **options, table=pa.table({"first": losses_of(0)}))
    with pytest.raises(ServiceError, match="method 'easiest' is unknown: choose one of .*, hardest, top"):
        client.create_session("easiest", **options)


def test_a_method_that_chooses_is_one_file_and_one_line(server: Any, client: Client) -> None:
    session = client.create_session("top", size=20, batch_size=4, epochs=2).id
    for step in range(7):
        rows = client.step(session, step).indices
        chosen = client.choose(session, step, scores=losses_of(0)[rows].astype(np.float64))
        assert chosen.indices.tolist() == rows[np.argsort(-losses_of(0)[rows], kind="stable")[:2]].tolist()
        client.report(session, [(step, np.ones(2))])
        if step == 3:
            server.stop()
            server.start()
    again = client.choose(session, 5).indices.tolist()
    copy = client.restore(client.checkpoint(session)).id
    assert client.choose(copy, 5).indices.tolist() == again
    client.rewind(session, 5)
    with pytest.raises(ServiceError, match="not-sent"), Client(server.url, patience=0) as impatient:
        impatient.choose(session, 5)
    epochs = httpx.get(f"{server.url}/v1/sessions/{session}/epochs").json()["epochs"]
    assert [(epoch["rows"], epoch["trained"]) for epoch in epochs] == [(20, 10)] * 2
    assert httpx.get(f"{server.url}/dashboard/sessions/{session}").json()["chooses"]
    with pytest.raises(ServiceError, match="other-method.*its epochs cannot be split anew"):
        client.resize(session, 2, generation=client.session(session).generation)
    with pytest.raises(ServiceError, match="other-method"):
        client.choose(client.create_session("random", size=10, batch_size=5).id, 0)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_declares_itself_and_is_named_in_the_api(name: str) -> None:
    assert callable(method_kind(name).make)
    assert name in str(SessionSpec.model_fields["method"].description).split(", ")
