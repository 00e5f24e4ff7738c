"""The compiled loop of the draw on the host: keys above a bar, nearly all of them without a logarithm."""

from typing import Any

import numba
import numpy as np

from curation.gpu.topk.gumbel import BELOW_ONE, GOLDEN, HIGH, LIMIT, LOW, MIX_A, MIX_B

_LN2 = 0.6931471805599453


def _mix_python(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_A)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_B)
    return x ^ (x >> np.uint64(31))


_mix = numba.njit(nogil=True, inline="always")(_mix_python)


def _scan_python(
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
            x = _mix(np.uint64(first_position + i) * np.uint64(GOLDEN) + first)
            uniform[i] = (np.float64(np.int64(_mix(x + second) >> np.uint64(1))) + 0.5) * 2.0**-63
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


try:
    scan = numba.njit(nogil=True, cache=True, error_model="numpy")(_scan_python)
except RuntimeError:
    # numba finds no folder to write its cache to (a read-only container): compile anew in each process.
    scan = numba.njit(nogil=True, error_model="numpy")(_scan_python)
