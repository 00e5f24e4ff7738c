"""The host's path of :mod:`curation.gpu.topk`: a compiled loop over blocks that keeps the keys above a bar.

O(N) time, one block of memory and O(k) candidates. Where a bar is known, a bound from the floats' bits spares
nearly all logarithms.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.compiled import compiled
from curation.gpu.random import GOLDEN
from curation.gpu.random.cpu import fine_uniform, mix
from curation.gpu.topk.gumbel import BELOW_ONE, LIFT, Array, Keying, raise_if_bad
from curation.gpu.topk.order import descending_order

Top = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]

BLOCK = 1 << 16
_LN2 = 0.6931471805599453
_NO_FLOOR = np.full(3, np.nan)
_NOTHING = np.empty(0)


def keys(values: Array, keying: Keying, start: int) -> npt.NDArray[np.float64]:
    """float64[N, 3]: the keys of all values.

    Args:
        values: [N], a numpy array or a tensor on the CPU.
        keying: how values become keys.
        start: the position of ``values[0]``.

    Raises:
        ValueError: a value has no key (the first is named).
    """
    n = len(values)
    out = np.empty((n, 3), np.float64)
    scratch = np.empty(min(n, BLOCK), np.float64)
    for low in range(0, n, BLOCK):
        block, _, bad = _keys_above(values, low, min(n, low + BLOCK), start, keying, _NO_FLOOR, scratch)
        raise_if_bad(values, low + bad if bad >= 0 else n, start, keying.shift)
        out[low : low + len(block)] = block
    return out


def best(values: Array, begin: int, end: int, k: int, start: int, keying: Keying) -> tuple[Top, int]:
    """The k best of ``values[begin:end]`` in order of position, and the first bad offset in ``values``, or N."""
    scratch = np.empty(min(BLOCK, end - begin), np.float64)
    kept: list[Top] = []
    held, floor = 0, _NO_FLOOR
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        above, offsets, bad = _keys_above(values, low, high, start, keying, floor, scratch)
        if bad >= 0:
            return _cut([], k)[0], low + bad
        if len(above):
            # The scan's arrays are views of whole blocks, which must not stay alive for a handful of survivors.
            kept.append((offsets + (start + low), above.copy()))
            held += len(above)
        if held >= 2 * k + BLOCK // 2:
            top, floor = _cut(kept, k)
            kept, held = [top], len(top[0])
    return _cut(kept, k)[0], len(values)


def _cut(kept: list[Top], k: int) -> tuple[Top, npt.NDArray[np.float64]]:
    """The k best in the order they came, which is by position, and the lowest of their keys."""
    if not kept or k == 0:
        return (np.empty(0, np.int64), np.empty((0, 3))), np.full(3, np.inf)
    indices, keys = np.concatenate([part[0] for part in kept]), np.concatenate([part[1] for part in kept])
    kept.clear()
    if len(keys) <= k:
        return (indices, keys), _NO_FLOOR
    bar = np.partition(keys[:, 0], len(keys) - k)[len(keys) - k]
    chosen = keys[:, 0] > bar
    tied = np.flatnonzero(keys[:, 0] == bar)
    tied = tied[descending_order(keys[tied], tied)[: k - int(np.count_nonzero(chosen))]]
    chosen[tied] = True
    return (indices[chosen], keys[chosen]), keys[tied[-1]]


def _keys_above(
    values: Array,
    low: int,
    high: int,
    start: int,
    keying: Keying,
    floor: npt.NDArray[np.float64],
    scratch: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], int]:
    """Keys above ``floor`` (NaN: all) of ``values[low:high]``, their offsets from ``low``, and the first bad
    offset or -1. ``scratch`` has room for the block."""
    block, rest = _in_two(values[low:high], keying)
    first, second = keying.seeds or (0, 0)
    keys, offsets, bad = _scan(
        block,
        _NOTHING if rest is None else rest,
        start + low,
        np.uint64(first),
        np.uint64(second),
        keying.factor,
        keying.spread,
        keying.log,
        keying.seeds is not None,
        floor,
        scratch[: len(block)],
    )
    return keys, offsets, bad


def _in_two(values: Array, keying: Keying) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
    """float64[n] of values, shifted, and what they lose by it; None where that is nothing."""
    if isinstance(values, torch.Tensor):
        # numpy has no bfloat16.
        values = (values.detach().double() if values.is_floating_point() else values.detach()).numpy()
    rest: npt.NDArray[np.float64] | None = None
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        high, low = (values >> 32).astype(np.float64) * 2.0**32, (values & 0xFFFFFFFF).astype(np.float64)
        block = high + low
        rest = low - (block - high)
    else:
        block = np.ascontiguousarray(values, np.float64)
    if keying.shift:
        block, added = block * keying.half, keying.shift * keying.half
        with np.errstate(invalid="ignore"):
            total = block + added
            part = total - block
            lost = (block - (total - part)) + (added - part)
        lost[~np.isfinite(total)] = 0
        block, rest = total, lost if rest is None else lost + rest * keying.half
    # numba would compile anew for what it may only read.
    return block if block.flags.writeable else block.copy(), rest


@compiled(nogil=True, error_model="numpy")
def _scan(
    values: Any,
    rests: Any,
    first_position: int,
    first: Any,
    second: Any,
    factor: float,
    spread: float,
    log: bool,
    noise: bool,
    floor: Any,
    uniform: Any,
) -> Any:
    n = len(values)
    keys = np.empty((n, 3), np.float64)
    offsets = np.empty(n, np.int64)
    count = 0
    if noise:
        for i in range(n):
            x = mix(np.uint64(first_position + i) * np.uint64(GOLDEN) + first)
            uniform[i] = fine_uniform(mix(x + second))
    value_bits = values.view(np.int64)
    uniform_bits = uniform.view(np.int64)
    bar = floor[0]
    infinite = np.isinf(bar)
    # Rounding in the bounds below must never drop a key that is above the floor.
    safe_bar = bar if infinite else bar - 1e-9 * spread - 1e-12 * abs(bar)
    for i in range(n):
        v = values[i]
        if v != v or (log and v < 0.0):
            return keys[:count], offsets[:count], i
        rest = rests[i] if len(rests) else 0.0
        key, gumbel = v, 0.0
        if noise:
            # The bits of a positive float, read as an integer, are its log2 less 0 to 0.0861; and E ≥ u.
            most = -_LN2 * (uniform_bits[i] * 2.0**-52 - 1023.0)
            bound = spread * most
            if factor != 0.0:
                if not log:
                    bound += factor * v
                elif 2.3e-308 < v < np.inf:
                    log2 = value_bits[i] * 2.0**-52 - 1023.0
                    bound += _LN2 * factor * (log2 + 0.087 if factor > 0.0 else log2)
                elif v == 0.0 and factor > 0.0:
                    bound = -np.inf
                else:
                    bound = np.inf
            if bound < safe_bar or (bound == bar and infinite and most < floor[2] - 1e-9):
                continue
            race = -np.log1p(-min(uniform[i], BELOW_ONE))
            gumbel = -np.log(race)
            base = v
            if log:
                base = np.log(v)
                if 0.0 < v < np.inf:
                    # What the logarithm's rounding left, to the first order, at a size that exp can hold.
                    lift = -LIFT if base > 600.0 else LIFT if base < -600.0 else 0.0
                    back, unit = np.exp(base + lift * _LN2), 2.0**lift
                    rest = ((v * unit - back) + rest * unit) / back
            base *= factor
            step = spread * gumbel
            key = base + step
            if factor == 0.0:
                key, rest = gumbel, 0.0
            elif np.isinf(base):
                rest = 0.0
            else:
                part = key - base
                rest = (base - (key - part)) + (step - part) + factor * rest
        if key < bar or (key == bar and (rest < floor[1] or (rest == floor[1] and gumbel <= floor[2]))):
            continue
        keys[count, 0] = key
        keys[count, 1] = rest
        keys[count, 2] = gumbel
        offsets[count] = i
        count += 1
    return keys[:count], offsets[:count], -1
