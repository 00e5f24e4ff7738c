"""Rule of InfoBatch: which examples of an epoch stay, at what weight, and in which order.

A code of one byte stands for an example's fate in an epoch: dropped, kept at weight 1, or
``BAND + b``: kept although its score lies in band b, at that band's weight. Every function here is pure.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from curation.gpu.pruning import BAND, DROPPED, KEPT
from curation.gpu.pruning.cpu import (
    Codes,
    Floats,
    Positions,
    band_sizes,
    draw_by_coins,
    draw_exactly,
    finite_mean,
    shuffle_into,
)
from curation.gpu.random import derive_key

Form = Literal["coins", "exact"]

FORMS: tuple[str, ...] = get_args(Form)
"""How a band's examples are dropped: each by a coin of its own, or an exact number of them."""
MOST_BANDS = 250
_BUCKET = 1 << 15
_COINS, _ORDER = 0, 1


@dataclass(frozen=True)
class Fates:
    """An epoch's decision: ``codes`` uint8[N], and ``weights`` float32[2 + bands], the weight of each code."""

    codes: Codes
    weights: Floats


@dataclass(frozen=True, kw_only=True)
class Rule:
    """InfoBatch's parameters, as its docstring explains them, and what follows from them at an epoch's start.

    Raises:
        ValueError: a parameter is out of range, or torch knows no such device.
    """

    size: int
    epochs: int
    prune_ratio: tuple[float, ...]
    delta: float
    quantiles: tuple[float, ...] | None
    form: str
    seed: int
    device: str | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.epochs < 1:
            raise ValueError(f"size and epochs must be at least 1, not {self.size} and {self.epochs}")
        if not 0 <= self.delta <= 1:
            raise ValueError(f"delta must lie in [0, 1], not {self.delta}")
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, not {self.form!r}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")
        if self.device is not None:
            _check_device(self.device)
        ratios, quantiles = self.prune_ratio, self.quantiles
        if any(not 0 <= ratio < 1 for ratio in ratios):
            raise ValueError(f"prune_ratio must lie in [0, 1), not {ratios}: at 1 no weight makes up for the loss")
        bands = 1 if quantiles is None else len(quantiles)
        if len(ratios) != bands or bands > MOST_BANDS:
            raise ValueError(
                f"prune_ratio needs one ratio for each of {bands} bands ({MOST_BANDS} at most), not {len(ratios)}"
            )
        if quantiles is not None and (
            any(not 0 < q <= 1 for q in quantiles) or any(a >= b for a, b in pairwise(quantiles))
        ):
            raise ValueError(f"quantiles must rise within (0, 1], not {quantiles}")

    @property
    def annealing_from(self) -> int:
        """The first epoch that runs on everything."""
        # The small addition undoes the rounding of products such as 0.29 · 100 = 28.999….
        return math.floor(self.delta * self.epochs + 1e-9)

    def prunes(self, epoch: int) -> bool:
        """Whether an epoch comes before annealing."""
        return epoch < self.annealing_from

    def decide(self, scores: Floats, epoch: int) -> Fates:
        """The fates of all examples in an epoch that starts with these scores, float32[N]."""
        if not self.prunes(epoch):
            return Fates(np.full(self.size, KEPT, np.uint8), self.no_weights())
        seed = (self.seed, epoch, _COINS)
        if self.device is not None:
            return self._decide_on(self.device, scores, seed)
        cuts = thresholds(scores, self.quantiles)
        return decide(scores, cuts, self.prune_ratio, exact=self.form == "exact", seed=seed)

    def order(self, codes: Codes, epoch: int) -> Positions:
        """The order in which an epoch visits what it keeps; see :func:`shuffled_kept`."""
        seed = (self.seed, epoch, _ORDER)
        if self.device is None:
            return shuffled_kept(codes, seed)
        import torch

        from curation.gpu.pruning import tensor as pruning

        order, kept = pruning.shuffled_kept(torch.from_numpy(codes).to(self.device), int(derive_key(seed)))
        positions: Positions = order[: int(kept)].to(_position_type(len(codes))).cpu().numpy()
        return positions

    def _decide_on(self, device: str, scores: Floats, seed: tuple[int, ...]) -> Fates:
        import torch

        from curation.gpu.pruning import tensor as pruning

        epoch = pruning.decide(
            torch.from_numpy(scores).to(device),
            self.prune_ratio,
            quantiles=self.quantiles,
            exact=self.form == "exact",
            key=int(derive_key(seed)),
        )
        return Fates(epoch.codes.cpu().numpy(), epoch.weights.cpu().numpy())

    def expected_share(self, scores: Floats) -> float:
        """The share of the examples that an epoch before annealing keeps on average, with these scores."""
        sizes = band_sizes(scores, thresholds(scores, self.quantiles))
        return 1 - float(sizes @ np.asarray(self.prune_ratio[: len(sizes)], np.float64)) / len(scores)

    def no_weights(self) -> Floats:
        """float32[2 + bands]: weight 1 for every code."""
        return np.ones(BAND + len(self.prune_ratio), np.float32)

    def checked(self, codes: npt.NDArray[Any], weights: npt.NDArray[Any]) -> Fates:
        """Fates out of a saved state, copied.

        Args:
            codes: int[N].
            weights: [2 + bands].

        Raises:
            ValueError: there are more or fewer, or a code is of no band.
        """
        known = self.no_weights().shape
        if codes.shape != (self.size,):
            raise ValueError(f"codes has shape {codes.shape}, not ({self.size},)")
        if weights.shape != known:
            raise ValueError(f"weights has shape {weights.shape}, not {known}: one for each code")
        unknown = (codes < 0) | (codes >= known[0])
        if unknown.any():
            first = int(np.argmax(unknown))
            raise ValueError(
                f"codes gives example {first} the code {codes[first]}, but with {len(self.prune_ratio)} bands they are "
                f"0 to {known[0] - 1}: the state is damaged"
            )
        return Fates(codes.astype(np.uint8), weights.astype(np.float32))

    def identity(self) -> dict[str, Any]:
        """What a saved state must agree with: all but the epochs planned, which may change."""
        return {
            "size": self.size,
            "seed": self.seed,
            "prune_ratio": list(self.prune_ratio),
            "quantiles": None if self.quantiles is None else list(self.quantiles),
            "form": self.form,
        }


