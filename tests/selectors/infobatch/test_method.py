"""InfoBatch against the paper: a plain reference, and unbiasedness by enumeration and by simulation."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import InfoBatch
from curation.selectors.infobatch import rule


def trained(losses: np.ndarray, **options: object) -> InfoBatch:
    """An InfoBatch that has seen ``losses``, one for each example, in epoch 0."""
    info = InfoBatch(**{"size": len(losses), "epochs": 100, **options})
    info.epoch(0)
    info.update(np.arange(len(losses)), losses)
    return info


class TestAgainstThePaper:
    def test_the_first_epoch_prunes_nothing(self) -> None:
        chosen = InfoBatch(size=1000, epochs=10).epoch(0)
        assert sorted(chosen.indices) == list(range(1000))
        assert (chosen.weights == 1).all()

    def test_what_is_kept_follows_the_rule(self) -> None:
        """The plain reference: below the mean, kept ones weigh 1/(1-r); all others are kept at weight 1."""
        losses = np.random.default_rng(0).exponential(size=5000).astype(np.float32)
        chosen = trained(losses, prune_ratio=0.3).epoch(1)
        low = losses < losses.astype(np.float64).mean()
        expected = dict.fromkeys(np.flatnonzero(~low).tolist(), 1.0)
        kept = dict(zip(chosen.indices.tolist(), chosen.weights.tolist(), strict=True))
        assert expected.items() <= kept.items()
        of_low = {i: w for i, w in kept.items() if i not in expected}
        assert low[list(of_low)].all()
        assert set(of_low.values()) == {float(np.float32(1 / 0.7))}
        n = int(low.sum())
        assert abs(len(of_low) - 0.7 * n) < 5 * math.sqrt(n * 0.21)

    @pytest.mark.parametrize("form", ["coins", "exact"])
    @pytest.mark.parametrize("ratio", [0.5, 0.3])
    def test_unbiased_over_every_outcome(self, form: str, ratio: float) -> None:
        """E[Σ w·x] = Σ x, by the exact probability of each subset that some seed produced."""
        losses = np.array([0.1, 0.2, 0.3, 0.35, 9, 8], np.float32)
        low = [0, 1, 2, 3]
        x = np.array([3.0, -5, 7, 11, 2, 1])
        sums: dict[tuple[int, ...], float] = {}
        for seed in range(600):
            chosen = trained(losses, prune_ratio=ratio, form=form, seed=seed).epoch(1)
            assert {4, 5} <= set(chosen.indices.tolist())
            subset = tuple(sorted(set(chosen.indices.tolist()) - {4, 5}))
            sums[subset] = float(chosen.weights.astype(np.float64) @ x[chosen.indices])
        if form == "coins":
            chance = {s: (1 - ratio) ** len(s) * ratio ** (4 - len(s)) for s in _subsets(low)}
            assert len(sums) > 8
        else:
            count = 4 - math.floor(ratio * 4)
            chance = {s: 1 / math.comb(4, count) for s in _subsets(low) if len(s) == count}
            assert set(sums) == set(chance)
        unseen = {s: x[4:].sum() + x[list(s)].sum() / (1 - ratio) for s in chance if s not in sums}
        mean = sum(p * {**unseen, **sums}[s] for s, p in chance.items())
        assert mean == pytest.approx(x.sum(), rel=1e-6)

    @pytest.mark.parametrize("form", ["coins", "exact"])
    def test_every_subset_comes_as_often_as_it_should(self, form: str) -> None:
        """Pearson's chi-square over the subsets of four low examples; the error rate is 1 in 10,000."""
        from scipy.stats import chi2

        losses, draws = np.array([1, 1, 1, 1, 90], np.float32), 2000
        info = trained(losses, form=form, epochs=10**6)
        seen: dict[tuple[int, ...], int] = {}
        for epoch in range(1, draws + 1):
            info.begin(epoch)
            subset = tuple(np.flatnonzero(info.mask(epoch)[:4]).tolist())
            seen[subset] = seen.get(subset, 0) + 1
        possible = [s for s in _subsets(range(4)) if form == "coins" or len(s) == 2]
        assert set(seen) <= set(possible)
        expected = draws / len(possible)
        statistic = sum((seen.get(s, 0) - expected) ** 2 / expected for s in possible)
        assert statistic < chi2.ppf(1 - 1e-4, len(possible) - 1)

    @pytest.mark.parametrize("form", ["coins", "exact"])
    def test_unbiased_on_average_at_size(self, form: str) -> None:
        """Mean over 300 epochs within 5 standard errors."""
        rng = np.random.default_rng(1)
        losses, x = rng.exponential(size=2000).astype(np.float32), rng.normal(size=2000)
        info = trained(losses, form=form, prune_ratio=0.37, epochs=10**6)
        sums = []
        for epoch in range(1, 301):
            chosen = info.epoch(epoch)
            sums.append(chosen.weights.astype(np.float64) @ x[chosen.indices])
        assert abs(np.mean(sums) - x.sum()) < 5 * np.std(sums) / math.sqrt(300)

    def test_an_exact_draw_leaves_at_least_one(self) -> None:
        chosen = trained(np.array([1, 9], np.float32), form="exact", prune_ratio=0.9).epoch(1)
        assert sorted(chosen.indices) == [0, 1]
        assert (chosen.weights == 1).all()

    def test_quantile_bands_have_ratios_of_their_own(self) -> None:
        losses = np.random.default_rng(2).permutation(10_000).astype(np.float32)
        chosen = trained(losses, quantiles=(0.5, 0.8), prune_ratio=(0.75, 0.25), form="exact").epoch(1)
        kept = losses[chosen.indices]
        assert (kept < 5000).sum() == pytest.approx(1250, abs=2)
        assert ((kept >= 5000) & (kept < 8000)).sum() == pytest.approx(2250, abs=3)
        assert (kept >= 8000).sum() == pytest.approx(2000, abs=2)
        assert chosen.weights.sum() == pytest.approx(10_000, rel=1e-5)
        assert set(np.round(chosen.weights, 2).tolist()) == {4.0, np.float32(1.33).item(), 1.0}

    def test_of_equal_losses_none_is_below_a_quantile_among_them(self) -> None:
        """The paper's rule is strict, for the mean and for quantiles: equal losses are all treated alike."""
        losses = np.array([0.0] * 90 + list(range(1, 11)), np.float32)
        assert len(trained(losses, quantiles=(0.8,), prune_ratio=0.5).epoch(1)) == 100
        kept = trained(losses, quantiles=(0.95,), prune_ratio=0.5, form="exact").epoch(1)
        assert len(kept) == 53
        assert len(trained(np.ones(100, np.float32)).epoch(1)) == 100

    @given(
        losses=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=60),
        ratio=st.floats(0, 0.95),
        form=st.sampled_from(["coins", "exact"]),
        epoch=st.integers(1, 80),
    )
    @settings(deadline=None, max_examples=60)
    def test_invariants(self, losses: list[float], ratio: float, form: str, epoch: int) -> None:
        values = np.array(losses, np.float32)
        info = trained(values, prune_ratio=ratio, form=form)
        chosen = info.epoch(epoch)
        assert len(set(chosen.indices.tolist())) == len(chosen)
        high = np.flatnonzero(values >= np.mean(values, dtype=np.float64))
        assert set(high.tolist()) <= set(chosen.indices.tolist())
        if form == "exact":
            assert chosen.weights.sum() == pytest.approx(len(values), rel=1e-4)
        assert len(chosen) == info.kept(epoch)

    def test_the_order_is_uniform(self) -> None:
        """Chi-square over the 24 orders of four examples, and position means at a size of many buckets."""
        from scipy.stats import chi2

        counts: dict[tuple[int, ...], int] = {}
        for seed in range(4800):
            order = tuple(rule.shuffled_kept(np.ones(4, np.uint8), (seed,)).tolist())
            counts[order] = counts.get(order, 0) + 1
        assert len(counts) == 24
        assert sum((c - 200) ** 2 / 200 for c in counts.values()) < chi2.ppf(1 - 1e-4, 23)
        large = rule.shuffled_kept(np.ones(200_000, np.uint8), (7,))
        assert np.array_equal(np.sort(large), np.arange(200_000))
        thirds = large.reshape(20, -1).mean(axis=1)
        assert np.abs(thirds - 100_000).max() < 5 * 200_000 / math.sqrt(12 * 10_000)
        assert abs(np.corrcoef(large[:-1], large[1:])[0, 1]) < 0.02


