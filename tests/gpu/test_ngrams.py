"""Shared 4-grams against Python's sets."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.ngrams import alignment_terms, shared_grams, target_grams

Packed = tuple[torch.Tensor, torch.Tensor]


def packed(texts: list[bytes], device: torch.device | None = None) -> Packed:
    data = torch.from_numpy(np.frombuffer(b"".join(texts), np.uint8).copy())
    offsets = torch.from_numpy(np.cumsum([0, *map(len, texts)]))
    return data.to(device), offsets.to(device)


def grams(text: bytes) -> set[bytes]:
    return {text[i : i + 4] for i in range(len(text) - 3)}


def made(seed: int, count: int, letters: int, longest: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [bytes(rng.integers(0, letters, rng.integers(0, longest)).astype(np.uint8)) for _ in range(count)]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 8), st.sampled_from([2, 3, 256]))
def test_any_texts(seed: int, texts: int, targets: int, letters: int) -> None:
    left, right = made(seed, texts, letters, 30), made(seed + 1, targets, letters, 30)
    shared, own = shared_grams(*packed(left), target_grams(*packed(right)))
    assert shared.tolist() == [[len(grams(x) & grams(t)) for t in right] for x in left]
    assert own.tolist() == [len(grams(x)) for x in left]


def test_the_terms_of_alignment(device: torch.device) -> None:
    left, right = made(0, 50, 4, 200), made(1, 9, 4, 200)
    sizes, others = np.arange(20, 70), np.arange(15, 60, 5)
    terms = alignment_terms(
        *packed(left, device), torch.from_numpy(sizes).to(device), target_grams(*packed(right, device)),
        torch.from_numpy(others).to(device),
    )  # fmt: skip
    larger = np.maximum(sizes[:, None], others)
    shared = np.array([[len(grams(x) & grams(t)) for t in right] for x in left])
    expected = np.stack([(shared / larger).mean(1), (1 / larger).mean(1)], 1)
    np.testing.assert_allclose(terms.cpu().numpy(), expected, rtol=1e-12)


def test_nothing_waits_for_the_device(
    device: torch.device, no_waits: Callable[[], AbstractContextManager[None]]
) -> None:
    texts, targets = packed(made(2, 40, 5, 100), device), target_grams(*packed(made(3, 5, 5, 100), device))
    shared_grams(*texts, targets)
    with no_waits():
        shared, own = shared_grams(*texts, targets)
    assert shared.device.type == own.device.type == device.type


def test_offsets_and_bytes_of_another_kind_are_refused() -> None:
    data, offsets = packed([b"abcdef"])
    for wrong in ((data.int(), offsets), (data, offsets.int()), (data[:, None], offsets)):
        with pytest.raises(ValueError, match="data must be uint8"):
            target_grams(*wrong)
