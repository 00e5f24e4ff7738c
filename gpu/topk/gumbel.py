"""Keys of a Gumbel top-k draw: ``scale · v + G`` or ``scale · log v + G``, G ~ Gumbel(0, 1).

The noise is a pure function of ``(seed, position)``: a 64-bit counter hash (two rounds of SplitMix64's mixer,
Steele et al. 2014, with a key each), 63 bits of which become a uniform u in (0, 1] that is fine near 0, where
the winners are; then E = -log(1 - u) and G = -log E. The hash is the same integers on every device. numpy arrays
and CPU tensors share one compiled loop and give equal keys bit for bit; elsewhere logarithms may differ from
these in the last bit.

A noiseless key beyond ±1e260, infinities among them, counts as infinite: the +inf come before all finite ones
and the -inf after, in random order among themselves. Their keys are above 1e269 and below -1e269, so that one
float64 orders all three tiers.

Cost: O(N) time, one block of memory. Where a bar is known, a bound from the floats' bits spares nearly all
logarithms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = Any
"""A one-dimensional numpy array or torch tensor."""
Seed = int | Sequence[int] | np.random.Generator | torch.Generator

HOST_BLOCK = 1 << 16
DEVICE_BLOCK = 1 << 22
LIMIT = 1e260

LOW, HIGH = 2.0**960, 2.0**900
BELOW_ONE = 1.0 - 2.0**-53
GOLDEN, MIX_A, MIX_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


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


def gumbel_keys(values: Array, *, seed: Seed, scale: float = 1.0, log: bool = False, start: int = 0) -> Array:
    """The keys that :func:`curation.gpu.topk.gumbel_topk` ranks, for a caller who chooses in another way.

    Args:
        values: [N] of real numbers, a numpy array (memory maps too) or a torch tensor on any device; not changed.
        seed: integers, or a generator, from which 128 bits are drawn (a CUDA generator costs one read of 16 bytes).
        scale: multiplies before the noise is added; finite.
        log: whether the logarithm of the values is meant.
        start: the position of ``values[0]``, where ``values`` is one shard of many.

    Returns:
        float64[N], of the kind and on the device of ``values``.

    Raises:
        ValueError: a value is NaN, or negative with ``log`` (the first is named), or not one-dimensional; scale
            is not finite.
        TypeError: values are complex, or not numbers.
    """
    return keys_of(values, Keying(scale=scale, log=log, seeds=noise_seeds(seed)), start=start)


def keys_of(values: Array, keying: Keying, *, start: int = 0) -> Array:
    """float64[N]: the keys of all values. Arguments and errors as :func:`gumbel_keys`."""
    check_values(values)
    n = len(values)
    if on_host(values):
        out = np.empty(n, np.float64)
        scratch = np.empty(min(n, HOST_BLOCK), np.float64)
        for low in range(0, n, HOST_BLOCK):
            block, _, bad = host_scan(values, low, min(n, low + HOST_BLOCK), start, keying, np.nan, scratch)
            raise_if_bad(values, low + bad if bad >= 0 else n, start)
            out[low : low + len(block)] = block
        return torch.from_numpy(out) if isinstance(values, torch.Tensor) else out
    filled = torch.empty(n, dtype=torch.float64, device=values.device)
    first_bad = torch.full((), n, dtype=torch.int64, device=values.device)
    for low in range(0, n, DEVICE_BLOCK):
        keys, found = device_keys(values, low, min(n, low + DEVICE_BLOCK), start, keying)
        filled[low : low + len(keys)] = keys
        first_bad = torch.minimum(first_bad, found)
    raise_if_bad(values, int(first_bad), start)
    return filled


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
        first, second = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
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


def on_host(values: Array) -> bool:
    """Whether the compiled loop can read ``values`` where they are."""
    return not isinstance(values, torch.Tensor) or values.device.type == "cpu"


def host_scan(
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
    from curation.gpu.topk.cpu import scan

    block = values[low:high]
    if isinstance(block, torch.Tensor):
        block = block.detach().to(torch.float64).numpy()
    block = np.ascontiguousarray(block, np.float64)
    if not block.flags.writeable:
        # numba would compile anew for what it may only read.
        block = block.copy()
    first, second = keying.seeds or (0, 0)
    noise = keying.seeds is not None
    keys, offsets, bad = scan(
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


def device_keys(
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
    x = _device_mix(positions * signed(GOLDEN) + first)
    uniform = (_shift(_device_mix(x + second), 1).to(torch.float64) + 0.5) * 2.0**-63
    race = -torch.log1p(-uniform.clamp(max=BELOW_ONE))
    if keying.scale == 0.0:
        return -race.log(), bad
    base = keying.scale * (v.log() if keying.log else v)
    keys = torch.where(base > LIMIT, HIGH / race, base - race.log())
    return torch.where(base < -LIMIT, -LOW * race, keys), bad


def _device_mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * signed(MIX_A)
    x = (x ^ _shift(x, 27)) * signed(MIX_B)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """int64 shifted right as if it had no sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def signed(value: int) -> int:
    """The int64 of the same bits as a uint64."""
    return value - 2**64 if value >= 2**63 else value
