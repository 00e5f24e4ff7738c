"""Refusals: requests that cannot be met."""

from typing import Any


class Refusal(Exception):  # noqa: N818 (an answer rather than a fault)
    """A request that cannot be met. ``kind`` is a key of :data:`curation.service.http.problems.KINDS`.

    Args:
        kind: which rule was broken.
        detail: what is wrong, where, and what to do.
        members: further facts for the machine that reads the problem document.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(self, kind: str, detail: str, *, retry_after: float | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.members = members
        self.retry_after = retry_after
