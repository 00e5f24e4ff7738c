"""Batches of an epoch, from communities, and the guarantee that some rows never meet in one.

An epoch is a pure function of (communities, seed, epoch): communities are drawn in random order and cut into
batches, each row once; rows that must not meet are then swapped apart. O(N log N) time, and O(N) memory.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from curation.plan import BatchPlan
from curation.selectors.b3.conflicts import conflict_columns, separate

Int64 = npt.NDArray[np.int64]
Last = Literal["keep", "drop"]

LAST: tuple[str, ...] = get_args(Last)
"""What becomes of short batches."""


def regroup(
    clusters: npt.ArrayLike,
    *,
    batch_size: int,
    cluster_size: int,
    seed: int = 0,
    epoch: int = 0,
    apart: Int64 | None = None,
    datasets: npt.ArrayLike | None = None,
    last: Last = "keep",
) -> BatchPlan:
    """Batches of ``batch_size / cluster_size`` communities drawn without replacement (B3, section 3).

    A community that is short takes rows from the one drawn last, so that no other batch cuts a community in
    two and only the last batch (of each data set) is short.

    Args:
        clusters: int[N], community of each row, of ``cluster_size`` rows; others are joined and cut to it.
        batch_size: a multiple of ``cluster_size``.
        cluster_size: K.
        seed, epoch: equal pairs give equal plans; (0, 1) and (1, 0) differ.
        apart: int64[N, c] or int64[N]: rows with an equal id in one column never share a batch; -1 for none.
        datasets: int[N]; a batch holds rows of one data set only.
        last: whether short batches stay (at the end) or go.

    Returns:
        BatchPlan: M = N rows (fewer with ``last="drop"``), with ``clusters``, and with what its batches promise, in
        ``apart`` and ``datasets``, for whoever joins some of them.

    Raises:
        ValueError: an option is not allowed, or the rows that must not meet cannot be kept apart.
    """
    labels = np.asarray(clusters, np.int64)
    if cluster_size < 1 or batch_size < 1 or batch_size % cluster_size:
        raise ValueError(f"batch_size must be a multiple of cluster_size, not {batch_size} with {cluster_size}")
    if last not in LAST:
        raise ValueError(f"last must be one of {', '.join(LAST)}, not {last!r}")
    sets = np.zeros(len(labels), np.int64)
    if datasets is not None:
        sets = np.unique(np.asarray(datasets), return_inverse=True)[1].astype(np.int64)
    columns = conflict_columns(apart, len(labels))
    batches: list[Int64] = []
    order = np.argsort(sets, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(sets[order])) + 1) if len(order) else []
    for part, members in enumerate(parts):
        rng = np.random.default_rng((seed, epoch, part))
        rows = members[_draw(labels[members], cluster_size, rng)]
        offsets = np.append(np.arange(0, len(rows), batch_size), len(rows)).astype(np.int64)
        if columns is not None:
            rows = separate(rows, offsets, columns, rng)
        batches += np.split(rows, offsets[1:-1])
    full = [batch for batch in batches if len(batch) == batch_size]
    short = [batch for batch in batches if len(batch) < batch_size] if last == "keep" else []
    order = np.arange(len(full))
    if len(parts) > 1:
        order = np.random.default_rng((seed, epoch, len(parts))).permutation(len(full))
    chosen = [full[i] for i in order] + short
    indices = np.concatenate([np.empty(0, np.int64), *chosen])
    offsets = np.cumsum([0, *(len(batch) for batch in chosen)], dtype=np.int64)
    return BatchPlan(
        indices=indices, offsets=offsets, clusters=labels[indices], apart=_ids_of_rows(columns, indices),
        datasets=None if datasets is None else sets[indices[offsets[:-1]]],
    )  # fmt: skip


def _ids_of_rows(columns: Int64 | None, indices: Int64) -> Int64:
    # Pairs (row of the plan, id), as a BatchPlan has them in `apart`, where ids of different columns must differ.
    if columns is None:
        return np.empty((0, 2), np.int64)
    sizes = columns.max(axis=1) + 1
    of_rows = columns[:, indices].T
    rows, column = np.nonzero(of_rows >= 0)
    return np.stack([rows, of_rows[rows, column] + (np.cumsum(sizes) - sizes)[column]], axis=1)


def _draw(labels: Int64, size: int, rng: np.random.Generator) -> Int64:
    # Positions of the rows, community after community in random order, cut into units of `size`.
    _, dense, counts = np.unique(labels, return_inverse=True, return_counts=True)
    position = rng.permutation(len(counts))
    odd = np.flatnonzero((counts != size)[dense])
    odd = odd[np.argsort(position[dense[odd]], kind="stable")]
    unit = position[dense]
    unit[odd] = len(counts) + np.arange(len(odd)) // size
    names, unit, sizes = np.unique(unit, return_inverse=True, return_counts=True)
    draws = rng.permutation(len(names)).astype(np.float64)
    key = draws[unit]
    short = int(np.argmin(sizes))
    donor = int(np.argmax(draws))
    if sizes[short] < size and short != donor:
        giving = rng.permutation(np.flatnonzero(unit == donor))[: size - sizes[short]]
        key[giving] = draws[short] + 0.5
    return np.argsort(key, kind="stable")
