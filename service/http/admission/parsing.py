"""Parsing of bodies, where it holds up nobody: small ones at once, large ones in a thread or a process."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from curation.service.errors import Refusal
from curation.service.http.dependencies import AppState

T = TypeVar("T")

ARROW_AT_ONCE = 1 << 20
JSON_AT_ONCE = 128 << 10
"""Bytes that are parsed between two other requests: a few milliseconds of work."""

Read = Callable[..., T]
"""Parses a body: its bytes, whether they are Arrow, how many bytes it may expand to, and what else limits it. A
function of a module."""


async def parse(app: AppState, read: Read[T], body: bytes, arrow: bool, most: int, *limits: int) -> T:
    """Parse a body that may expand to ``most`` bytes.

    Large Arrow goes to a thread; large JSON, whose parser keeps the interpreter to itself, to a process.

    Raises:
        Refusal: says what does not fit.
    """
    if not arrow:
        if len(body) <= JSON_AT_ONCE:
            return read(body, arrow, most, *limits)
        return await app.processes.run(read, body, arrow, most, *limits)
    if len(body) <= ARROW_AT_ONCE:
        try:
            return read(body, arrow, min(most, ARROW_AT_ONCE), *limits)
        except Refusal as refusal:
            if refusal.kind != "too-large" or most <= ARROW_AT_ONCE:
                raise  # otherwise it may be that it expands to more
    return await asyncio.to_thread(read, body, arrow, most, *limits)
