"""InfoBatch's epoch as tensor operations against the compiled one, which has plain references of its own."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from curation.gpu.pruning.tensor import decide, shuffled_kept, thresholds
from curation.gpu.random import derive_key
from curation.selectors.infobatch import rule

ALPHA = 1e-4
RULES = [
    (None, (0.5,)),
    ((0.5, 0.8), (0.75, 0.25)),
    ((1.0,), (0.3,)),
    ((0.1, 0.33, 0.9), (0.9, 0.0, 0.5)),
]


def losses(size: int, kind: str) -> Any:
    rng = np.random.default_rng(size)
    values = rng.exponential(size=size).astype(np.float32)
    if kind == "some unknown":
        values[rng.random(size) < 0.2] = np.nan
        values[:2] = np.inf, -np.inf
    return np.full_like(values, np.nan) if kind == "none known" else values


@pytest.mark.parametrize("kind", ["known", "some unknown", "none known"])
@pytest.mark.parametrize(("quantiles", "ratios"), RULES)
@pytest.mark.parametrize("exact", [False, True])
def test_an_epoch_is_the_hosts(kind: str, quantiles: Any, ratios: Any, exact: bool, device: torch.device) -> None:
    for size in (2, 997, 20_000):
        scores, seed = losses(size, kind), (3, size, 0)
        cuts = rule.thresholds(scores, quantiles)
        expected = rule.decide(scores, cuts, ratios, exact=exact, seed=seed)
        key = int(derive_key(seed))
        epoch = decide(torch.from_numpy(scores).to(device), ratios, quantiles=quantiles, exact=exact, key=key)
        codes, weights = epoch.codes.cpu().numpy(), epoch.weights.cpu().numpy()
        if len(cuts):
            np.testing.assert_array_equal(thresholds(torch.from_numpy(scores), quantiles).numpy(), cuts)
        if exact:
            np.testing.assert_array_equal(np.bincount(codes, minlength=6), np.bincount(expected.codes, minlength=6))
        else:
            np.testing.assert_array_equal(codes, expected.codes)
        np.testing.assert_array_equal(weights[np.unique(codes)], expected.weights[np.unique(codes)])


def test_exact_drops_every_example_of_a_band_as_often() -> None:
    scores = torch.cat([torch.zeros(40), torch.full((10,), 9.0)])
    counts = np.zeros(50)
    for key in range(800):
        counts += decide(scores, (0.25,), exact=True, key=key * 977 + 5).codes.numpy() == 0
    assert (counts[40:] == 0).all()
    # Of a fixed number drawn the counts vary less than independent ones: by (1 - 1/4) · 40 / 39 here.
    statistic = ((counts[:40] - 200) ** 2 / 200).sum() / (0.75 * 40 / 39)
    assert ALPHA < stats.chi2.sf(statistic, 39) < 1 - ALPHA


def test_the_order_visits_what_is_kept_in_any_order(device: torch.device) -> None:
    codes = torch.tensor([1, 0, 1, 2, 0, 1], dtype=torch.uint8, device=device)
    seen = []
    for key in range(480):
        order, kept = shuffled_kept(codes, key)
        assert sorted(order.tolist()) == list(range(6))
        assert int(kept) == 4
        seen.append(tuple(order[:4].tolist()))
    assert {frozenset(one) for one in seen} == {frozenset({0, 2, 3, 5})}
    counts = np.unique(np.array([hash(one) for one in seen]), return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > ALPHA


def test_nothing_waits_for_the_device(
    device: torch.device, no_waits: Callable[[], AbstractContextManager[None]]
) -> None:
    scores = torch.rand(5_000, device=device)
    for quantiles, ratios in RULES:
        for exact in (False, True):
            with no_waits():
                epoch = decide(scores, ratios, quantiles=quantiles, exact=exact, key=1)
                order, kept = shuffled_kept(epoch.codes, 2)
            assert order.device.type == kept.device.type == device.type
