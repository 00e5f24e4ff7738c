"""Spikes: which steps stand out of a loss curve."""

import numpy as np

from curation.service.manager.spikes import FEWEST, WINDOW, MeanLosses, outliers, robust_scores


def curve(means: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> MeanLosses:
    losses = MeanLosses()
    for step, mean in enumerate(means):
        for rank in range(2):
            losses.add(step, np.array([mean - 0.1, mean + 0.1 + rank * 0], np.float32))
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


def test_scores_are_those_of_numpy_over_the_steps_before() -> None:
    means = np.random.default_rng(1).gamma(2, 1, 300)
    medians, scores = robust_scores(means)
    assert np.isnan(scores[:FEWEST]).all()
    for step in (FEWEST, 63, 64, 65, 299):
        before = means[max(0, step - WINDOW) : step]
        median = np.median(before)
        deviation = 1.4826 * np.median(np.abs(before - median))
        assert medians[step] == median
        assert np.isclose(scores[step], (means[step] - median) / deviation)


def test_losses_that_are_not_finite_come_first_and_a_flat_curve_has_none() -> None:
    losses = curve(np.ones(40))
    losses.add(40, np.array([np.nan, np.inf], np.float32))
    losses.add(41, np.array([np.nan, 1.0, 1.0], np.float32))
    losses.add(42, np.full(2, 9, np.float32))
    found = outliers(losses, 6)
    assert [(outlier.step, outlier.z is None, outlier.unknown) for outlier in found] == [(40, True, 2), (42, False, 0)]
    assert found[0].mean is None
