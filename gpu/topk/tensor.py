"""The path of :mod:`curation.gpu.topk` by tensor operations alone, on any device.

O(N log N) time in sorts of a block, one block of memory. The host waits for the device once, at the end.
"""

import math

import torch

from curation.gpu.random import GOLDEN
from curation.gpu.random.tensor import fine_uniform, mix, shift, signed
from curation.gpu.topk.gumbel import BELOW_ONE, LIFT, Keying, raise_if_bad
from curation.gpu.topk.order import by_keys

BLOCK = 1 << 22


def keys(values: torch.Tensor, keying: Keying, start: int) -> torch.Tensor:
    """float64[N, 3]: the keys of all values.

    Args:
        values: [N] on any device.
        keying: how values become keys.
        start: the position of ``values[0]``.

    Raises:
        ValueError: a value has no key (the first is named).
    """
    n = len(values)
    out = torch.empty(n, 3, dtype=torch.float64, device=values.device)
    first_bad = torch.full((), n, dtype=torch.int64, device=values.device)
    for low in range(0, n, BLOCK):
        block, bad = block_keys(values, low, min(n, low + BLOCK), start, keying)
        out[low : low + len(block)] = block
        first_bad = torch.minimum(first_bad, bad)
    raise_if_bad(values, int(first_bad), start, keying.shift)
    return out


def best(values: torch.Tensor, k: int, start: int, keying: Keying) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest keys and their positions, by a sort of each block; the host reads one number, at the end.

    Args:
        values: [N] on any device.
        k: how many; all N where k is larger.
        start: the position of ``values[0]``.
        keying: how values become keys.

    Returns:
        ``(indices int64[min(k, N)], keys float64[min(k, N), 3])``, by descending key, equal keys by position.

    Raises:
        ValueError: a value has no key (the first is named).
    """
    n = len(values)
    indices = torch.empty(0, dtype=torch.int64, device=values.device)
    keys = torch.empty(0, 3, dtype=torch.float64, device=values.device)
    first_bad = torch.full((), n, dtype=torch.int64, device=values.device)
    for low in range(0, n, BLOCK):
        high = min(n, low + BLOCK)
        fresh, bad = block_keys(values, low, high, start, keying)
        first_bad = torch.minimum(first_bad, bad)
        keys, indices = (
            torch.cat([keys, fresh]),
            torch.cat([indices, torch.arange(start + low, start + high, device=values.device)]),
        )
        order = by_keys(keys, torch.arange(len(keys), device=values.device))[:k]
        keys, indices = keys[order], indices[order]
    raise_if_bad(values, int(first_bad), start, keying.shift)
    return indices, keys


def block_keys(
    values: torch.Tensor, low: int, high: int, start: int, keying: Keying
) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 keys of ``values[low:high]``, and int64[] the first bad position in ``values``, or its length."""
    offset = torch.arange(low, high, device=values.device)
    keys, bad = keys_at(values[low:high], offset + start, keying)
    return keys, torch.where(bad, offset, len(values)).min()


def keys_at(values: torch.Tensor, positions: torch.Tensor, keying: Keying) -> tuple[torch.Tensor, torch.Tensor]:
    """float64[n, 3] keys of values that stand at these int64 positions, and bool[n], where a value has none."""
    v, rest = _in_two(values.detach())
    if keying.shift:
        v, rest = _sum(v * keying.half, keying.shift * keying.half, rest * keying.half)
    bad = v.isnan() | (v < 0) if keying.log else v.isnan()
    if keying.seeds is None:
        return torch.stack([v, rest, torch.zeros_like(v)], dim=1), bad
    first, second = map(signed, keying.seeds)
    x = mix(positions * signed(GOLDEN) + first)
    gumbel = -(-torch.log1p(-fine_uniform(mix(x + second)).clamp(max=BELOW_ONE))).log()
    if keying.scale == 0.0:
        return torch.stack([gumbel, torch.zeros_like(v), gumbel], dim=1), bad
    base = v
    if keying.log:
        base = v.log()
        # What the logarithm's rounding left, to the first order, at a size that exp can hold.
        lift = torch.where(base > 600, -LIFT, torch.where(base < -600, LIFT, 0.0)).to(torch.float64)
        back, unit = (base + lift * math.log(2)).exp(), lift.exp2()
        rest = ((v * unit - back) + rest * unit) / back
    keys, rest = _sum(base * keying.factor, keying.spread * gumbel, keying.factor * rest)
    return torch.stack([keys, rest, gumbel], dim=1), bad


def _in_two(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float64[n] of values, and float64[n] what they lose by it."""
    if values.dtype not in (torch.int64, torch.uint64):
        # + 0.0 makes a negative zero positive, so that sorting by bits cannot tell them apart.
        v = values.to(torch.float64) + 0.0
        return v, torch.zeros_like(v)
    bits = values.view(torch.int64)
    high = bits >> 32 if values.dtype == torch.int64 else shift(bits, 32)
    high, low = high.to(torch.float64) * 2.0**32, (bits & 0xFFFFFFFF).to(torch.float64)
    v = high + low
    return v, low - (v - high)


def _sum(left: torch.Tensor, right: torch.Tensor | float, rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rounded sum of two, and what rounding left of it and ``rest``; 0 where the sum is infinite."""
    total = left + right
    part = total - left
    lost = (left - (total - part)) + (right - part) + rest
    return total, torch.where(total.isfinite(), lost, 0.0)
