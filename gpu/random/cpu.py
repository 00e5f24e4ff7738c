"""SplitMix64 for compiled loops; LLVM puts every function into its caller."""

from typing import Any

import numba
import numpy as np

from curation.gpu.random import GOLDEN, MIX_A, MIX_B


@numba.njit(nogil=True, inline="always")
def mix(x: Any) -> Any:
    """uint64: the mixer, a bijection of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_A)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_B)
    return x ^ (x >> np.uint64(31))


@numba.njit(nogil=True, inline="always")
def number(key: Any, counter: Any) -> Any:
    """uint64: number ``counter``, from 0, of the stream that starts at ``key``."""
    return mix(key + (np.uint64(counter) + np.uint64(1)) * np.uint64(GOLDEN))


@numba.njit(nogil=True, inline="always")
def uniform(bits: Any) -> Any:
    """float64 in [0, 1), of 53 bits."""
    return np.float64(bits >> np.uint64(11)) * 2.0**-53


@numba.njit(nogil=True, inline="always")
def fine_uniform(bits: Any) -> Any:
    """float64 in (0, 1], of 63 bits: fine near 0, where logarithms ask for it."""
    return (np.float64(np.int64(bits >> np.uint64(1))) + 0.5) * 2.0**-63
