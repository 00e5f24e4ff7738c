"""The list of sessions: searched, sorted and paged by the store, without a gap while others come and go."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from curation.service.client import Client


@pytest.fixture(scope="module")
def http(live: Callable[..., Any]) -> Any:
    url = live().url
    with Client(url) as client:
        for number in range(25):
            method = "infobatch" if number % 5 == 0 else "random"
            client.create_session(method, size=100 + number % 3, batch_size=10, id=f"run_{number:02d}")
    with httpx.Client(base_url=url) as http:
        yield http


def pages(http: httpx.Client, **query: Any) -> list[list[dict[str, Any]]]:
    found, after = [], None
    while True:
        page = http.get("/dashboard/sessions", params={**query, **({} if after is None else {"after": after})}).json()
        found.append(page["sessions"])
        after = page["next"]
        if after is None:
            return found


def test_pages_have_every_session_once_in_every_order(http: httpx.Client) -> None:
    names = [f"run_{number:02d}" for number in range(25)]
    orders = {
        "newest": names[::-1],
        "oldest": names,
        "name": names,
        "largest": sorted(names, key=lambda name: (-(int(name[4:]) % 3), -int(name[4:]))),
    }
    for sort, wanted in orders.items():
        found = pages(http, sort=sort, limit=7)
        assert [line["id"] for page in found for line in page] == wanted, sort
        assert [len(page) for page in found] == [7, 7, 7, 4]


def test_a_page_stays_where_it_is_while_sessions_come_and_go(http: httpx.Client) -> None:
    first = http.get("/dashboard/sessions?limit=5").json()
    with Client(str(http.base_url)) as client:
        client.create_session("random", size=10, batch_size=5, id="late")
        client.delete("late")
        client.create_session("random", size=10, batch_size=5, id="later")
        second = http.get("/dashboard/sessions", params={"limit": 5, "after": first["next"]}).json()
        client.delete("later")
    assert [line["id"] for line in second["sessions"]] == [f"run_{number:02d}" for number in range(19, 14, -1)]


def test_a_search_looks_into_names_and_methods_and_takes_no_wildcards(http: httpx.Client) -> None:
    def found(search: str) -> int:
        answer = http.get("/dashboard/sessions", params={"search": search, "limit": 3}).json()
        assert len(answer["sessions"]) == min(3, answer["total"])
        return int(answer["total"])

    searches = ("RUN_1", "infobatch", "random", "run%", "run-", "size", '"', "")
    assert [found(search) for search in searches] == [10, 5, 20, 0, 0, 0, 0, 25]


def test_an_answer_that_did_not_change_is_not_sent_again(http: httpx.Client) -> None:
    for path in ("/dashboard/sessions", "/dashboard/sessions/run_05"):
        answer = http.get(path)
        again = http.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        with Client(str(http.base_url)) as client:
            batch = client.step("run_05", 0)
            client.report("run_05", [(0, [1.0] * len(batch.indices))])
        changed = http.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert changed.status_code == 200
        with Client(str(http.base_url)) as client:
            client.rewind("run_05", 0)


@pytest.mark.parametrize("after", ["x", "-", "9" * 40 + "-1", "1-x", "1-" + "9" * 40])
def test_a_page_that_was_never_named_is_refused(
    http: httpx.Client, after: str, assert_problem: Callable[..., Any]
) -> None:
    assert_problem(http.get("/dashboard/sessions", params={"after": after}), 422, "bad-body")
