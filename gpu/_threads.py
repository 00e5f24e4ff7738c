"""Compiled row loops on threads.

Numba's own ``parallel=True`` costs half a minute to compile where a plain kernel costs a second, and its
default thread pool may not be entered from two threads. Kernels here release the GIL and take a row range.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba

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
