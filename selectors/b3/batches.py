"""Batches of an epoch, from communities, and the guarantee that some rows never meet in one.

An epoch is a pure function of (communities, seed, epoch): communities are drawn in random order and cut into
batches, each row once; rows that must not meet are then moved apart. O(N log N) time, and O(N) memory.
"""

import logging
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from curation.plan import BatchPlan
from curation.selectors.b3.arrangement import Arrangement, arrange
from curation.selectors.b3.conflicts import count_together
from curation.selectors.b3.ranking import by_dataset

log = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]
Last = Literal["keep", "drop"]
Surplus = Literal["error", "drop", "allow"]

LAST: tuple[str, ...] = get_args(Last)
"""What becomes of short batches."""
SURPLUS: tuple[str, ...] = get_args(Surplus)
"""What becomes of rows that cannot be kept apart from others."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Grouping:
    """An epoch's batches, and the rows that are in none.

    Args:
        plan: the batches, with ``clusters``.
        surplus: int64, rising: rows that cannot be kept apart from others.
        alone: int64, rising: rows that no batch of two is left for in their data set.
        short: int64, rising: rows of short batches, with ``last="drop"``.
        together: rows that share a batch with one of an equal id; above 0 with ``surplus="allow"`` only.
    """

    plan: BatchPlan
    surplus: Int64
    alone: Int64
    short: Int64
    together: int

    def counts(self) -> dict[str, int]:
        """How many rows are in no batch, by reason, and how many met one of an equal id (``together``)."""
        lists = {name: getattr(self, name) for name in ("surplus", "alone", "short")}
        return {**{name: len(rows) for name, rows in lists.items()}, "together": self.together}


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
    surplus: Surplus = "drop",
) -> Grouping:
    """Batches of ``batch_size / cluster_size`` communities drawn without replacement (B3, section 3).

    A community that is short takes rows from the one drawn last, so that no other batch cuts a community in
    two and only the last batch (of each data set) is short. Where that would be of one row, which has no negative, it
    takes another from the batch before.

    Args:
        clusters: int[N], community of each row, of ``cluster_size`` rows; others are joined and cut to it.
        batch_size: a multiple of ``cluster_size``.
        cluster_size: K.
        seed, epoch: equal pairs give equal plans; (0, 1) and (1, 0) differ.
        apart: int64[c, N], as :func:`curation.selectors.b3.conflict_columns` gives them.
        datasets: int[N]; a batch holds rows of one data set only.
        last: whether short batches stay (at the end) or go.
        surplus: what becomes of rows that cannot be kept apart, as :class:`B3`'s.

    Returns:
        Grouping: all N rows are in its plan or in one of its lists. The plan says what its batches promise, in
        ``apart`` and ``datasets``, for whoever joins some of them.

    Raises:
        ValueError: an option is not allowed; or, with ``surplus="error"``, rows cannot be kept apart.
    """
    labels = np.asarray(clusters, np.int64)
    if cluster_size < 1 or batch_size < 1 or batch_size % cluster_size:
        raise ValueError(f"batch_size must be a multiple of cluster_size, not {batch_size} with {cluster_size}")
    check_choices(last, surplus)
    sets = _dense(datasets)
    parts = list(by_dataset(sets, len(labels))) if len(labels) else []
    batches: list[Int64] = []
    out: dict[str, list[Int64]] = {"surplus": [], "alone": [], "short": []}
    given = np.full(len(labels), -1, np.int64)
    for part, members in enumerate(parts):
        rng = np.random.default_rng((seed, epoch, part))
        rows = members[_draw(labels[members], cluster_size, rng)]
        sizes = batch_sizes(len(rows), batch_size, last)
        given[rows[: sizes.sum()]] = np.repeat(np.arange(len(sizes)), sizes)
        found = Arrangement(batches=given[members], surplus=np.empty(0, np.int64))
        if apart is not None:
            found = arrange(given[members], sizes, apart[:, members], rng, allow=surplus == "allow")
        if surplus == "error":
            _refuse(found, members, len(sizes))
        given[members] = found.batches
        out["surplus"].append(members[found.surplus])
        over = members[found.batches < 0]
        out["short" if last == "drop" else "alone"].append(np.setdiff1d(over, out["surplus"][-1]))
        rows = rows[given[rows] >= 0]
        rows = rows[np.argsort(given[rows], kind="stable")]
        batches += np.split(rows, np.flatnonzero(np.diff(given[rows])) + 1) if len(rows) else []
    full = [batch for batch in batches if len(batch) == batch_size]
    short = [batch for batch in batches if len(batch) < batch_size]
    if last == "drop":
        out["short"] += short
        short = []
    order = np.arange(len(full))
    if len(parts) > 1:
        order = np.random.default_rng((seed, epoch, len(parts))).permutation(len(full))
    chosen = [full[i] for i in order] + short
    indices = np.concatenate([np.empty(0, np.int64), *chosen])
    offsets = np.cumsum([0, *(len(batch) for batch in chosen)], dtype=np.int64)
    plan = BatchPlan(
        indices=indices, offsets=offsets, clusters=labels[indices], apart=_ids_of_rows(apart, indices),
        datasets=None if sets is None else sets[indices[offsets[:-1]]],
    )  # fmt: skip
    left_out = {name: np.sort(np.concatenate([np.empty(0, np.int64), *rows])) for name, rows in out.items()}
    together = 0
    if apart is not None and surplus == "allow":
        batch_of = np.full(len(labels), -1, np.int64)
        batch_of[indices] = np.repeat(np.arange(len(plan)), np.diff(offsets))
        together = count_together(batch_of, apart)
    return Grouping(plan=plan, together=together, **left_out)


def foresee(
    count: int,
    *,
    batch_size: int,
    apart: Int64 | None = None,
    datasets: npt.ArrayLike | None = None,
    last: Last = "keep",
    surplus: Surplus = "drop",
) -> None:
    """Find out, before anything is searched, which rows no epoch can take, and warn of them.

    What this finds an arrangement for, :func:`regroup` does in every epoch. Arguments as there; N is ``count``.

    Raises:
        ValueError: with ``surplus="error"``, some rows cannot be kept apart.
    """
    unseen: list[Int64] = []
    for rows in by_dataset(_dense(datasets), count) if count else ():
        sizes = batch_sizes(len(rows), batch_size, last)
        if len(sizes) == 0:
            unseen.append(rows)
        elif apart is not None:
            given = np.full(len(rows), -1, np.int64)
            given[: sizes.sum()] = np.repeat(np.arange(len(sizes)), sizes)
            found = arrange(given, sizes, apart[:, rows], np.random.default_rng(0), trial=True)
            if surplus == "error":
                _refuse(found, rows, len(sizes))
            elif len(found.surplus):
                fate = "are left out of each epoch" if surplus == "drop" else "clash with others in each epoch"
                log.warning("%s: about %d %s", _why(found, rows, len(sizes)), len(found.surplus), fate)
    if unseen:
        log.warning(
            "no epoch sees data sets of %s: %d, of %d rows in all (row %d is one)",
            "one row, which has no negative" if last == "keep" else f"fewer rows than a batch of {batch_size}",
            len(unseen), sum(len(rows) for rows in unseen), unseen[0][0],
        )  # fmt: skip


def batch_sizes(count: int, batch_size: int, last: Last) -> Int64:
    """int64[B], the sizes of a data set's batches: of all rows, or of all but one that nobody is left for."""
    full, rest = divmod(count, batch_size)
    sizes = np.full(full, batch_size, np.int64)
    if last == "drop" or rest == 0:
        return sizes
    if rest == 1 and full and batch_size > 2:
        # A batch of one row has no negative.
        sizes[-1] -= 1
        rest = 2
    return np.append(sizes, rest) if rest > 1 else sizes


