"""``/v1/tokens`` over a real server: what it makes works, and what it shows is no secret."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from curation.service.client import Client

Problem = Callable[[httpx.Response, int, str], dict[str, Any]]


@pytest.fixture
def admin(live: Callable[..., Any]) -> Any:
    """A client of a server whose first token, an administrator's, was made over HTTP."""
    url = live(token_seconds=0).url
    made = httpx.post(f"{url}/v1/tokens", json={"name": "boss", "scopes": ["admin"]})
    assert made.status_code == 201
    assert httpx.get(f"{url}/v1/tokens").status_code == 401
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {made.json()['token']}"}) as http:
        yield http


def test_a_token_from_its_making_to_its_end(admin: httpx.Client, assert_problem: Problem) -> None:
    made = admin.post("/v1/tokens", json={"name": "trainer", "owner": "vision", "expires_in": 3600})
    token = made.json()
    assert (made.status_code, made.headers["location"]) == (201, f"/v1/tokens/{token['id']}")
    assert made.headers["cache-control"] == "no-store"
    with Client(str(admin.base_url), token=token["token"], patience=0) as trainer:
        session = trainer.create_session("random", size=10, batch_size=2).id
    trainers = {"Authorization": f"Bearer {token['token']}"}
    assert_problem(admin.get("/v1/tokens", headers=trainers), 403, "bad-scope")
    rotated = admin.post(f"/v1/tokens/{token['id']}/rotate", json={"grace": 0}).json()
    assert {**rotated, "token": "", "old_until": None, "used": None} == {**token, "token": "", "used": None}
    with Client(str(admin.base_url), token=rotated["token"], patience=0) as trainer:
        assert trainer.session(session).id == session
    listed = admin.get("/v1/tokens")
    assert [line["name"] for line in listed.json()["tokens"]] == ["boss", "trainer"]
    for secret in (token["token"], rotated["token"]):
        assert secret.split("_", 2)[2] not in listed.text
    assert "hash" not in listed.text
    for _ in range(2):
        assert admin.delete(f"/v1/tokens/{token['id']}").status_code == 204
    assert_problem(admin.post(f"/v1/tokens/{token['id']}/rotate", json={}), 404, "not-found")
    assert_problem(admin.delete("/v1/tokens/0123456789abcdef"), 404, "not-found")
    assert admin.get("/v1/tokens").json()["tokens"][1]["revoked"] is not None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x", "owner": "a b"},
        {"name": "x", "owner": "a\n"},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["everything"]},
        {"name": "x", "expires_in": 0},
        {"name": "x", "expires_in": 1e300},
        {"name": "x", "hash": "y"},
    ],
)
def test_a_bad_token_is_refused(admin: httpx.Client, assert_problem: Problem, body: dict[str, Any]) -> None:
    assert_problem(admin.post("/v1/tokens", json=body), 422, "bad-body")
    assert len(admin.get("/v1/tokens").json()["tokens"]) == 1


def test_no_form_of_a_web_page_makes_a_token(live: Callable[..., Any], assert_problem: Problem) -> None:
    url = live().url
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None):
        headers = {} if kind is None else {"Content-Type": kind}
        answer = httpx.post(f"{url}/v1/tokens", content=b'{"name": "x", "scopes": ["admin"]}', headers=headers)
        assert_problem(answer, 415, "bad-media-type")
    assert httpx.get(f"{url}/v1/tokens").json() == {"tokens": []}


def test_the_first_token_asks_what_becomes_of_sessions(live: Callable[..., Any], assert_problem: Problem) -> None:
    url = live(token_seconds=0).url
    with Client(url) as client:
        session = client.create_session("random", size=10, batch_size=2).id
    body = {"name": "x", "owner": "vision"}
    problem = assert_problem(httpx.post(f"{url}/v1/tokens", json=body), 422, "bad-body")
    assert "adopt, true or false" in problem["detail"]
    token = httpx.post(f"{url}/v1/tokens", json={**body, "adopt": True}).json()["token"]
    with Client(url, token=token) as client:
        assert client.session(session).id == session
