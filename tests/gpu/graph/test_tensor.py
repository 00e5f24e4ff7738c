"""The graph on the device against the compiled one, which has a plain reference of its own."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.graph import build_graph
from curation.gpu.graph.tensor import build_csr


def assert_equal(neighbours: Any, edges: Any, device: torch.device) -> None:
    expected = build_graph(neighbours, edges)
    found = build_csr(torch.from_numpy(neighbours).to(device), edges)
    for ours, theirs in zip(found, (expected.starts, expected.neighbours, expected.weights), strict=True):
        assert ours.device.type == device.type
        assert ours.cpu().numpy().dtype == theirs.dtype
        np.testing.assert_array_equal(ours.cpu().numpy(), theirs)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40), st.integers(0, 9), st.integers(0, 10_000), st.sampled_from(["mutual", "either"]),
    st.sampled_from([np.int32, np.int64]),
)  # fmt: skip
def test_any_rows(count: int, width: int, seed: int, edges: str, dtype: Any) -> None:
    # So few rows name themselves, each other, and one another twice.
    neighbours = np.random.default_rng(seed).integers(-1, count, (count, width)).astype(dtype)
    assert_equal(neighbours, edges, torch.device("cpu"))


@pytest.mark.parametrize("edges", ["mutual", "either"])
def test_a_window_of_ranks(edges: str, device: torch.device) -> None:
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 60, (3_000, 30)) * rng.choice([-1, 1], (3_000, 30))
    assert_equal(((np.arange(3_000)[:, None] + steps) % 3_000).astype(np.int32), edges, device)


def test_mistakes_are_named() -> None:
    for message, neighbours, edges in (
        ("shape", torch.zeros(3, dtype=torch.int64), "mutual"),
        ("rows 0..2", torch.full((3, 1), 3), "mutual"),
        ("rows 0..2", torch.full((3, 1), -2), "either"),
        ("must be one of", torch.zeros(3, 1, dtype=torch.int64), "both"),
    ):
        with pytest.raises(ValueError, match=message):
            build_csr(neighbours, edges)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="integers"):
        build_csr(torch.zeros(3, 1))
