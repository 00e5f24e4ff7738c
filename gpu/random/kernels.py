"""SplitMix64 for Triton's kernels, which the compiler puts into their callers."""

import triton
import triton.language as tl

from curation.gpu.random import GOLDEN, MIX_A, MIX_B

STEP: tl.constexpr = tl.constexpr(GOLDEN)
_MIX_A: tl.constexpr = tl.constexpr(MIX_A)
_MIX_B: tl.constexpr = tl.constexpr(MIX_B)


@triton.jit
def high_bits(x):  # type: ignore[no-untyped-def]
    """uint64: the mixer less its last step, which changes the lower 33 bits alone."""
    x = (x ^ (x >> 30)) * _MIX_A
    return (x ^ (x >> 27)) * _MIX_B


@triton.jit
def mix(x):  # type: ignore[no-untyped-def]
    """uint64: the mixer, a bijection of 64 bits."""
    x = high_bits(x)
    return x ^ (x >> 31)
