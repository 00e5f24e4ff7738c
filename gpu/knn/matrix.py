"""Rows of any float dtype, and the one definition of a score that every engine is held to.

A score is the float32 nearest to the inner product (or minus the squared distance) accumulated in float64
in a fixed order, so equal rows score equally wherever they stand, and ties can break by index. A matrix
product does not give that: its last bits depend on the shape of the tile. So products only shortlist,
``score_pairs`` decides, and :func:`product_error` bounds how far the two can be apart.
"""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.compiled import compiled
from curation.gpu.threads import by_rows

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class Matrix:
    """Rows of float32, float16 or bfloat16, read by blocks: an array, a memory map or a torch tensor.

    Args:
        values: [N, D] numpy array or memmap (float16, float32; float64 is rounded to float32) or torch
            tensor (bfloat16 as well; on any device, and copied to the host only when it is read there).
        name: what errors call it.

    Raises:
        ValueError: not two-dimensional, empty, or of another dtype.
    """

    def __init__(self, values: Any, name: str) -> None:
        tensor = isinstance(values, torch.Tensor)
        values = values.detach() if tensor else np.asarray(values)
        shape, kind = tuple(values.shape), str(values.dtype).removeprefix("torch.")
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"{name} must have shape [N, D] with N, D ≥ 1, not {shape}")
        if kind not in ("float64", "float32", "float16") and not (tensor and kind == "bfloat16"):
            raise ValueError(f"{name} must be float32, float16 or bfloat16, not {kind}")
        self.name = name
        self._values = values
        self.rows, self.width = int(shape[0]), int(shape[1])
        bits = np.arange(1 << 16, dtype=np.uint32)
        if kind == "bfloat16":
            self._decode: Float32 | None = (bits << np.uint32(16)).view(np.float32)
        elif kind == "float16":
            self._decode = bits.astype(np.uint16).view(np.float16).astype(np.float32)
        else:
            self._decode = None

    @cached_property
    def raw(self) -> npt.NDArray[Any]:
        """[N, D] in host memory: float32, or uint16 that hold the bits of a short float."""
        array = self._values
        if isinstance(array, torch.Tensor):
            array = array.cpu()
            short = array.dtype == torch.bfloat16
            array = array.contiguous().view(torch.int16).numpy().view(np.uint16) if short else array.numpy()
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        held: npt.NDArray[Any] = array.view(np.uint16) if array.dtype == np.float16 else array
        return held

    @property
    def coded(self) -> tuple[npt.NDArray[Any], Float32]:
        """(:attr:`raw`, float32[65536] of what its bits stand for), for compiled loops; empty where it is float32."""
        return self.raw, np.empty(0, np.float32) if self._decode is None else self._decode

    def __len__(self) -> int:
        return self.rows

    def read(self, start: int, stop: int) -> Float32:
        """float32[stop - start, D]; of a map that is read only, a copy: torch wants arrays that it may write to."""
        block = self.raw[start:stop]
        return np.require(block if self._decode is None else self._decode[block], requirements=("C", "W"))

    def take(self, rows: Int64) -> Float32:
        """float32[len(rows), D]."""
        block = self.raw[rows]
        return np.ascontiguousarray(block if self._decode is None else self._decode[block])

    def norms(self, block: int) -> npt.NDArray[np.float64]:
        """float64[N], the rows' Euclidean lengths; one pass.

        Raises:
            ValueError: a row holds NaN or infinity.
        """
        out = np.empty(self.rows, np.float64)
        for start in range(0, self.rows, block):
            part = self.read(start, start + block)
            out[start : start + block] = np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
        bad = np.flatnonzero(~np.isfinite(out))
        if len(bad):
            raise ValueError(f"row {bad[0]} of {self.name} holds NaN or infinity: drop it or embed it again")
        return out

    def score_pairs(self, queries: Float32, ids: Int64, *, l2: bool) -> Float32:
        """float32[Q, c]: the score of ``queries[r]`` against row ``ids[r, c]``; -inf where an id is -1."""
        out = np.empty(ids.shape, np.float32)
        if self._decode is None:
            by_rows(_score, len(ids), queries, self.raw, ids, l2, out)
        else:
            by_rows(_score_coded, len(ids), queries, self.raw, self._decode, ids, l2, out)
        return out


def product_error(lengths: npt.NDArray[np.float64], longest: float, width: int, *, l2: bool) -> Any:
    """float64[Q]: how far a float32 matrix product may be from the score (the usual γ_n bound, doubled)."""
    size = lengths * longest if not l2 else 2 * (lengths**2 + longest**2 + lengths * longest)
    return 2 * (width + 8) * 2.0**-24 * size + 1e-30


@compiled(nogil=True, error_model="numpy")
def score_one(query, row, l2):  # type: ignore[no-untyped-def]
    """float64: the inner product of two float32[D], or minus their squared distance, summed in a fixed order."""
    # Eight running sums in a fixed order: as fast as a free order, and the same on every machine.
    width = len(query)
    whole = width - width % 8
    sums = np.zeros(8, np.float64)
    if l2:
        for start in range(0, whole, 8):
            for lane in range(8):
                gap = np.float64(query[start + lane]) - np.float64(row[start + lane])
                sums[lane] -= gap * gap
        for column in range(whole, width):
            gap = np.float64(query[column]) - np.float64(row[column])
            sums[column - whole] -= gap * gap
    else:
        for start in range(0, whole, 8):
            for lane in range(8):
                sums[lane] += np.float64(query[start + lane]) * np.float64(row[start + lane])
        for column in range(whole, width):
            sums[column - whole] += np.float64(query[column]) * np.float64(row[column])
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


@compiled(nogil=True)
def decode_row(row, decode, buffer):  # type: ignore[no-untyped-def]
    """Write a row of :attr:`Matrix.coded` to ``buffer``, float32[D]."""
    for column in range(len(buffer)):
        buffer[column] = decode[np.int64(row[column])] if len(decode) else np.float32(row[column])


@compiled(nogil=True, error_model="numpy")
def _score(begin, end, queries, rows, ids, l2, out):  # type: ignore[no-untyped-def]
    for query in range(begin, end):
        for i in range(ids.shape[1]):
            row = ids[query, i]
            out[query, i] = -np.inf if row < 0 else score_one(queries[query], rows[row], l2)


@compiled(nogil=True, error_model="numpy")
def _score_coded(begin, end, queries, rows, decode, ids, l2, out):  # type: ignore[no-untyped-def]
    for query in range(begin, end):
        buffer = np.empty(queries.shape[1], np.float32)
        for i in range(ids.shape[1]):
            row = ids[query, i]
            if row < 0:
                out[query, i] = -np.inf
            else:
                decode_row(rows[row], decode, buffer)
                out[query, i] = score_one(queries[query], buffer, l2)
