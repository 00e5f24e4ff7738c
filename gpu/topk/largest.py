"""The k largest of a long list of scores, with or without Gumbel noise, exactly and in one pass.

Decides: which k positions hold the largest keys; equal values go to the lower position. With noise the k largest
are a draw of k without replacement (Plackett–Luce), in the order drawn (Kool et al. 2019, arXiv 1903.06059).
The noise belongs to the position (:mod:`curation.gpu.topk.gumbel`), so a shard that holds positions
``start..start + n - 1`` sees the noise that a draw over everything gives them, and shards' local top k, merged
by :func:`merge_topk`, are the global top k.

Cost: O(N) time, on the host over ``torch.get_num_threads()`` threads; O(k) memory and one block of positions.
On CUDA long lists are read once, by :mod:`curation.gpu.topk.kernels` where triton is installed.
"""

import operator
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import torch

from curation.gpu.topk import tensor
from curation.gpu.topk.gumbel import Array, Keying, Seed, check_values, noise_seeds, raise_if_bad
from curation.gpu.topk.order import descending_order

Top = tuple[Array, Array]
"""``(indices int64[k], keys float64[k, 3])``, of one kind and on one device."""


def topk(values: Array, k: int, *, start: int = 0) -> Top:
    """The k largest values, in descending order; equal ones by position.

    Args:
        values: [N] of real numbers, a numpy array (memory maps too) or a torch tensor on any device; not changed.
        k: how many; all N where k is larger.
        start: the position of ``values[0]``, where ``values`` is one shard of many.

    Returns:
        ``(indices int64[min(k, N)], keys float64[min(k, N), 3])``, of the kind and on the device of ``values``.

    Raises:
        ValueError: a value is NaN (the first is named), k is negative, or values are not one-dimensional.
        TypeError: values are complex, or not numbers, or k is not an integer.
    """
    return best(values, k, Keying(), start=start)


def gumbel_topk(values: Array, k: int, *, seed: Seed, scale: float = 1.0, log: bool = False, start: int = 0) -> Top:
    """The k largest of ``scale · v + G``, or with ``log`` of ``scale · log v + G``; G ~ Gumbel(0, 1).

    Keys are these divided by ``scale``; see :mod:`curation.gpu.topk.gumbel` for their three columns.

    Args:
        values: [N] of real numbers, a numpy array (memory maps too) or a torch tensor on any device; not changed.
        k: how many; all N where k is larger.
        seed: integers, or a generator, from which 128 bits are drawn (a CUDA generator costs one read of 16 bytes).
        scale: multiplies before the noise is added; finite. 0 makes the draw uniform, and a negative one puts low
            values first.
        log: whether the logarithm of the values is meant.
        start: the position of ``values[0]``, where ``values`` is one shard of many.

    Returns:
        ``(indices int64[min(k, N)], keys float64[min(k, N), 3])`` by descending key, of the kind and on the device
        of ``values``.

    Raises:
        ValueError: a value is NaN, or negative with ``log`` (the first is named); k is negative; scale is not
            finite; values are not one-dimensional.
        TypeError: values are complex, or not numbers.
    """
    return best(values, k, Keying(scale=scale, log=log, seeds=noise_seeds(seed)), start=start)


def gumbel_keys(values: Array, *, seed: Seed, scale: float = 1.0, log: bool = False, start: int = 0) -> Array:
    """The keys that :func:`gumbel_topk` ranks, for a caller who chooses in another way.

    Args:
        values: [N] of real numbers, a numpy array (memory maps too) or a torch tensor on any device; not changed.
        seed: integers, or a generator, from which 128 bits are drawn (a CUDA generator costs one read of 16 bytes).
        scale: multiplies before the noise is added; finite.
        log: whether the logarithm of the values is meant.
        start: the position of ``values[0]``, where ``values`` is one shard of many.

    Returns:
        float64[N, 3], of the kind and on the device of ``values``: rows compare by the first column, then by the
        second, then by the third.

    Raises:
        ValueError: a value is NaN, or negative with ``log`` (the first is named), or not one-dimensional; scale
            is not finite.
        TypeError: values are complex, or not numbers.
    """
    return keys_of(values, Keying(scale=scale, log=log, seeds=noise_seeds(seed)), start=start)


def merge_topk(parts: Iterable[Top], k: int) -> Top:
    """The k largest keys of several shards' tops, by descending key, then by index.

    Args:
        parts: ``(indices, keys)`` as the functions above return them, in any order, all of one kind and device.
            Each must hold the min(k, n) best of its shard for the merge to be the global top k.
        k: how many; all where there are fewer.

    Returns:
        ``(indices int64[min(k, total)], keys float64[min(k, total), 3])``.

    Raises:
        ValueError: there are no parts, or k is negative.
    """
    _check_k(k)
    tops = list(parts)
    if not tops:
        raise ValueError("there are no parts to merge")
    indices, keys = tops[0]
    if len(tops) > 1:
        join = torch.cat if isinstance(indices, torch.Tensor) else np.concatenate
        indices, keys = join([top[0] for top in tops]), join([top[1] for top in tops])
    order = descending_order(keys, indices)[:k]
    return indices[order], keys[order]


def best(values: Array, k: int, keying: Keying, *, start: int = 0) -> Top:
    """The k largest keys. Arguments and errors as :func:`gumbel_topk`; this is what both functions above call."""
    _check_k(k)
    check_values(values)
    if _on_host(values):
        return _best_on_host(values, k, start, keying)
    if values.is_cuda and find_spec("triton"):
        from curation.gpu.topk.kernels import best_by_bar

        top = best_by_bar(values, k, start, keying)
        if top is not None:
            return top
    return tensor.best(values, k, start, keying)


def keys_of(values: Array, keying: Keying, *, start: int = 0) -> Array:
    """float64[N, 3]: the keys of all values. Arguments and errors as :func:`gumbel_keys`."""
    check_values(values)
    if not _on_host(values):
        return tensor.keys(values, keying, start)
    from curation.gpu.topk import cpu

    out = cpu.keys(values, keying, start)
    return torch.from_numpy(out) if isinstance(values, torch.Tensor) else out


def _on_host(values: Array) -> bool:
    """Whether the compiled loop can read ``values`` where they are."""
    return not isinstance(values, torch.Tensor) or values.device.type == "cpu"


def _best_on_host(values: Array, k: int, start: int, keying: Keying) -> Top:
    from curation.gpu.topk import cpu

    n = len(values)
    # Each worker keeps k candidates, so a large k takes fewer of them.
    # torch's count follows OMP_NUM_THREADS, which Ray sets to a task's CPUs, and is 1 in a data-loader worker.
    workers = max(1, min(torch.get_num_threads(), n // max(4 * cpu.BLOCK, 2 * k)))
    cuts = [n * worker // workers for worker in range(workers + 1)]

    def work(worker: int) -> tuple[cpu.Top, int]:
        return cpu.best(values, cuts[worker], cuts[worker + 1], k, start, keying)

    if workers == 1:
        results = [work(0)]
    else:
        with ThreadPoolExecutor(workers) as pool:
            results = list(pool.map(work, range(workers)))
    raise_if_bad(values, min(bad for _, bad in results), start, keying.shift)
    indices, keys = merge_topk([top for top, _ in results], k)
    if isinstance(values, torch.Tensor):
        return torch.from_numpy(indices), torch.from_numpy(keys)
    return indices, keys


def _check_k(k: int) -> None:
    if operator.index(k) < 0:
        raise ValueError(f"k must be 0 or more, not {k}")
