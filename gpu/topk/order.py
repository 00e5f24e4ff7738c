"""Orders of keys and of values, best first: what every path of :mod:`curation.gpu.topk` ends with."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from curation.gpu.random import GOLDEN
from curation.gpu.random.tensor import fine_uniform, mix, signed
from curation.gpu.topk.gumbel import Array, Seed, check_values, noise_seeds, raise_if_bad


def descending_order(keys: Array, indices: Array) -> Array:
    """int64[n]: the order of rows by descending key, then by ascending index.

    Args:
        keys: float64[n, 3]; see :mod:`curation.gpu.topk.gumbel`.
        indices: int64[n].
    """
    if isinstance(keys, torch.Tensor):
        return by_keys(keys, indices.argsort(stable=True))
    order = np.argsort(-keys[:, 0])
    # A sort by four columns takes several times as long, and hardly ever are two sums equal.
    tied = _tied(keys[order, 0])
    rows = order[tied]
    order[tied] = rows[np.lexsort((indices[rows], -keys[rows, 2], -keys[rows, 1], -keys[rows, 0]))]
    return order


def by_keys(keys: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """int64[n]: ``order`` by descending key, rows of equal keys as they come in it. The host does not wait."""
    for column in (2, 1, 0):
        order = order[keys[order, column].argsort(descending=True, stable=True)]
    return order


def descending_ranks(values: Array, *, seed: Seed) -> Array:
    """int64[N]: each value's rank from 1, the largest first; equal values in random order.

    O(N log N) time and some 40 bytes a value. Same kind and device as ``values``, which are not changed.

    Args:
        values: [N] of real numbers, a numpy array or a torch tensor on any device.
        seed: what the order of equal values is a function of; that order and :func:`gumbel_topk`'s noise for the same
            seed are independent.

    Raises:
        ValueError: a value is NaN (the first is named), or values are not one-dimensional.
        TypeError: values are complex, or not numbers.
    """
    return ranks_by(values, noise_seeds(seed))


def ranks_by(values: Array, seeds: tuple[int, int]) -> Array:
    """:func:`descending_ranks` by the noise's two keys."""
    check_values(values)
    on_host = not isinstance(values, torch.Tensor) or values.device.type == "cpu"
    order = _host_order(values, seeds) if on_host else _device_order(values.detach(), seeds)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(order) + 1, device=order.device)
    return ranks if isinstance(values, torch.Tensor) else ranks.numpy()


def _host_order(values: Array, seeds: tuple[int, int]) -> torch.Tensor:
    array = values
    if isinstance(values, torch.Tensor):
        # numpy has no bfloat16.
        array = (values.detach().double() if values.is_floating_point() else values).numpy()
    missing = np.flatnonzero(np.isnan(array))
    raise_if_bad(array, int(missing[0]) if len(missing) else len(array), 0)
    # Ascending, and turned round: an integer's negative may overflow.
    order = np.argsort(array)[::-1].copy()
    tied = _tied(array[order])
    rows = order[tied]
    draw = _tie_break(torch.from_numpy(rows), seeds).numpy()
    order[tied] = rows[np.lexsort((draw, array[rows]))][::-1]
    return torch.from_numpy(order)


def _device_order(values: torch.Tensor, seeds: tuple[int, int]) -> torch.Tensor:
    missing = torch.where(values.isnan(), torch.arange(len(values), device=values.device), len(values))
    raise_if_bad(values, int(missing.min()) if len(values) else 0, 0)
    draw = _tie_break(torch.arange(len(values), device=values.device), seeds)
    order = draw.argsort(descending=True, stable=True)
    return order[_sortable(values)[order].argsort(descending=True, stable=True)]


def _sortable(values: torch.Tensor) -> torch.Tensor:
    """Values in the same order, of a type that every device sorts, by bits if it likes."""
    if values.is_floating_point():
        return values + 0.0  # makes a negative zero positive
    if values.dtype == torch.uint64:
        return values.view(torch.int64) ^ torch.iinfo(torch.int64).min
    return values.to(torch.int64)


def _tied(ordered: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """bool[n]: which of these ordered values have an equal beside them."""
    equal = ordered[1:] == ordered[:-1]
    tied = np.zeros(len(ordered), bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    return tied


def _tie_break(positions: torch.Tensor, seeds: tuple[int, int]) -> torch.Tensor:
    """float64[n]: a number of each position, unrelated to its noise: the two keys change places."""
    second, first = map(signed, seeds)
    return fine_uniform(mix(mix(positions * signed(GOLDEN) + first) + second))
