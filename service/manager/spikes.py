"""Spikes of a loss curve: steps whose mean stands out from those before, by a robust score.

A step's excess is its distance from the median of the :data:`NEAR` steps before, less the same of those steps, so that
a falling curve makes none. Its score is the excess in units of the median absolute excess of the :data:`WINDOW` steps
before, scaled to a normal distribution's standard deviation, which an earlier spike hardly moves.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curation.service.session.protocols import Losses

Counts = npt.NDArray[np.int64]

NEAR = 16
WINDOW = 64
FEWEST = 8
_CHUNK = 8192
_NORMAL = 1.4826


class Outlier(NamedTuple):
    """A step that stands out. ``mean`` is of the finite losses. ``z`` None: half of its losses or more are not finite,
    and so for ``steps`` steps that were reported from there on."""

    step: int
    mean: float | None
    median: float | None
    z: float | None
    losses: int
    unknown: int
    steps: int = 1

    @property
    def order(self) -> tuple[float, int]:
        """The worst first: where losses are not finite, then by score."""
        return (-np.inf if self.z is None else -self.z), self.step


class MeanLosses:
    """Means by step, of reports that come by step; 32 bytes a step."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._sums: list[float] = []
        self._counts: list[int] = []
        self._unknown: list[int] = []

    @property
    def last(self) -> int | None:
        """The last step so far."""
        return self._steps[-1] if self._steps else None

    def add(self, step: int, losses: Losses) -> None:
        """Take in one rank's losses of a step."""
        finite = losses[np.isfinite(losses)]
        if self.last != step:
            self._steps.append(step)
            for column in (self._sums, self._counts, self._unknown):
                column.append(0)
        self._sums[-1] += float(finite.sum(dtype=np.float64))
        self._counts[-1] += len(finite)
        self._unknown[-1] += len(losses) - len(finite)

    def arrays(self) -> tuple[Counts, npt.NDArray[np.float64], Counts, Counts]:
        """int64[n] steps, float64[n] means (NaN: nothing is finite), int64[n] losses, int64[n] of them not finite."""
        counts, unknown = np.array(self._counts, np.int64), np.array(self._unknown, np.int64)
        means = np.full(len(counts), np.nan)
        np.divide(np.array(self._sums, np.float64), counts, out=means, where=counts > 0)
        return np.array(self._steps, np.int64), means, counts + unknown, unknown


def outliers(losses: MeanLosses, threshold: float) -> list[Outlier]:
    """The steps that stand out by ``threshold`` or are not finite for the most part, the worst first."""
    steps, means, counts, unknown = losses.arrays()
    broken = (counts > 0) & (2 * unknown >= counts)
    begun = np.flatnonzero(broken & ~np.concatenate([[False], broken[:-1]]))
    ended = np.flatnonzero(broken & ~np.concatenate([broken[1:], [False]]))
    runs = dict(zip(begun.tolist(), (ended - begun + 1).tolist(), strict=True))
    sound = np.flatnonzero(~broken & np.isfinite(means))
    medians, scores = np.full(len(steps), np.nan), np.full(len(steps), np.nan)
    medians[sound], scores[sound] = robust_scores(means[sound])
    found = [
        Outlier(
            int(steps[at]),
            float(means[at]) if np.isfinite(means[at]) else None,
            float(medians[at]) if np.isfinite(medians[at]) else None,
            None if broken[at] else float(scores[at]),
            int(counts[at]),
            int(unknown[at]),
            runs.get(at, 1),
        )
        for at in sorted({*runs, *np.flatnonzero(scores >= threshold).tolist()})
    ]
    return sorted(found, key=lambda outlier: outlier.order)


def robust_scores(
    means: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """float64[n] medians of the steps before each, and float64[n] scores; NaN where fewer than :data:`FEWEST` are."""
    medians = _medians_before(means, NEAR)
    excess = means - medians
    excess -= _medians_before(excess, NEAR)
    deviation = _NORMAL * _medians_before(np.abs(excess), WINDOW)
    # A loss that hardly moves has no deviation to speak of: a hundredth of it is no spike.
    least = np.maximum(0.01 * np.abs(medians), np.finfo(np.float32).tiny)
    return medians, excess / np.maximum(deviation, least)


def _medians_before(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """float64[n]: of the numbers among the ``window`` values before each; NaN where they are fewer than FEWEST."""
    medians = np.full(len(values), np.nan)
    padded = np.concatenate([np.full(window, np.nan), values])
    for start in range(0, len(values), _CHUNK):
        stop = min(start + _CHUNK, len(values))
        before = np.lib.stride_tricks.sliding_window_view(padded[start : stop - 1 + window], window)
        enough = np.count_nonzero(~np.isnan(before), axis=1) >= FEWEST
        medians[start:stop][enough] = np.nanmedian(before[enough], axis=1)
    return medians
