"""What every benchmark shares: where the data lies, and how a repeated timing is taken and shown."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def data_dir() -> Path:
    """The folder of public data: ``CURATION_DATA``, or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("CURATION_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"no data at {folder}: set CURATION_DATA to the folder that holds text/, pairs/, images/")
    return folder


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.4g} s ({min(self.seconds):.4g}–{max(self.seconds):.4g})"


def timed(run: Callable[[], object], *, repeats: int = 5, warmup: int = 1) -> Timing:
    """Run ``warmup`` times unmeasured, then ``repeats`` times measured."""
    for _ in range(warmup):
        run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return Timing(tuple(seconds))


def ratio(peer: Timing, ours: Timing) -> str:
    """How many times faster ours is: the ratio of medians, and the range of run-by-run ratios."""
    each = sorted(p / o for p, o in zip(peer.seconds, ours.seconds, strict=True))
    return f"{peer.median / ours.median:.1f}× ({each[0]:.1f}–{each[-1]:.1f})"
