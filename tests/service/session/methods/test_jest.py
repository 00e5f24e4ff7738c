"""Sessions of JEST over a real socket, against the local sampler on the same embeddings."""

import json
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch

from curation.pair import Pair
from curation.selectors.jest import JEST
from curation.selectors.samplers import JESTBatchSampler, RandomBatchSampler
from curation.service.client import Client, ServiceError
from curation.service.client.jest_sampler import RemoteJESTBatchSampler

SIZE, BATCH, EPOCHS, SEED = 90, 24, 2, 6
SIDES = torch.randn(4, SIZE, 5, generator=torch.Generator().manual_seed(0))
JSON = {"Content-Type": "application/json"}
OPTIONS: dict[str, Any] = {"filter_ratio": 0.75, "chunks": 3}


def embeddings(indices: npt.NDArray[np.int64]) -> tuple[Pair, Pair]:
    rows = SIDES[:, torch.from_numpy(indices)]
    return Pair(rows[0], rows[1], 10.0, -10.0), Pair(rows[2], rows[3], 9.0, -8.0)


def local(world_size: int, **options: Any) -> Iterator[list[list[int]]]:
    """The batches of every rank, step by step."""
    ranks = [
        JESTBatchSampler(
            RandomBatchSampler(size=SIZE, batch_size=BATCH, seed=SEED),
            JEST(**OPTIONS, **options),
            embeddings,
            seed=SEED,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for _ in range(EPOCHS):
        yield from map(list, zip(*ranks, strict=True))


@pytest.fixture(scope="module")
def url(live: Callable[..., Any]) -> str:
    return str(live(max_body_bytes=1 << 17, max_pairs=200).url)


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, patience=0) as client:
        yield client


def create(client: Client, world_size: int = 1, **options: Any) -> str:
    parameters = {**OPTIONS, **options.pop("parameters", {})}
    return client.create_session(
        "jest",
        **{"size": SIZE, "epochs": EPOCHS, "seed": SEED, "world_size": world_size, "parameters": parameters}
        | {"batch_size": BATCH // world_size}
        | options,
    ).id


@pytest.mark.parametrize(
    "change", [{}, {"loss": "softmax", "own_positive": True}, {"criterion": "hard"}, {"criterion": "easy"}]
)
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_choice_is_that_of_the_local_sampler(client: Client, world_size: int, change: dict[str, Any]) -> None:
    session = create(client, world_size, parameters=change)
    given: list[list[list[int]]] = []
    ended = False
    while not ended:
        step = len(given)
        parts = [client.step(session, step, rank=rank).indices for rank in range(world_size)]
        for rank, part in enumerate(parts):
            learner, reference = embeddings(part)
            pairs = (
                None if change.get("criterion") == "easy" else learner,
                None if change.get("criterion") == "hard" else reference,
            )
            if rank < world_size - 1:
                with pytest.raises(ServiceError, match="missing-reports") as refused:
                    client.choose(session, step, *pairs, rank=rank)
                assert [m["rank"] for m in refused.value.members["missing"]] == [*range(rank + 1, world_size)]
            else:
                client.choose(session, step, *pairs, rank=rank)
        chosen = [client.choose(session, step, rank=rank) for rank in range(world_size)]
        for one in chosen:
            assert np.array_equal(np.concatenate(parts)[one.positions], one.indices)
            assert (one.step, one.epoch, one.weights.tolist()) == (step, step // 4, [1.0] * len(one.indices))
        given.append([one.indices.tolist() for one in chosen])
        ended = chosen[0].end_of_session
    assert given == list(local(world_size, **change))


def test_scores_alone_choose_as_their_embeddings_would(client: Client) -> None:
    session = create(client, parameters={"joint": False})
    for step, chosen in zip(range(8), local(1, joint=False), strict=True):
        learner, reference = embeddings(client.step(session, step).indices)
        own = JEST(joint=False).logits(learner, reference)
        assert client.choose(session, step, scores=own).indices.tolist() == chosen[0]
    with pytest.raises(ServiceError, match="only sessions with"):
        client.choose(create(client), 0, scores=own)


def test_asking_and_sending_again_changes_nothing(client: Client) -> None:
    session = create(client)
    with pytest.raises(ServiceError, match="rank 0 has sent nothing for step 1") as refused:
        client.choose(session, 1)
    assert (refused.value.kind, refused.value.status) == ("not-sent", 409)
    learner, reference = embeddings(client.step(session, 1).indices)
    first = client.choose(session, 1, learner, reference)
    before = client.checkpoint(session)
    for again in (client.choose(session, 1, learner, reference), client.choose(session, 1)):
        assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    with pytest.raises(ServiceError, match="sent something else for step 1 before") as refused:
        client.choose(session, 1, Pair(learner.a * 2, learner.b, 10.0, -10.0), reference)
    assert (refused.value.kind, refused.value.status) == ("report-differs", 409)
    with pytest.raises(ServiceError, match="report-differs"):
        client.choose(session, 1, Pair(learner.a, learner.b, 10.0, -9.0), reference)
    assert client.checkpoint(session) == before


def test_a_part_that_waits_is_compared_too_and_parts_that_do_not_fit_are_forgotten(client: Client) -> None:
    session = create(client, 2)
    parts = [embeddings(client.step(session, 0, rank=rank).indices) for rank in range(2)]
    with pytest.raises(ServiceError, match="missing-reports"):
        client.choose(session, 0, *parts[0])
    with pytest.raises(ServiceError, match="report-differs"):
        client.choose(session, 0, *reversed(parts[0]))
    with pytest.raises(ServiceError, match="all ranks must send alike") as refused:
        client.choose(session, 0, *(Pair(pair.a[:, :3], pair.b[:, :3], pair.scale) for pair in parts[1]), rank=1)
    assert refused.value.kind == "bad-report"
    for rank in range(2):
        with pytest.raises(ServiceError, match="not-sent"):
            client.choose(session, 0, rank=rank)


def bad_bodies() -> list[tuple[dict[str, Any], int, str, str]]:
    rows = [[1.0, 2.0]] * BATCH
    whole = {"step": 0, "learner_a": rows, "learner_b": rows, "reference_a": rows, "reference_b": rows}
    return [
        ({**whole, "step": 8}, 422, "bad-step", "step 8 is past the end"),
        ({**whole, "step": -1}, 422, "bad-step", "negative"),
        ({**whole, "step": "0"}, 422, "bad-body", "step: Input should be a valid integer"),
        ({**whole, "rank": 1}, 422, "bad-rank", "rank 1 is unknown"),
        ({**whole, "rank": 10**30}, 422, "bad-rank", "is unknown"),
        ({**whole, "generation": 1}, 409, "stale-generation", "the session was rewound"),
        ({**whole, "learner_a": rows[1:]}, 422, "bad-report", "learner_a has 23 rows, but this rank's part has 24"),
        ({**whole, "learner_a": [[1.0]] * BATCH}, 422, "bad-report", "learner_a and learner_b must be of one width"),
        ({**whole, "learner_a": [[]] * BATCH}, 422, "bad-report", "must be of one width"),
        ({**whole, "reference_b": None}, 422, "bad-report", "needs learner_a, learner_b, reference_a, reference_b"),
        ({**whole, "learner_a": [*rows[:-1], [1.0, 1e300]]}, 422, "bad-body", "learner_a: row 23 is not finite"),
        ({**whole, "learner_scale": 1e38}, 422, "bad-report", "overflow"),
        ({**whole, "scores": [0.0] * BATCH}, 422, "bad-report", "scores are each row's own"),
        ({**whole, "surprise": 1}, 422, "bad-body", "surprise"),
        ({"rank": 0}, 422, "bad-body", "step: Field required"),
    ]


@pytest.mark.parametrize(("body", "status", "kind", "detail"), bad_bodies())
def test_what_does_not_fit_is_refused_and_changes_nothing(
    client: Client, body: dict[str, Any], status: int, kind: str, detail: str
) -> None:
    session = create(client)
    before = client.checkpoint(session)
    answer = httpx.post(f"{client.url}/v1/sessions/{session}/choices", json=body)
    document = answer.json()
    assert (answer.status_code, document["type"]) == (status, f"urn:curation:problem:{kind}"), document
    assert detail in document["detail"]
    assert client.checkpoint(session) == before
    assert client.session(session).raw["ranks"] == []


def test_json_and_arrow_say_the_same(client: Client) -> None:
    one, two = create(client), create(client)
    learner, reference = embeddings(client.step(one, 0).indices)
    spoken = {"step": 0}
    for name, pair in (("learner", learner), ("reference", reference)):
        spoken |= {f"{name}_{side}": getattr(pair, side).tolist() for side in "ab"}
        spoken |= {f"{name}_scale": pair.scale, f"{name}_bias": pair.bias}
    answer = httpx.post(f"{client.url}/v1/sessions/{one}/choices", content=json.dumps(spoken), headers=JSON).json()
    found = client.choose(two, 0, learner, reference)
    found = found._replace(generation=client.session(one).generation)
    for name, value in found._asdict().items():
        assert answer[name] == (value.tolist() if isinstance(value, np.ndarray) else value)
    assert client.choose(one, 0, learner, reference).indices.tolist() == answer["indices"]


def test_rewinding_forgets_choices_from_there_on(client: Client) -> None:
    session = create(client)
    sent = [embeddings(client.step(session, step).indices) for step in range(3)]
    chosen = [client.choose(session, step, *pairs) for step, pairs in enumerate(sent)]
    before = client.session(session).generation
    assert client.rewind(session, 1).generation == before + 1
    assert client.choose(session, 0, generation=before + 1).indices.tolist() == chosen[0].indices.tolist()
    for step in (1, 2):
        with pytest.raises(ServiceError, match="not-sent"):
            client.choose(session, step)
    with pytest.raises(ServiceError, match="stale-generation"):
        client.choose(session, 1, *sent[1], generation=before)
    other = (sent[1][1], sent[1][0])
    assert client.choose(session, 1, *other).indices.tolist() != chosen[1].indices.tolist()
    assert client.choose(session, 2, *sent[2]).indices.tolist() == chosen[2].indices.tolist()


def test_a_checkpoint_carries_the_present_epochs_choices(client: Client) -> None:
    session = create(client)
    for step in range(6):
        pairs = embeddings(client.step(session, step).indices)
        losses = np.full(len(client.choose(session, step, *pairs).indices), float(step))
        client.report(session, [(step, losses)])
    copy = client.restore(client.checkpoint(session)).id
    for step in (4, 5):
        assert client.choose(copy, step).indices.tolist() == client.choose(session, step).indices.tolist()
    with pytest.raises(ServiceError, match="before-base"):
        client.choose(copy, 3)
    pairs = embeddings(client.step(copy, 6).indices)
    assert client.choose(copy, 6, *pairs).indices.tolist() == client.choose(session, 6, *pairs).indices.tolist()
    assert client.session(copy).raw["ranks"][0]["reports"] == 2
    with pytest.raises(ServiceError, match="has 24 losses, but the batch had 6 rows"):
        client.report(session, [(6, np.zeros(BATCH))])


def test_a_checkpoint_of_larger_super_batches_than_the_server_takes_is_refused(
    live: Callable[..., Any], client: Client
) -> None:
    with Client(live().url) as larger:
        checkpoint = larger.checkpoint(create(larger, batch_size=201))
    with pytest.raises(ServiceError, match="more than this server takes, 200") as refused:
        client.restore(checkpoint)
    assert refused.value.kind == "bad-parameters"


def test_a_last_super_batch_may_take_in_what_is_too_little_for_one_of_its_own(live: Callable[..., Any]) -> None:
    """Of the last 9 rows two would be chosen for three ranks; the limit counts the session's own super-batches."""
    with Client(live(max_pairs=BATCH).url, patience=0) as client:
        session = create(client, 3, size=3 * BATCH + 9, epochs=1)
        parts = [client.step(session, 2, rank=rank).indices for rank in range(3)]
        assert [len(part) for part in parts] == [11] * 3
        for rank in (0, 1):
            with pytest.raises(ServiceError, match="missing-reports"):
                client.choose(session, 2, *embeddings(parts[rank]), rank=rank)
        chosen = client.choose(session, 2, *embeddings(parts[2]), rank=2)
        assert chosen.end_of_session
        assert [len(client.choose(session, 2, rank=rank).indices) for rank in range(3)] == [2, 3, 3]


def test_what_cannot_be_a_session_of_jest_is_refused(client: Client) -> None:
    for options, detail in [
        ({"parameters": {"filter_ratio": 1.0}}, "filter_ratio"),
        ({"parameters": {"surprise": 1}}, "surprise"),
        ({"parameters": {"own_positive": True}}, "own_positive is of loss='softmax'"),
        ({"batch_size": 201}, "more than this server takes, 200"),
        ({"batch_size": 1, "world_size": 8}, "of a super-batch 2 rows are chosen for 8 ranks"),
    ]:
        with pytest.raises(ServiceError, match="bad-parameters") as refused:
            create(client, **options)
        assert detail in refused.value.detail
    other = client.create_session("random", size=10, batch_size=5).id
    with pytest.raises(ServiceError, match="other-method"):
        client.choose(other, 0)


def test_ranks_that_send_at_once_get_one_choice(url: str) -> None:
    ranks = 4
    with Client(url, patience=30) as client:
        session = create(client, ranks)
        found: dict[tuple[int, int], Any] = {}

        def train(rank: int) -> None:
            with Client(url, patience=30) as own:
                for step in range(8):
                    part = own.step(session, step, rank=rank).indices
                    found[step, rank] = own.choose(session, step, *embeddings(part), rank=rank).indices.tolist()

        threads = [threading.Thread(target=train, args=(rank,)) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    given = [[found[step, rank] for rank in range(ranks)] for step in range(8)]
    assert given == list(local(ranks))


def train(sampler: RemoteJESTBatchSampler, most: int) -> list[list[int]]:
    """Up to so many batches, each updated."""
    given: list[list[int]] = []
    for _ in range(EPOCHS):
        for batch in sampler:
            given.append(batch)
            sampler.update(torch.tensor(batch), torch.ones(len(batch)))
            if len(given) == most:
                return given
    return given


@pytest.mark.parametrize("prefetch", [0, 3])
def test_the_sampler_trains_on_the_choices_and_resumes_without_embedding_again(client: Client, prefetch: int) -> None:
    whole = [ranks[0] for ranks in local(1)]
    session, scored = create(client), []

    def score(rows: npt.NDArray[np.int64]) -> tuple[Pair, Pair]:
        scored.append(len(rows))
        return embeddings(rows)

    first = RemoteJESTBatchSampler(client, session, score=score, prefetch=prefetch)
    assert len(first) == 4
    assert train(first, 2) == whole[:2]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    ahead = next(iter(first))
    assert ahead == whole[2]
    assert len(scored) == 3
    second = RemoteJESTBatchSampler(client, session, score=score, prefetch=prefetch)
    second.load_state_dict(state)
    assert train(second, 9) == whole[2:]
    assert len(scored) == 8
    assert client.session(session).raw["ranks"][0]["reports"] == 8
    epochs = httpx.get(f"{client.url}/v1/sessions/{session}/epochs").json()["epochs"]
    assert [(epoch["rows"], epoch["trained"]) for epoch in epochs] == [(SIZE, sum(map(len, whole[:4])))] * EPOCHS
    second.load_state_dict(state, rewind=True)
    second.score = lambda rows: embeddings(rows)[::-1]
    assert train(second, 9) != whole[2:]
    second.load_state_dict(state, rewind=True)
    second.score = lambda rows: (embeddings(rows[1:])[0], None)
    with pytest.raises(ValueError, match="score returned a learner of 23 rows for 24 positions"):
        next(iter(second))
