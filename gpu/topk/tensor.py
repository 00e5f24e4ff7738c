"""The path of :mod:`curation.gpu.topk` by tensor operations alone, on any device.

O(N log N) time in sorts of a block, one block of memory. The host waits for the device once, at the end.
"""

import torch

from curation.gpu.random import GOLDEN
from curation.gpu.random.tensor import fine_uniform, mix, signed
from curation.gpu.topk.gumbel import BELOW_ONE, HIGH, LIMIT, LOW, Keying, raise_if_bad

BLOCK = 1 << 22


def keys(values: torch.Tensor, keying: Keying, start: int) -> torch.Tensor:
    """float64[N]: the keys of all values.

    Args:
        values: [N] on any device.
        keying: how values become keys.
        start: the position of ``values[0]``.

    Raises:
        ValueError: a value has no key (the first is named).
    """
    n = len(values)
    out = torch.empty(n, dtype=torch.float64, device=values.device)
    first_bad = torch.full((), n, dtype=torch.int64, device=values.device)
    for low in range(0, n, BLOCK):
        block, bad = block_keys(values, low, min(n, low + BLOCK), start, keying)
        out[low : low + len(block)] = block
        first_bad = torch.minimum(first_bad, bad)
    raise_if_bad(values, int(first_bad), start)
    return out


def best(values: torch.Tensor, k: int, start: int, keying: Keying) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest keys and their positions, by a sort of each block; the host reads one number, at the end.

    Args:
        values: [N] on any device.
        k: how many; all N where k is larger.
        start: the position of ``values[0]``.
        keying: how values become keys.

    Returns:
        ``(indices int64[min(k, N)], keys float64[min(k, N)])``, by descending key, equal keys by position.

    Raises:
        ValueError: a value has no key (the first is named).
    """
    n = len(values)
    indices = torch.empty(0, dtype=torch.int64, device=values.device)
    keys = torch.empty(0, dtype=torch.float64, device=values.device)
    first_bad = torch.full((), n, dtype=torch.int64, device=values.device)
    for low in range(0, n, BLOCK):
        high = min(n, low + BLOCK)
        fresh, bad = block_keys(values, low, high, start, keying)
        first_bad = torch.minimum(first_bad, bad)
        positions = torch.arange(start + low, start + high, device=values.device)
        keys, order = torch.cat([keys, fresh]).sort(descending=True, stable=True)
        keys, indices = keys[:k], torch.cat([indices, positions])[order[:k]]
    raise_if_bad(values, int(first_bad), start)
    return indices, keys


def block_keys(
    values: torch.Tensor, low: int, high: int, start: int, keying: Keying
) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 keys of ``values[low:high]``, and int64[] the first bad position in ``values``, or its length."""
    offset = torch.arange(low, high, device=values.device)
    keys, bad = keys_at(values[low:high], offset + start, keying)
    return keys, torch.where(bad, offset, len(values)).min()


def keys_at(values: torch.Tensor, positions: torch.Tensor, keying: Keying) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 keys of values that stand at these int64 positions, and bool, where a value has none."""
    # + 0.0 makes a negative zero positive, so that sorting by bits cannot tell them apart.
    v = values.detach().to(torch.float64) + 0.0
    bad = v.isnan() | (v < 0) if keying.log else v.isnan()
    if keying.seeds is None:
        return v, bad
    first, second = map(signed, keying.seeds)
    x = mix(positions * signed(GOLDEN) + first)
    race = -torch.log1p(-fine_uniform(mix(x + second)).clamp(max=BELOW_ONE))
    if keying.scale == 0.0:
        return -race.log(), bad
    base = keying.scale * (v.log() if keying.log else v)
    keys = torch.where(base > LIMIT, HIGH / race, base - race.log())
    return torch.where(base < -LIMIT, -LOW * race, keys), bad
