"""Devices that the same tests run on, and a watch that nothing waits for a GPU."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn; CUDA skips where there is none."""
    return torch.device(request.param)


@pytest.fixture
def no_waits(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A context in which whatever waits for the device raises; on the CPU it does nothing."""

    @contextmanager
    def watch() -> Iterator[None]:
        torch.cuda.synchronize()
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    return watch if device.type == "cuda" else nullcontext
