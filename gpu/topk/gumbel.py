"""Keys of a Gumbel top-k draw: ``v + G / scale`` or ``log v + G / scale``, G ~ Gumbel(0, 1).

The noise is a pure function of ``(seed, position)``: a 64-bit counter hash (two rounds of the mixer of
:mod:`curation.gpu.random`, with a key each), 63 bits of which become a uniform u in (0, 1] that is fine near 0,
where the winners are; then E = -log(1 - u) and G = -log E. The hash is the same integers on every device. numpy
arrays and CPU tensors share one compiled loop (:mod:`curation.gpu.topk.cpu`) and give equal keys bit for bit;
elsewhere (:mod:`curation.gpu.topk.tensor`) logarithms may differ from these in the last bit.

A key is three float64, compared in turn: the sum above, what rounding left of it, and G. So no float's limit decides a
draw: where the noise is lost in a large value, values are told apart by what they are (64-bit integers, too), and
equal ones by their noise. The sum of an infinite value, or of the logarithm of 0, is infinite.
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

# u = 1 would make E infinite.
BELOW_ONE = 1.0 - 2.0**-53
LIFT = 512.0
"""The power of 2 that brings a very large or small value to a size at which exp neither over- nor underflows."""


@dataclass(frozen=True, kw_only=True)
class Keying:
    """How values become keys.

    Args:
        scale: how much a value counts beside the noise; a negative one puts low values first. 0 leaves the noise
            alone: a uniform draw. Finite.
        log: whether the logarithm of the values is meant.
        shift: is added to the values before their logarithm is taken; finite.
        seeds: the noise's two 64-bit keys, from :func:`noise_seeds`; None adds no noise, and values are the keys.

    Raises:
        ValueError: scale or shift is not finite.
    """

    scale: float = 1.0
    log: bool = False
    shift: float = 0.0
    seeds: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.scale):
            raise ValueError(f"scale must be finite, not {self.scale}: for no noise, use topk")
        if not np.isfinite(self.shift):
            raise ValueError(f"shift must be finite, not {self.shift}")

    @property
    def factor(self) -> float:
        """What the value is multiplied by in a key: 0, or 1 or -1; smaller where the noise would overflow."""
        unit = 1.0 if abs(self.scale) > 1e-280 else 2.0**-70
        return float(np.sign(self.scale)) * unit

    @property
    def spread(self) -> float:
        """What the noise is multiplied by in a key."""
        return abs(self.factor / self.scale) if self.scale else 1.0

    @property
    def half(self) -> float:
        """What a shifted value is multiplied by, so that the sum does not overflow; no order depends on it."""
        return 0.5 if abs(self.shift) > 1 else 1.0


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


def raise_if_bad(values: Array, offset: int, start: int, shift: float = 0.0) -> None:
    """Raise for the value at ``offset``, unless that is past the end."""
    if offset < len(values):
        value = float(values[offset])
        allowed = f"{-shift} or more, with the shift of {shift}," if shift else "0 or more"
        allowed = "a number" if np.isnan(value) else f"{allowed} to have a logarithm; a higher shift makes it so"
        raise ValueError(f"the score at position {start + offset} is {value}: it must be {allowed}")
