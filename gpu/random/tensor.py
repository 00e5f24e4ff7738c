"""SplitMix64 as torch operations, on any device; int64 holds the bits that are uint64 elsewhere."""

import torch

from curation.gpu.random import GOLDEN, MIX_A, MIX_B


def signed(value: int) -> int:
    """The int64 of the same bits as a uint64."""
    return value - 2**64 if value >= 2**63 else value


def shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """int64 shifted right as if it had no sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: torch.Tensor) -> torch.Tensor:
    """int64: the mixer, a bijection of 64 bits."""
    x = (x ^ shift(x, 30)) * signed(MIX_A)
    x = (x ^ shift(x, 27)) * signed(MIX_B)
    return x ^ shift(x, 31)


def numbers(key: int, count: int, device: torch.device) -> torch.Tensor:
    """int64[count]: the first numbers of the stream that starts at ``key``."""
    return mix(torch.arange(1, count + 1, device=device).mul_(signed(GOLDEN)).add_(signed(key)))


def uniform(bits: torch.Tensor) -> torch.Tensor:
    """float64 in [0, 1), of 53 bits."""
    return shift(bits, 11).to(torch.float64) * 2.0**-53


def fine_uniform(bits: torch.Tensor) -> torch.Tensor:
    """float64 in (0, 1], of 63 bits: fine near 0, where logarithms ask for it."""
    return (shift(bits, 1).to(torch.float64) + 0.5) * 2.0**-63
