"""Losses as the dashboard draws them, against numpy, with losses that are not finite."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from curation.service.client import Client
from curation.service.http.dashboard import losses


@pytest.fixture(scope="module")
def url(live: Callable[..., Any]) -> str:
    return str(live().url)


def told(client: Client, id: str, losses: "np.ndarray[Any, np.dtype[Any]]", **options: Any) -> str:
    """A session of one rank that reports a row of losses for each step."""
    batch = losses.shape[1]
    client.create_session("random", size=8 * batch, batch_size=batch, epochs=200, id=id, non_finite="keep", **options)
    client.step(id, 0)
    client.report(id, [(step, row.astype(np.float32)) for step, row in enumerate(losses)])
    return f"{client.url}/dashboard/sessions/{id}"


@pytest.mark.parametrize("began", [1, 2, 517, 999])
def test_where_losses_stopped_being_finite_is_found_between_the_steps_drawn(url: str, began: int) -> None:
    values = np.ones((1000, 4))
    values[5, 0] = np.nan
    values[began:] = np.inf
    with Client(url) as client:
        view = httpx.get(told(client, f"diverged-{began}", values)).json()
    assert view["standing"]["status"] == ("running" if began == 999 else "diverged")
    assert view["losses"]["every"] > 1
    assert view["losses"]["diverged"] == {"step": began, "epoch": began // 8}
    last = view["losses"]["points"][-1]
    assert (last["mean"], last["losses"], last["unknown"]) == (None, 4, 4)
    assert view["losses"]["epochs"][-1]["unknown"] > 0


def test_losses_that_were_never_finite_began_at_once_and_a_few_are_no_divergence(url: str) -> None:
    values = np.ones((30, 4))
    values[10, :3] = np.nan
    with Client(url) as client:
        never = httpx.get(told(client, "never", np.full((10, 4), np.nan))).json()
        few = httpx.get(told(client, "few", values)).json()
    assert (never["standing"]["status"], never["losses"]["diverged"]) == ("diverged", {"step": 0, "epoch": 0})
    assert never["spread"] is None
    assert (few["standing"]["status"], few["losses"]["diverged"]) == ("running", None)
    assert few["losses"]["epochs"][1] == {"number": 1, "mean": 1.0, "losses": 32, "unknown": 3}
    assert few["losses"]["points"][10]["mean"] == 1


def test_the_newest_epoch_has_bins_of_its_own_and_the_one_before_as_outline(url: str) -> None:
    values = 100 * 0.5 ** (np.arange(24) // 8)[:, None] + np.linspace(0, 1, 64)
    with Client(url) as client:
        path = told(client, "bins", values)
    newest = httpx.get(path).json()["spread"]
    assert (newest["epoch"], newest["losses"], sum(newest["counts"])) == (2, 8 * 64, 8 * 64)
    assert newest["edges"][0] >= 25
    assert newest["edges"][-1] <= 26
    assert np.count_nonzero(newest["counts"]) == losses.BINS
    assert newest["before"] == [0] * (losses.BINS - 1) + [8 * 64]
    first = httpx.get(f"{path}?of=0").json()["spread"]
    assert (first["epoch"], first["before"], first["mean"]) == (0, None, pytest.approx(100.5))


def test_a_window_is_drawn_finer(url: str) -> None:
    with Client(url) as client:
        path = told(client, "window", np.ones((1000, 4)))
    queries = ("", "?newest=true", "?first=900&last=950")
    whole, newest, few = (httpx.get(f"{path}{query}").json()["losses"] for query in queries)
    assert (whole["every"], newest["every"], few["every"]) == (8, 1, 1)
    assert [point["step"] for point in newest["points"]] == [*range(992, 1000)]
    assert [point["step"] for point in few["points"]] == [*range(900, 951)]
    assert httpx.get(f"{path}?first=5000").json()["losses"]["points"] == []
