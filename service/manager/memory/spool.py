"""Spools: large arrays on disk in place of memory, for as long as they are only read a slice at a time."""

import os
import tempfile
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt


class Spool:
    """An array in a file without a name, in the folder for temporary files (``TMPDIR``); it goes with the object.

    Args:
        chunks: the array, piece by piece.

    Raises:
        OSError: the disk has no room for it.
    """

    def __init__(self, chunks: Iterable[npt.NDArray[Any]]) -> None:
        self._file = tempfile.TemporaryFile(prefix="curation-epoch-")  # noqa: SIM115 (for the life of the object)
        weakref.finalize(self, self._file.close)
        self._dtype = np.dtype(np.uint8)
        for chunk in chunks:
            self._dtype = chunk.dtype
            self._file.write(np.ascontiguousarray(chunk).data)
        self._file.flush()

    def __getitem__(self, span: slice) -> npt.NDArray[Any]:
        width = self._dtype.itemsize
        data = os.pread(self._file.fileno(), (span.stop - span.start) * width, span.start * width)
        return np.frombuffer(data, self._dtype)
