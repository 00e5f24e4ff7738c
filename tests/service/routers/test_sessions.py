"""What is stored of a session's request, and what a look at the session carries."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from curation.service.client import Client
from curation.service.store.tables import sessions

PLAN = {"method": "plan", "size": 6, "batch_size": 2, "parameters": {"batches": [[0, 1], [2, 3], [5, 4]]}}
SCORES = {"method": "acquisition", "size": 4, "batch_size": 2, "parameters": {"scores": [1, 2, 3, 4], "beta": 2}}


@pytest.mark.parametrize("body", [PLAN, SCORES])
def test_a_table_that_came_as_json_is_no_part_of_the_parameters(client: Client, http: httpx.Client, body: Any) -> None:
    id = f"table-{body['method']}"
    made = http.post("/v1/sessions", json={"id": id, **body})
    assert made.status_code == 201
    assert not {"batches", "scores"} & set(made.json()["spec"]["parameters"])
    assert http.post("/v1/sessions", json={"id": id, **body}).status_code == 200
    name, values = next(iter(body["parameters"].items()))
    other = {**body, "id": id, "parameters": {**body["parameters"], name: list(reversed(values))}}
    assert http.post("/v1/sessions", json=other).status_code == 409
    if name == "batches":
        steps = [client.step(id, step).indices.tolist() for step in range(3)]
        assert sorted(steps) == sorted(values)


def test_a_session_of_release_0_1_that_has_its_table_as_json_is_still_the_same(live: Callable[..., Any]) -> None:
    from sqlalchemy import delete, update

    from curation.service.session.spec import SessionSpec
    from curation.service.store.tables import blobs

    server = live()
    with httpx.Client(base_url=server.url) as http:
        assert http.post("/v1/sessions", json={"id": "old", **PLAN}).status_code == 201
        batches = [http.post("/v1/sessions/old/steps", json={"step": step}).json()["indices"] for step in range(3)]
        with server.app.state.service.store.writing() as connection:
            connection.execute(update(sessions).values(spec=SessionSpec(**PLAN).model_dump_json()))
            connection.execute(delete(blobs))
        server.stop()
        server.start()
        assert [http.post("/v1/sessions/old/steps", json={"step": n}).json()["indices"] for n in range(3)] == batches
        assert http.post("/v1/sessions", json={"id": "old", **PLAN}).status_code == 200


def test_a_page_of_losses_is_bounded_by_bytes(live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from curation.service.routers import epochs

    monkeypatch.setattr(epochs, "MAX_LOSSES", 100)
    with Client(live().url) as client:
        session = client.create_session("random", size=10_000, batch_size=40).id
        client.report(session, [(step, np.full(40, step, np.float32)) for step in range(10)])
        first, pages = 0, []
        while first is not None:
            page = client._http.get(f"/v1/sessions/{session}/losses", params={"first": first}).json()
            pages.append([report["step"] for report in page["reports"]])
            first = page["next"]
        assert pages == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
