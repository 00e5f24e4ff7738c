"""Spikes: which steps stand out of a loss curve."""

import numpy as np

from curation.service.manager.spikes import FEWEST, NEAR, WINDOW, MeanLosses, outliers, robust_scores


def curve(means: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> MeanLosses:
    losses = MeanLosses()
    for step, mean in enumerate(means):
        for _rank in range(2):
            losses.add(step, np.array([mean - 0.1, mean + 0.1], np.float32))
    return losses


def test_a_falling_noisy_curve_has_no_spike_and_a_planted_one_is_found() -> None:
    rng = np.random.default_rng(0)
    means = 3 * np.exp(-np.arange(2000) / 300) + 1 + rng.normal(0, 0.05, 2000)
    assert outliers(curve(means), 6) == []
    means[[700, 1500]] += [1.0, 3.0]
    found = outliers(curve(means), 6)
    assert [outlier.step for outlier in found] == [1500, 700]
    assert found[0].z is not None
    assert found[0].mean is not None
    assert abs(found[0].mean - means[1500]) < 1e-5
    assert found[0].losses == 4


def test_a_spike_of_a_short_steep_curve_is_found() -> None:
    rng = np.random.default_rng(0)
    means = np.exp(-np.arange(60) / 30) + 0.3 + rng.normal(0, 0.02, 60)
    means[41] += 0.4
    assert [outlier.step for outlier in outliers(curve(means), 6)] == [41]


def test_scores_are_those_of_numpy_over_the_steps_before() -> None:
    means = np.random.default_rng(1).gamma(2, 1, 300)
    medians, scores = robust_scores(means)
    wanted = [np.median(means[max(0, step - NEAR) : step]) if step >= FEWEST else np.nan for step in range(300)]
    np.testing.assert_array_equal(medians, wanted)
    excess = means - wanted
    trend = [np.median(excess[max(FEWEST, at - NEAR) : at]) if at >= 2 * FEWEST else np.nan for at in range(300)]
    excess -= trend
    assert np.isnan(scores[: 3 * FEWEST]).all()
    for step in (3 * FEWEST, 63, 100, 299):
        deviation = 1.4826 * np.nanmedian(np.abs(excess[max(0, step - WINDOW) : step]))
        assert np.isclose(scores[step], excess[step] / deviation)


def test_losses_that_are_not_finite_come_first_and_a_flat_curve_has_none() -> None:
    losses = curve(np.ones(40))
    losses.add(40, np.array([np.nan, np.inf], np.float32))
    losses.add(41, np.array([np.nan, 1.0], np.float32))
    losses.add(42, np.array([np.nan, 1.0, 1.0], np.float32))
    losses.add(43, np.full(2, 9, np.float32))
    found = outliers(losses, 6)
    told = [(outlier.step, outlier.z is None, outlier.unknown, outlier.steps) for outlier in found]
    assert told == [(40, True, 2, 2), (43, False, 0, 1)]
    assert found[0].mean is None
