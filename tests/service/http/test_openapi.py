"""schemathesis drives every documented operation: no answer may be a 5xx, or one that the document does not name."""

import os
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

from curation.service.access.tokens import issue_token
from curation.service.client import ARROW, Client
from curation.service.store import Store


@schemathesis.serializer(ARROW)
def arrow_body(ctx: Any, value: Any) -> bytes:
    """What schemathesis makes up for a binary body is hardly ever Arrow: sent as it is, it must be refused well."""
    return bytes(value) if isinstance(value, bytes) else str(value).encode()


CASES = int(os.environ.get("CURATION_OPENAPI_CASES", "500"))
"""About how many requests are made up in all."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(live: Callable[..., Any]) -> Any:
    return live()


@pytest.fixture(scope="module")
def token(server: Any) -> str:
    """An administrator's: without one, the first token that is made up would shut out all other requests."""
    store = Store(server.settings.store)
    secret = issue_token(store, "test", frozenset({"admin"}))[1]
    store.close()
    return secret


@pytest.fixture(scope="module")
def url(server: Any, token: str) -> str:
    with Client(server.url, token=token) as client:
        client.create_session("infobatch", size=100, batch_size=8, epochs=3, id="known")
        client.create_session("jest", size=100, batch_size=8, id="choosing")
    return str(server.url)


def test_every_operation_keeps_to_its_description(url: str, token: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 15
    sent = 0
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=-(-CASES // len(operations)),
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def run(case: Any) -> None:
            nonlocal sent
            if "id" in case.path_parameters and case.operation.method.upper() != "DELETE":
                case.path_parameters["id"] = "choosing" if case.operation.path.endswith("/choices") else "known"
            case.validate_response(case.call(timeout=30, headers={"Authorization": f"Bearer {token}"}), checks=CHECKS)
            sent += 1

        run()
    print(f"{sent} requests to {len(operations)} operations")
    assert sent > CASES // 2


def test_the_document_names_both_bodies_and_the_problems(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    steps = document["paths"]["/v1/sessions/{id}/steps"]["post"]
    assert set(steps["requestBody"]["content"]) == {"application/json", "application/vnd.apache.arrow.stream"}
    assert set(steps["responses"]["200"]["content"]) == {"application/json", "application/vnd.apache.arrow.stream"}
    assert set(steps["responses"]["409"]["content"]) == {"application/problem+json"}
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert operation["description"]
