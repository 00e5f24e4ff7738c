"""What a JEST selection holds beside its embeddings: measured at a small size, and by that rule at the paper's."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from curation.gpu.learnability import accumulate, scratch_bytes
from curation.pair import Pair
from curation.selectors.jest import JEST

# Sums, noise, keys and their order: float64 and int64 columns of a candidate that are held at a time.
COLUMNS = 24


def peak(run: Callable[[], Any]) -> int:
    """Bytes of CPU tensors that ``run`` holds at a time, at most, beyond what it began with."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    assert record.profiler is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_call_stays_within_its_scratch(loss: Any, dtype: torch.dtype) -> None:
    taken, rows = torch.randn(300, 40).to(dtype), torch.randn(2_000, 40).to(dtype)
    out = torch.zeros(2_000, dtype=torch.float64)
    planned = scratch_bytes(300, 2_000, 40, dtype, backend="torch", tile_bytes=1 << 20)
    used = peak(lambda: accumulate(taken, rows, out, loss=loss, backend="torch", tile_bytes=1 << 20))
    assert planned / 4 < used <= planned


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_a_selection_needs_little_beside_its_scratch(loss: Any) -> None:
    size, width = 20_000, 8
    pairs = [Pair(torch.randn(size, width), torch.randn(size, width)) for _ in range(2)]
    selector = JEST(loss=loss, chunks=4, filter_ratio=0.99, backend="torch", tile_bytes=1 << 18)
    taken = max(selector.rounds(size))
    used = peak(lambda: selector.draw(*pairs, generator=torch.Generator().manual_seed(0)))
    scratch = scratch_bytes(taken, size, width, torch.float32, backend="torch", tile_bytes=1 << 18)
    # own_logits upcasts both sides a part at a time.
    assert used <= scratch + 8 * COLUMNS * size + 3 * 4 * width * size + 2 * 4 * width * taken


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_papers_size_fits_many_times_over() -> None:
    size, width, part = 163_840, 512, 16_384
    rounds = JEST().rounds(size)
    assert sum(rounds) == 32_768
    for loss_rows in rounds:
        scratch = scratch_bytes(loss_rows, size, width, torch.bfloat16, backend="triton")
        total = scratch + 8 * COLUMNS * size + 3 * 4 * width * part + 2 * 2 * width * loss_rows
        assert total < 1 << 28
    assert scratch_bytes(rounds[0], size, width, torch.bfloat16, backend="torch") < 1 << 31
    with pytest.raises(ValueError, match="torch or triton"):
        scratch_bytes(1, 1, 1, torch.float32, backend="numba")
