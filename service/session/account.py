"""Accounts of owners: the quotas they have, and what they used of them since this server started.

Token buckets, in the memory of one process: a request costs O(1). Each replica counts its own requests.
"""

import time
from typing import NamedTuple

from curation.service.errors import Refusal

MIN_RATE = 1e-3
"""The smallest quota a second: who is refused may come again some day."""


class Quota(NamedTuple):
    """What an owner may use. None: as much as it likes."""

    sessions: int | None = None
    requests_per_second: float | None = None
    bytes_per_second: float | None = None


class Account:
    """One owner's use of one server, in one thread.

    Args:
        owner: its name.
        quota: its limits; they may be replaced at any time.
    """

    def __init__(self, owner: str, quota: Quota) -> None:
        self.owner = owner
        self.requests = 0
        self.bytes = 0
        self.refused = 0
        self._limited = False
        self._requests, self._bytes = _Bucket(), _Bucket()
        self.quota = quota

    @property
    def quota(self) -> Quota:
        """Its limits."""
        return self._quota

    @quota.setter
    def quota(self, quota: Quota) -> None:
        self._quota = quota
        self._requests.rate, self._bytes.rate = quota.requests_per_second, quota.bytes_per_second
        self._limited = quota.requests_per_second is not None or quota.bytes_per_second is not None

    def take(self) -> None:
        """Count a request.

        Raises:
            Refusal: the owner sends more requests, or more bytes, a second than it may (``quota``).
        """
        self.requests += 1
        if self._limited:
            self._take(time.monotonic())

    def answered(self, size: int, status: int) -> None:
        """Count what a request's body had in bytes. More than the quota holds back the requests that follow."""
        self.bytes += size
        self.refused += status == 429
        if self._limited:
            self._bytes.draw(size)

    def _take(self, now: float) -> None:
        for bucket, what in ((self._bytes, "bytes"), (self._requests, "requests")):
            wait = bucket.wait(now)
            if wait > 0:
                raise Refusal(
                    "quota",
                    f"owner {self.owner!r} may send {bucket.rate:g} {what} a second, and sent more: ask again later, "
                    "or have the quota raised (curation owner set)",
                    retry_after=wait,
                    limit=f"{what}_per_second",
                )
        self._requests.draw(1)


class _Bucket:
    """Fills at ``rate`` a second (None: is always full) up to one second's worth, and may be overdrawn."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._level, self._at = float("inf"), 0.0

    def wait(self, now: float) -> float:
        """Seconds until it holds enough for one draw; 0: it does now."""
        if self.rate is None:
            return 0.0
        self._level = min(self._level + (now - self._at) * self.rate, max(self.rate, 1.0))
        self._at = now
        return 0.0 if self._level > 0 else (1e-3 - self._level) / self.rate

    def draw(self, amount: float) -> None:
        """Take some out."""
        self._level -= amount
