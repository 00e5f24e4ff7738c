"""What every request passes, seen from outside."""

import gc
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from curation.service.client import Client
from curation.service.http.admission.request_body import RequestBody


def requests_in_memory() -> int:
    # Not isinstance, which asks objects of other libraries for attributes that they warn of.
    return sum(type(one) in (RequestBody, RequestResponseCycle) for one in gc.get_objects())


def test_requests_leave_memory_as_they_end(live: Callable[..., Any]) -> None:
    """Not when the garbage collector comes: every request's memory would be cold, and its work for nothing."""
    url, losses = live().url, np.ones(8, np.float32)
    with Client(url, patience=0) as client, httpx.Client(base_url=url) as http:
        session = client.create_session("infobatch", size=100, batch_size=8).id
        client.step(session, 0)
        gc.collect()
        before = requests_in_memory()  # of servers of other tests
        gc.disable()
        try:
            for step in range(1, 9):
                client.step(session, step, reports=[(step - 1, losses)])
                assert http.get(f"/v1/sessions/{session}").status_code == 200
                assert http.post("/v1/sessions", content=b"{").status_code == 415
            kept = requests_in_memory() - before
        finally:
            gc.enable()
    assert kept <= 8  # of 48: each connection keeps its last one, and some may be ending just now
