"""Selection: the outcome of every selector that picks single candidates."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """Chosen candidates, by position in their source, in pick order.

    Args:
        indices: int64[k], distinct, in ``0..size-1``.
        weights: float32[k], the factor of each one's loss; 1 where the method has none.
        scores: float64[k], or None where the method has no score.
        size: N, the number of candidates chosen from; None where it is not known.

    Raises:
        ValueError: indices repeat or are out of range, or lengths differ.
        TypeError: indices are not integers.
    """

    indices: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] = None  # type: ignore[assignment]
    scores: npt.NDArray[np.float64] | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        indices = as_positions(self.indices, "indices")
        weights = np.ones(len(indices), np.float32) if self.weights is None else self.weights
        weights = np.asarray(weights, np.float32)
        scores = None if self.scores is None else np.asarray(self.scores, np.float64)
        for name, values in (("weights", weights), ("scores", scores)):
            if values is not None and values.shape != indices.shape:
                raise ValueError(f"{name} has shape {values.shape}, but indices has {indices.shape}")
        check_distinct(indices, self.size)
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        return len(self.indices)


def as_positions(values: npt.ArrayLike, name: str) -> npt.NDArray[np.int64]:
    """One-dimensional int64 positions; no copy where ``values`` already is that.

    Raises:
        TypeError: values are floats (which lose positions above 2^24 or 2^53) or anything but integers.
        ValueError: values are not one-dimensional, or above int64.
    """
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers, not {array.dtype}: other types corrupt large positions")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {array.max()}: positions above 2^63 - 1 do not fit int64")
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, not of shape {array.shape}")
    return array.astype(np.int64, copy=False)


def check_distinct(indices: npt.NDArray[np.int64], size: int | None) -> None:
    """Check that positions are distinct and in ``0..size-1`` (or not negative, where ``size`` is None).

    O(k) with one byte for each candidate, or a sort where the choice is sparse.

    Raises:
        ValueError: names the first offender.
    """
    if len(indices) == 0:
        return
    low, high = int(indices.min()), int(indices.max())
    if low < 0:
        raise ValueError(f"index {low} is negative")
    if size is not None and high >= size:
        raise ValueError(f"index {high} is out of range: there are {size} candidates")
    if high < 16 * len(indices):
        seen = np.zeros(high + 1, bool)
        seen[indices] = True
        distinct = int(np.count_nonzero(seen)) == len(indices)
    else:
        ordered = np.sort(indices)
        distinct = not bool(np.any(ordered[1:] == ordered[:-1]))
    if not distinct:
        values, counts = np.unique(indices, return_counts=True)
        raise ValueError(f"index {values[counts > 1][0]} appears more than once")
