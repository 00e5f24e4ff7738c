"""Keys of a Gumbel top-k draw: ``scale · v + G`` or ``scale · log v + G``, G ~ Gumbel(0, 1).

The noise is a pure function of ``(seed, position)``: a 64-bit counter hash (two rounds of the mixer of
:mod:`curation.gpu.random`, with a key each), 63 bits of which become a uniform u in (0, 1] that is fine near 0,
where the winners are; then E = -log(1 - u) and G = -log E. The hash is the same integers on every device. numpy
arrays and CPU tensors share one compiled loop (:mod:`curation.gpu.topk.cpu`) and give equal keys bit for bit;
elsewhere (:mod:`curation.gpu.topk.tensor`) logarithms may differ from these in the last bit.

A noiseless key beyond ±1e260, infinities among them, counts as infinite: the +inf come before all finite ones
and the -inf after, in random order among themselves. Their keys are above 1e269 and below -1e269, so that one
float64 orders all three tiers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from curation.gpu.random import derive_keys

Array = Any
"""A one-dimensional numpy array or torch tensor."""
Seed = int | Sequence[int] | np.random.Generator | torch.Generator

# A noiseless key beyond ±LIMIT is infinite: it becomes HIGH / E or -LOW · E.
LIMIT = 1e260
LOW, HIGH = 2.0**960, 2.0**900
# u = 1 would make E infinite.
BELOW_ONE = 1.0 - 2.0**-53


@dataclass(frozen=True, kw_only=True)
class Keying:
    """How values become keys.

    Args:
        scale: multiplies before the noise is added; finite. 0 leaves the noise alone: a uniform draw.
        log: whether the logarithm of the values is meant.
        seeds: the noise's two 64-bit keys, from :func:`noise_seeds`; None adds no noise, and values are the keys.

    Raises:
        ValueError: scale is not finite.
    """

    scale: float = 1.0
    log: bool = False
    seeds: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.scale):
            raise ValueError(f"scale must be finite, not {self.scale}: for no noise, use topk")


def noise_seeds(seed: Seed) -> tuple[int, int]:
    """The two 64-bit keys of the noise: hashed from integers, or drawn from a generator, which moves on.

    Raises:
        TypeError: seed is none of the kinds in :data:`Seed`.
        ValueError: an integer is negative.
    """
    if isinstance(seed, np.random.Generator):
        first, second = seed.integers(0, 2**64, size=2, dtype=np.uint64).tolist()
    elif isinstance(seed, torch.Generator):
        drawn = torch.randint(-(2**63), 2**63 - 1, (2,), generator=seed, device=seed.device)
        first, second = (value % 2**64 for value in drawn.tolist())
    elif seed is None:
        raise TypeError("seed must be integers or a generator, not None: the draw would not be repeatable")
    else:
        first, second = derive_keys(seed, 2)
    return first, second


def check_values(values: Array) -> None:
    """Raise unless ``values`` is a one-dimensional array or tensor of real numbers."""
    if not isinstance(values, torch.Tensor | np.ndarray):
        raise TypeError(f"scores must be a numpy array or a torch tensor, not {type(values).__name__}")
    if values.ndim != 1:
        raise ValueError(f"scores must be one-dimensional, not of shape {tuple(values.shape)}")
    real = not values.is_complex() if isinstance(values, torch.Tensor) else values.dtype.kind in "fiub"
    if not real:
        raise TypeError(f"scores must be real numbers, not {values.dtype}")


def raise_if_bad(values: Array, offset: int, start: int) -> None:
    """Raise for the value at ``offset``, unless that is past the end."""
    if offset < len(values):
        value = float(values[offset])
        allowed = "a number" if np.isnan(value) else "0 or more to have a logarithm"
        raise ValueError(f"the score at position {start + offset} is {value}: it must be {allowed}")
