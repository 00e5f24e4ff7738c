"""SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators"): its constants, and its keys.

The numbers are functions of (key, counter), the same integers everywhere: :mod:`curation.gpu.random.cpu` for compiled
loops, :mod:`curation.gpu.random.tensor` for torch on any device, :mod:`curation.gpu.random.kernels` for Triton.
This face needs numpy alone.
"""

from collections.abc import Sequence

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
"""What the state grows by from one number to the next."""
MIX_A, MIX_B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The mixer's two factors (Stafford's variant 13)."""


def derive_keys(seed: int | Sequence[int], count: int) -> tuple[int, ...]:
    """``count`` integers below 2^64; different seeds of one length give unrelated ones.

    Raises:
        ValueError: a number of the seed is negative.
    """
    return tuple(np.random.SeedSequence(seed).generate_state(count, np.uint64).tolist())


def derive_key(seed: int | Sequence[int]) -> np.uint64:
    """The first of :func:`derive_keys`, as compiled loops take it."""
    return np.uint64(derive_keys(seed, 1)[0])
