"""An epoch of InfoBatch on any device: thresholds, coins and order as tensor operations (arXiv 2303.04947).

The coin of an example is a function of (key, position), the same integers as on the host, so an epoch drops the
same examples at the same weights wherever it is decided. Two things differ from the host: ``exact`` drops another
subset of the same size, as uniform as the host's, and the order is another random order: the host's algorithms
for these go one example at a time.

O(N) time, and a sort of N 64-bit keys for the order. Memory some 60 bytes for each of N examples. No function
waits for the device; sizes that depend on the data stay in tensors.
"""

from dataclasses import dataclass

import torch

from curation.gpu.pruning import BAND, DROPPED, KEPT
from curation.gpu.random.tensor import numbers, shift, uniform


@dataclass(frozen=True, eq=False)
class Epoch:
    """An epoch's decision.

    Args:
        codes: uint8[N]: 0 dropped, 1 kept at weight 1, 2 + b kept at band b's weight.
        weights: float32[2 + bands], the weight of each code.
    """

    codes: torch.Tensor
    weights: torch.Tensor


def decide(
    scores: torch.Tensor,
    ratios: tuple[float, ...],
    *,
    quantiles: tuple[float, ...] | None = None,
    exact: bool = False,
    key: int,
) -> Epoch:
    """Draw which examples stay.

    Args:
        scores: float32[N], the last loss of each; NaN and infinities are unknown, and such examples stay.
        ratios: the share to drop of each band, in [0, 1).
        quantiles: where the bands end, rising in (0, 1]; None is one band, below the mean.
        exact: drop ⌊ratio · n⌋ of a band's n, rather than each by a coin of its own.
        key: 64 bits.

    Returns:
        Epoch: on the device of ``scores``.
    """
    cuts = thresholds(scores, quantiles)
    bands = len(cuts)
    known = torch.isfinite(scores)
    # Where nothing is known the cuts are NaN, and everything stays.
    band = torch.bucketize(scores, cuts, right=True, out_int32=True)
    band = torch.where(known & ~cuts.isnan().any(), band, bands).long()
    codes = torch.where(band == bands, KEPT, BAND + band).to(torch.uint8)
    weights = torch.ones(BAND + bands, dtype=torch.float64, device=scores.device)
    weights[DROPPED] = 0
    bits = numbers(key, len(scores), scores.device)
    drop = _column((*ratios, 0.0), scores.device)
    if not exact:
        weights[BAND:] = 1 / (1 - drop[:-1])
        codes[uniform(bits) < drop[band]] = DROPPED
        return Epoch(codes, weights.float())
    sizes = torch.zeros(bands + 1, dtype=torch.int64, device=scores.device).index_add_(0, band, torch.ones_like(band))
    dropped = (drop * sizes).floor().long()
    weights[BAND:] = sizes[:-1] / (sizes - dropped)[:-1].clamp(min=1)
    weights[BAND:] = torch.where(sizes[:-1] > 0, weights[BAND:], 1.0)
    # Random within a band: the first of each band are the ones to drop.
    order = bits.argsort(stable=True)
    order = order[band[order].argsort(stable=True)]
    first = sizes.cumsum(0) - sizes
    rank = torch.arange(len(scores), device=scores.device) - first[band[order]]
    codes[order] = torch.where(rank < dropped[band[order]], DROPPED, codes[order])
    return Epoch(codes, weights.float())


def thresholds(scores: torch.Tensor, quantiles: tuple[float, ...] | None) -> torch.Tensor:
    """float32[bands], rising: the mean of the known scores, or their quantiles; NaN where nothing is known."""
    known = torch.isfinite(scores)
    count = known.sum()
    if quantiles is None:
        total = torch.where(known, scores, 0.0).sum(dtype=torch.float64)
        return (total / count).float()[None]
    ordered = torch.where(known, scores, torch.inf).sort().values
    # As numpy's "linear" method: from below in the lower half of a gap, from above in the upper.
    rank = _column(quantiles, scores.device) * (count - 1).clamp(min=0)
    low = rank.floor().long()
    part = rank - low
    below, above = ordered[low], ordered[torch.minimum(low + 1, (count - 1).clamp(min=0))]
    gap = (above - below).double()
    cuts = torch.where(part < 0.5, below + gap * part, above - gap * (1 - part)).float()
    return torch.where(count > 0, cuts, torch.nan)


def shuffled_kept(codes: torch.Tensor, key: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A uniformly random order of what is kept.

    Returns:
        int64[N], the kept positions first and then the dropped ones; and int64[], how many are kept.
    """
    kept = codes != DROPPED
    # Half the range: an equal pair among 10^9 draws of 63 bits has a chance of some 5 %, and goes by position.
    bits = shift(numbers(key, len(codes), codes.device), 1)
    bits.masked_fill_(~kept, 2**63 - 1)
    return bits.argsort(stable=True), kept.sum()


def _column(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # Filled entry by entry: a copy from the host would wait for the device.
    out = torch.empty(len(values), dtype=torch.float64, device=device)
    for i, value in enumerate(values):
        out[i].fill_(value)
    return out
