"""Arrow layouts that are documented are those that client and server send."""

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from curation.pair import Pair
from curation.plan import BatchPlan
from curation.service.client import ARROW, Client
from curation.service.http.layouts import LAYOUTS, ArrowLayout


class Recording(httpx.HTTPTransport):
    """Keeps every Arrow body that goes out and comes in, by its path."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, list[pa.Schema]] = {}
        self.answered: dict[str, list[pa.Schema]] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        path = re.sub(r"/v1/sessions/(?!import)[^/]+", "/v1/sessions/{id}", request.url.path)
        if request.headers.get("content-type") == ARROW:
            self.sent.setdefault(path, []).append(pa.ipc.open_stream(request.read()).schema)
        answer = super().handle_request(request)
        answer.read()
        if answer.headers["content-type"] == ARROW:
            self.answered.setdefault(path, []).append(pa.ipc.open_stream(answer.content).schema)
        return answer


@pytest.fixture(scope="module")
def recorded(live: Callable[..., Any]) -> Recording:
    """One of each request that the client sends in Arrow, against a real server."""
    url, recording = live().url, Recording()
    matrix = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    pair = Pair(matrix, matrix)
    with Client(url, transport=recording) as client:
        plan = BatchPlan.of_size(np.arange(8), 4)
        client.create_session("plan", size=8, batch_size=4, plan=plan)
        client.create_session("acquisition", size=8, batch_size=4, scores=np.ones(8))
        session = client.create_session("infobatch", size=8, batch_size=4, epochs=2).id
        client.step(session, 0, generation=client.session(session).generation)
        client.step(session, 1, reports=[(0, np.ones(4))])
        client.batches(session, 1, reports={0: [(0, np.ones(4))]})
        client.report(session, [(1, np.ones(4))])
        client.step_rows(session, 0)
        client.restore(client.checkpoint(session))
        jest = client.create_session("jest", size=8, batch_size=8).id
        client.step(jest, 0)
        client.choose(jest, 0, pair, pair)
        client.step_rows(jest, 0)
        own = client.create_session("jest", size=8, batch_size=8, parameters={"joint": False}).id
        client.choose(own, 0, scores=np.ones(8))
        client.zipfit(["a", "b"], ["a"], 1)
        client.acquire(np.ones(4), 2)
        client.jest(pair, pair, chunks=2)
        client.b3(matrix, matrix, batch_size=4, cluster_size=2, ranks=(1, 4), negatives=1)
    return recording


ROUTES = [
    ("sent", "/v1/sessions", "Created"),
    ("sent", "/v1/sessions/{id}/steps", "StepBody"),
    ("answered", "/v1/sessions/{id}/steps", "StepAnswer"),
    ("sent", "/v1/sessions/{id}/batches", "BatchesBody"),
    ("answered", "/v1/sessions/{id}/batches", "BatchesAnswer"),
    ("sent", "/v1/sessions/{id}/choices", "ChoiceBody"),
    ("answered", "/v1/sessions/{id}/choices", "ChoiceAnswer"),
    ("answered", "/v1/sessions/{id}/steps/0/rows", "StepTrace"),
    ("sent", "/v1/sessions/import", "Checkpoint"),
    ("answered", "/v1/sessions/{id}/checkpoint", "Checkpoint"),
    ("sent", "/v1/select/zipfit", "ZipFitBody"),
    ("answered", "/v1/select/zipfit", "SelectionAnswer"),
    ("sent", "/v1/select/acquire", "AcquireBody"),
    ("sent", "/v1/select/jest", "JestBody"),
    ("answered", "/v1/select/jest", "SelectionAnswer"),
    ("sent", "/v1/select/b3", "B3Body"),
    ("answered", "/v1/select/b3", "PlanAnswer"),
]


def test_every_layout_is_compared() -> None:
    assert {name for _, _, name in ROUTES} == set(LAYOUTS)


@pytest.mark.parametrize(("way", "path", "name"), ROUTES)
def test_what_is_sent_is_as_documented(recorded: Recording, way: str, path: str, name: str) -> None:
    layout = LAYOUTS[name]
    schemas = getattr(recorded, way)[path]
    assert schemas
    for schema in schemas:
        _compare(layout, schema)
    if name != "PlanAnswer":
        seen = {column for schema in schemas for column in schema.names}
        assert {column.name for column in layout.columns} == seen, "a column is documented that is never sent"


def _compare(layout: ArrowLayout, schema: pa.Schema) -> None:
    types = {column.name: column.type for column in layout.columns}
    assert {column.name for column in layout.columns if column.required} <= set(schema.names)
    for field in schema:
        assert _type(field.type) == re.sub(r"\[[DK]\]", "[_]", types[field.name]), field.name
    keys = {key.decode() for key in schema.metadata or {}}
    assert keys <= set(layout.metadata) or not layout.metadata
    if "request" in layout.metadata:
        assert isinstance(json.loads(schema.metadata[b"request"]), dict)


def _type(kind: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size if pa.types.is_integer(kind.value_type) and kind.list_size == 2 else "_"
        return f"fixed_size_list<{_type(kind.value_type)}>[{width}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"{'large_' if pa.types.is_large_list(kind) else ''}list<{_type(kind.value_type)}>"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def test_openapi_shows_them(recorded: Recording, live: Callable[..., Any]) -> None:
    document = httpx.get(f"{live().url}/openapi.json").json()
    for way, path, name in ROUTES:
        methods = document["paths"][path.replace("/0/", "/{step}/")]
        operation = methods.get("post") or methods["get"]
        content = (operation["requestBody"] if way == "sent" else operation["responses"]["200"])["content"]
        assert content[ARROW]["schema"]["x-arrow"] == LAYOUTS[name].model_dump(mode="json")
