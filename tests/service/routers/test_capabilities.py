"""Capabilities: what a client in another language, or of another release, must know before it sends anything."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from curation.service.http.problems import KINDS
from curation.service.session.methods.registry import METHODS


@pytest.fixture(scope="module")
def found(live: Callable[..., Any]) -> dict[str, Any]:
    answer = httpx.get(f"{live(max_rows=1234).url}/v1/capabilities")
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


def test_each_method_with_the_schema_of_its_parameters(found: dict[str, Any]) -> None:
    assert set(found["methods"]) == set(METHODS)
    shown = {name: set(method["parameters"].get("properties", {})) for name, method in found["methods"].items()}
    assert shown["infobatch"] == {"prune_ratio", "delta", "quantiles", "form"}
    assert {"filter_ratio", "chunks"} <= shown["jest"]
    assert shown["random"] == set()
    assert found["methods"]["acquisition"]["table"] == "scores"


def test_limits_routes_problems_and_no_secret(found: dict[str, Any]) -> None:
    assert found["limits"]["max_rows"] == 1234
    assert found["limits"]["max_body_bytes"] == 64 << 20
    assert set(found["problems"]) == set(KINDS)
    assert {"POST /v1/sessions/{id}/steps", "GET /v1/capabilities"} <= set(found["routes"])
    assert {"rank", "step", "reports"} <= set(found["step_fields"])
    assert "store" not in found["limits"]
    assert "sqlite" not in str(found)


def test_parameters_are_in_openapi(live: Callable[..., Any]) -> None:
    document = httpx.get(f"{live().url}/openapi.json").json()
    created = document["components"]["schemas"]["Created"]["properties"]["parameters"]
    named = {option["$ref"].rpartition("/")[2] for option in created["anyOf"]}
    assert named == {f"{name}-parameters" for name in METHODS}
    assert named <= set(document["components"]["schemas"])
    assert "chunks" in document["components"]["schemas"]["jest-parameters"]["properties"]