def _subsets(items: object) -> Iterator[tuple[int, ...]]:
    items = tuple(items)
    return itertools.chain.from_iterable(itertools.combinations(items, n) for n in range(len(items) + 1))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("form", ["coins", "exact"])
def test_an_epoch_worked_out_on_a_device(device: str, form: str) -> None:
    plain, other = (InfoBatch(size=4_000, epochs=10, form=form, seed=1, device=where) for where in (None, device))  # type: ignore[arg-type]
    losses = np.random.default_rng(0).exponential(size=4_000).astype(np.float32)
    for info in (plain, other):
        info.begin(0)
        info.update(np.arange(4_000), losses)
    expected, found = plain.epoch(1), other.epoch(1)
    assert found.indices.dtype == np.int64
    assert len(found) == len(expected)
    np.testing.assert_array_equal(np.sort(found.weights), np.sort(expected.weights))
    if form == "coins":
        np.testing.assert_array_equal(np.sort(found.indices), np.sort(expected.indices))
    assert (np.diff(found.indices) < 0).any()
    np.testing.assert_array_equal(other.epoch(1).indices, found.indices)
    np.testing.assert_array_equal(np.sort(other.epoch(9).indices), np.arange(4_000))


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="device must be one that torch can use"):
        InfoBatch(size=3, epochs=1, device="abacus")