def check_choices(last: str, surplus: str) -> None:
    """Raise ``ValueError`` unless both are known."""
    for name, value, known in (("last", last, LAST), ("surplus", surplus, SURPLUS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def _dense(datasets: npt.ArrayLike | None) -> Int64 | None:
    return None if datasets is None else np.unique(np.asarray(datasets), return_inverse=True)[1].astype(np.int64)


def _ids_of_rows(apart: Int64 | None, indices: Int64) -> Int64:
    # Pairs (row of the plan, id), as a BatchPlan has them in `apart`.
    if apart is None:
        return np.empty((0, 2), np.int64)
    of_rows = apart[:, indices].T
    rows, column = np.nonzero(of_rows >= 0)
    return np.stack([rows, of_rows[rows, column]], axis=1)


def _why(found: Arrangement, rows: Int64, batches: int) -> str:
    if found.most > batches:
        one = rows[found.example]
        return f"{found.most} rows must be kept apart (row {one} is one), but there are {batches} batches"
    one = rows[found.surplus[0]]
    return f"{len(found.surplus)} rows cannot be kept apart from others (row {one} is one) in {batches} batches"


def _refuse(found: Arrangement, rows: Int64, batches: int) -> None:
    if len(found.surplus):
        raise ValueError(
            f"{_why(found, rows, batches)}: use smaller batches, drop or merge rows that share an id, "
            'or choose surplus "drop" or "allow"'
        )


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
