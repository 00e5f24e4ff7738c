"""Running sums of JEST's contrastive losses. Loaded on first use: device paths run where numba is not installed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curation.gpu.learnability.sums import BACKENDS as BACKENDS
    from curation.gpu.learnability.sums import LOSSES as LOSSES
    from curation.gpu.learnability.sums import Backend as Backend
    from curation.gpu.learnability.sums import Loss as Loss
    from curation.gpu.learnability.sums import accumulate as accumulate
    from curation.gpu.learnability.sums import choose_backend as choose_backend
    from curation.gpu.learnability.sums import own_logits as own_logits
    from curation.gpu.learnability.sums import scratch_bytes as scratch_bytes

__all__ = [
    "BACKENDS",
    "LOSSES",
    "Backend",
    "Loss",
    "accumulate",
    "choose_backend",
    "own_logits",
    "scratch_bytes",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        from curation.gpu.learnability import sums

        return getattr(sums, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
