"""Learning-rate schedules for epochs whose length is not known in advance."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def by_progress(optimizer: Optimizer, progress: Callable[[], float], curve: Callable[[float], float]) -> LambdaLR:
    """A scheduler whose factor is ``curve(progress())`` at each ``step()``.

    A schedule that counts steps ends too late, or never, when pruning shortens the epochs. This one follows
    the share of the training that is done, so it ends where the training ends.

    Args:
        optimizer: the one whose learning rates are multiplied.
        progress: the share done, in [0, 1]: ``InfoBatch.progress``.
        curve: the factor at a share, such as :func:`cosine` or :func:`one_cycle`.
    """
    return LambdaLR(optimizer, lambda _: curve(min(1.0, max(0.0, progress()))))


def cosine(share: float) -> float:
    """1 at the start, 0 at the end, half a cosine between (Loshchilov & Hutter 2017, equation 5)."""
    return (1 + math.cos(math.pi * share)) / 2


def one_cycle(share: float, *, warm: float = 0.3, start: float = 1 / 25, end: float = 1e-4) -> float:
    """Rises from ``start`` to 1 over the share ``warm`` and falls to ``end``, both along a half cosine.

    The schedule of InfoBatch's experiments (Smith & Topin 2018); give the optimizer the highest rate.
    """
    if share < warm:
        return start + (1 - start) * (1 - cosine(share / warm))
    return end + (1 - end) * cosine((share - warm) / (1 - warm))