def thresholds(scores: Floats, quantiles: tuple[float, ...] | None) -> Floats:
    """float32[bands], rising: the upper ends of the bands that are pruned.

    The mean of the known scores, or their quantiles. Scores that are not finite are unknown: they take no
    part. Empty where nothing is known.
    """
    if quantiles is None:
        mean = finite_mean(scores)
        return np.empty(0, np.float32) if np.isnan(mean) else np.array([mean], np.float32)
    known = scores[np.isfinite(scores)]
    if len(known) == 0:
        return np.empty(0, np.float32)
    return np.quantile(known, quantiles).astype(np.float32)


def decide(
    scores: Floats,
    cuts: Floats,
    ratios: tuple[float, ...],
    *,
    exact: bool,
    seed: tuple[int, ...],
) -> Fates:
    """Draw the fates of all examples.

    Band b holds the examples with ``cuts[b - 1] <= score < cuts[b]``. With ``exact`` false each is dropped
    by a coin of its own with probability ``ratios[b]``, and a survivor weighs 1 / (1 - ratio). With
    ``exact`` true precisely ⌊ratio · n⌋ of its n are dropped, uniformly, and a survivor weighs n / n_kept.
    Either way E[Σ w_i x_i] = Σ x_i for any x.
    """
    weights = np.ones(BAND + len(ratios), np.float32)
    weights[DROPPED] = 0
    key = derive_key(seed)
    drop = np.asarray(ratios[: len(cuts)], np.float64)
    if not exact:
        weights[BAND:] = 1 / (1 - np.asarray(ratios))
        return Fates(draw_by_coins(scores, cuts, drop, key), weights)
    sizes = band_sizes(scores, cuts)
    dropped = np.floor(drop * sizes).astype(np.int64)
    weights[BAND : BAND + len(cuts)] = sizes / np.maximum(sizes - dropped, 1)
    return Fates(draw_exactly(scores, cuts, sizes, dropped, key), weights)


def shuffled_kept(codes: Codes, seed: tuple[int, ...]) -> Positions:
    """A uniformly random order of the positions whose code is not :data:`DROPPED`.

    int32 where positions fit, else int64. Rao and Sandelius' shuffle: each position goes to a random bucket
    that fits the processor's cache, and each bucket is shuffled, so that 10^8 positions take a second or two.
    """
    kept = int(np.count_nonzero(codes))
    order: Positions = np.empty(kept, np.int32) if len(codes) < 2**31 else np.empty(kept, np.int64)
    buckets = 1
    while kept > buckets * _BUCKET:
        buckets *= 2
    shuffle_into(codes, derive_key(seed), order, buckets)
    return order


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch can use here, or None, not {device!r}: {error}") from None


def _position_type(size: int) -> Any:
    import torch

    return torch.int32 if size < 2**31 else torch.int64
