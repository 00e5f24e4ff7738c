"""Compilation of loops: ``numba.njit`` that keeps its machine code on disk where some folder can be written."""

from collections.abc import Callable
from typing import Any

import numba

_Function = Callable[..., Any]


def compiled(**options: Any) -> Callable[[_Function], _Function]:
    """A decorator. In a container that is read only, numba finds no folder for its cache: then each process compiles
    anew, where ``numba.njit(cache=True)`` would raise on import.

    Args:
        options: ``numba.njit``'s, but ``cache``.
    """

    def decorate(function: _Function) -> _Function:
        try:
            dispatcher: _Function = numba.njit(cache=True, **options)(function)
        except RuntimeError:
            dispatcher = numba.njit(**options)(function)
        return dispatcher

    return decorate
