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
from curation.gpu.topk.gumbel import BELOW_ONE, HIGH, LIMIT, LOW, Array, Keying, raise_if_bad

Top = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]

BLOCK = 1 << 16
_LN2 = 0.6931471805599453


def keys(values: Array, keying: Keying, start: int) -> npt.NDArray[np.float64]:
    """float64[N]: the keys of all values.

    Args:
        values: [N], a numpy array or a tensor on the CPU.
        keying: how values become keys.
        start: the position of ``values[0]``.

    Raises:
        ValueError: a value has no key (the first is named).
    """
    n = len(values)
    out = np.empty(n, np.float64)
    scratch = np.empty(min(n, BLOCK), np.float64)
    for low in range(0, n, BLOCK):
        block, _, bad = _keys_above(values, low, min(n, low + BLOCK), start, keying, np.nan, scratch)
        raise_if_bad(values, low + bad if bad >= 0 else n, start)
        out[low : low + len(block)] = block
    return out


def best(values: Array, begin: int, end: int, k: int, start: int, keying: Keying) -> tuple[Top, int]:
    """The k best of ``values[begin:end]`` in order of position, and the first bad offset in ``values``, or N."""
    scratch = np.empty(min(BLOCK, end - begin), np.float64)
    kept: list[Top] = []
    held, floor = 0, np.nan
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        above, offsets, bad = _keys_above(values, low, high, start, keying, floor, scratch)
        if bad >= 0:
            return _cut([], k), low + bad
        if len(above):
            # The scan's arrays are views of whole blocks, which must not stay alive for a handful of survivors.
            kept.append((offsets + (start + low), above.copy()))
            held += len(above)
        if held >= 2 * k + BLOCK // 2:
            kept = [_cut(kept, k)]
            held = len(kept[0][0])
            floor = kept[0][1].min(initial=np.inf)
    return _cut(kept, k), len(values)


def _cut(kept: list[Top], k: int) -> Top:
    """The k best in the order they came, which is by position, so that of equal keys the earlier ones stay."""
    if not kept or k == 0:
        return np.empty(0, np.int64), np.empty(0)
    indices, keys = np.concatenate([part[0] for part in kept]), np.concatenate([part[1] for part in kept])
    if len(keys) <= k:
        return indices, keys
    bar = np.partition(keys, len(keys) - k)[len(keys) - k]
    chosen = keys > bar
    chosen[np.flatnonzero(keys == bar)[: k - int(np.count_nonzero(chosen))]] = True
    return indices[chosen], keys[chosen]


def _keys_above(
    values: Array,
    low: int,
    high: int,
    start: int,
    keying: Keying,
    floor: float,
    scratch: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], int]:
    """Keys above ``floor`` (NaN: all) of ``values[low:high]``, their offsets from ``low``, and the first bad
    offset or -1. ``scratch`` has room for the block."""
    block = values[low:high]
    if isinstance(block, torch.Tensor):
        block = block.detach().to(torch.float64).numpy()
    block = np.ascontiguousarray(block, np.float64)
    if not block.flags.writeable:
        # numba would compile anew for what it may only read.
        block = block.copy()
    first, second = keying.seeds or (0, 0)
    noise = keying.seeds is not None
    keys, offsets, bad = _scan(
        block,
        start + low,
        np.uint64(first),
        np.uint64(second),
        float(keying.scale),
        keying.log,
        noise,
        floor,
        scratch[: len(block)],
    )
    return keys, offsets, bad


@compiled(nogil=True, error_model="numpy")
def _scan(
    values: Any,
    first_position: int,
    first: Any,
    second: Any,
    scale: float,
    log: bool,
    noise: bool,
    floor: float,
    uniform: Any,
) -> Any:
    n = len(values)
    keys = np.empty(n, np.float64)
    offsets = np.empty(n, np.int64)
    count = 0
    if noise:
        for i in range(n):
            x = mix(np.uint64(first_position + i) * np.uint64(GOLDEN) + first)
            uniform[i] = fine_uniform(mix(x + second))
    value_bits = values.view(np.int64)
    uniform_bits = uniform.view(np.int64)
    # Rounding in the bounds below must never drop a key that is above the floor.
    safe_floor = floor - 1e-9 - 1e-12 * abs(floor)
    for i in range(n):
        v = values[i]
        if v != v or (log and v < 0.0):
            return keys[:count], offsets[:count], i
        if not noise:
            key = v
        else:
            # The bits of a positive float, read as an integer, are its log2 less 0 to 0.0861; and E ≥ u.
            bound = -_LN2 * (uniform_bits[i] * 2.0**-52 - 1023.0)
            if scale != 0.0:
                if not log:
                    bound += scale * v
                elif 2.3e-308 < v < np.inf:
                    log2 = value_bits[i] * 2.0**-52 - 1023.0
                    bound += _LN2 * scale * (log2 + 0.087 if scale > 0.0 else log2)
                elif v == 0.0 and scale > 0.0:
                    bound = -LOW * uniform[i]
                else:
                    bound = np.inf
            if bound <= safe_floor and (abs(bound) < LIMIT / 2 or (log and v == 0.0)):
                continue
            base = 0.0 if scale == 0.0 else scale * (np.log(v) if log else v)
            race = -np.log1p(-min(uniform[i], BELOW_ONE))
            if base > LIMIT:
                key = HIGH / race
            elif base < -LIMIT:
                key = -LOW * race
            else:
                key = base - np.log(race)
        if key <= floor:
            continue
        keys[count] = key
        offsets[count] = i
        count += 1
    return keys[:count], offsets[:count], -1
