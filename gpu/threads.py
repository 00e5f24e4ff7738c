"""Threads for compiled row loops, and for work in order; what runs in them releases the GIL.

Numba's own ``parallel=True`` costs half a minute to compile where a plain kernel costs a second, and its
default thread pool may not be entered from two threads. Kernels here release the GIL and take a row range.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numba

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Below this many rows a thread costs more than it saves.
SERIAL = 64


def by_rows(kernel: Callable[..., Any], rows: int, *arguments: Any) -> list[Any]:
    """Call ``kernel(begin, end, *arguments)`` over 0..rows, and return its results in order of rows.

    Args:
        kernel: compiled with ``nogil``; calls write to different rows.
        rows: how many there are.
    """
    threads = int(numba.get_num_threads())
    if rows < SERIAL or threads == 1:
        return [kernel(0, rows, *arguments)]
    pieces = min(4 * threads, rows // 16)
    cuts = [rows * piece // pieces for piece in range(pieces + 1)]
    # The first piece compiles the kernel, once rather than in every thread.
    first = kernel(0, cuts[1], *arguments)
    with ThreadPoolExecutor(threads) as pool:
        rest = pool.map(lambda piece: kernel(cuts[piece], cuts[piece + 1], *arguments), range(1, pieces))
        return [first, *rest]


def usable_threads() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """``map(work, items)`` in order, a few items ahead, so that a long stream stays out of memory."""
    if threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="curation") as pool:
        ahead: deque[Future[_Result]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
