"""Arrangement of rows in batches, such that rows that must not meet do not; what has no place is set aside.

Rows without a clash stay in their batches as far as they can, so that communities hold. The search is for rows that
share an id with another one only, and starts from those that clash; see :mod:`curation.selectors.b3.chains` for what
a look at one costs. Where it leaves rows over it starts anew from empty batches, the commonest ids first. With ids in
one column it finds an arrangement wherever there is one; with more that is as hard as colouring graphs, and it finds
one nearly always. Memory is O(c·M + B) for M rows, c columns and B batches.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curation.selectors.b3.chains import (
    Places,
    close,
    move,
    place_all,
    place_roomiest,
    places_of,
    relieve,
    settle,
)
from curation.selectors.b3.conflicts import shared_ids

Int64 = npt.NDArray[np.int64]

RESTARTS = 4
# What may be spent where a row finds no place, in looks at a row or a batch: on starting anew; and on throwing others
# out, for each row and batch and in all.
RESTART_WORK, MOVE_WORK, MOST_MOVE_WORK = 2_000_000_000, 4_000, 50_000_000


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrangement:
    """Where each row goes.

    Args:
        batches: int64[M], -1 for a row that is left out.
        surplus: int64, rising, those left out because they could not be kept apart from others.
        most, example: how many rows share the commonest id, and one of them; 0 and -1 where no id is shared.
    """

    batches: Int64
    surplus: Int64
    most: int = 0
    example: int = -1


def arrange(
    given: Int64,
    sizes: Int64,
    columns: Int64,
    rng: np.random.Generator,
    *,
    allow: bool = False,
    trial: bool = False,
) -> Arrangement:
    """Arrange rows in batches.

    Args:
        given: int64[M], the batch that each row comes from; -1 for rows that are over, and take places that are free.
        sizes: int64[B], rows of each batch.
        columns: int64[c, M], ids of the rows, as :func:`curation.selectors.b3.conflict_columns` gives them.
        rng: of the draws.
        allow: let rows without a place meet those of an equal id, in the batches that they come from.
        trial: use neither ``given`` nor ``rng``: where a trial leaves no surplus, whatever these are leaves none.
    """
    ids = shared_ids(columns)
    named = np.flatnonzero((ids >= 0).any(0))
    if len(sizes) == 0 or len(named) == 0:
        return Arrangement(batches=given, surplus=np.empty(0, np.int64))
    search = _Search(ids[:, named].T, sizes, len(given))
    places, left = search.best(None if trial else (given[named], rng))
    filling = np.ones(len(given), bool)
    filling[named] = False
    if allow:
        filling[named[left]] = True
    batches = np.full(len(given), -1, np.int64)
    quota = _quota(places, int(filling.sum()))
    batches[named] = places.rows["batch"]
    _fill(batches, given, rng.permutation(np.flatnonzero(filling)), quota)
    # Of the rows that are left out, those that were over are no surplus.
    out = np.flatnonzero(batches < 0)
    surplus = out[np.lexsort((given[out] < 0, filling[out]))][: max(0, len(out) - np.count_nonzero(given < 0))]
    commonest = search.counts.argmax()
    return Arrangement(
        batches=batches,
        surplus=np.sort(surplus),
        most=int(search.counts[commonest]),
        example=int(np.flatnonzero((ids == commonest).any(0))[0]),
    )


class _Search:
    """The search for places of the rows that share ids, which are numbered from 0.

    Args:
        ids: int64[M', c].
        sizes: int64[B].
        rows: M, those that share no id included.
    """

    def __init__(self, ids: Int64, sizes: Int64, rows: int) -> None:
        self.ids, self.sizes, self.rows = ids, sizes, rows
        self.counts = np.bincount(ids[ids >= 0])
        self.room = min(int(sizes.sum()), rows)

    def missing(self, placed: int) -> int:
        """Rows that the batches lack where so many have places."""
        return max(0, self.room - placed - (self.rows - len(self.ids)))

    def best(self, first: tuple[Int64, np.random.Generator] | None) -> tuple[Places, Int64]:
        """The state that lacks the fewest rows, and int64, rows without a place that might fill it.

        ``first`` are the batches that the rows come from, and the generator, of a first attempt. The others are the
        same whatever it is, so that what is found without it is always found.
        """
        least = self._least()
        work = len(self.ids) * len(self.sizes)
        restarts = int(np.clip(RESTART_WORK // work, 1, RESTARTS)) if least == 0 or first is None else 0
        best: tuple[int, Places, Int64] | None = None
        for attempt in range(-1 if first else 0, 2 * restarts):
            if attempt < 0 and first is not None:
                given, rng = first
            else:
                rng = np.random.default_rng((attempt, 5))
                positions = rng.permutation(self.rows)[: len(self.ids)]
                given = np.searchsorted(np.cumsum(self.sizes), positions, "right")
                given[given == len(self.sizes)] = -1
            places, left = self._attempt(given, rng, least, anew=attempt % 2 == 1 and attempt > 0)
            missing = self.missing(len(self.ids) - int((places.rows["batch"] < 0).sum()))
            if best is None or missing < best[0]:
                best = missing, places, left[:missing]
            if missing <= least:
                break
        assert best is not None
        return best[1:]

    def _least(self) -> int:
        """How many rows the batches lack at least, as each column says by itself (max-flow min-cut)."""
        rising = np.append(0, np.cumsum(np.sort(self.sizes)))[::-1]
        least = 0
        for column in self.ids.T:
            counts = np.bincount(np.bincount(column[column >= 0]), minlength=len(self.sizes) + 2)
            # Of each id at most one row for each of the k largest batches, and what the others hold.
            within = np.cumsum(np.append(0, np.cumsum(counts[::-1])[::-1][1:]))[: len(self.sizes) + 1]
            least = max(least, self.missing(int((rising + within).min()) + int((column < 0).sum())))
        return least

    def _attempt(self, given: Int64, rng: np.random.Generator, least: int, *, anew: bool) -> tuple[Places, Int64]:
        # Rows without which no id has more rows than there are batches.
        aside = relieve(self.ids, self.counts - len(self.sizes), rng.permutation(len(self.ids)))
        places = places_of(np.where(aside[:, None], -1, self.ids), self.sizes, int(rng.integers(0, 2**63)))
        order = rng.permutation(np.flatnonzero(~aside))
        spare, order = order[given[order] < 0], order[given[order] >= 0]
        if anew:
            commonest = np.where(self.ids[order] >= 0, self.counts[self.ids[order]], 0).max(1)
            order = order[np.argsort(-commonest, kind="stable")]
            left = place_roomiest(places, order, rng.permutation(len(self.sizes)))
        else:
            order = order[np.argsort(given[order], kind="stable")]
            left = rng.permutation(settle(places, given, order))
        left = place_all(places, left, 0, 0)
        placed = len(order) - len(left)
        while self.missing(placed) and len(spare):
            some, spare = np.split(spare, [self.missing(placed)])
            placed += len(some) - len(place_all(places, some, 0, 0))
        if self.missing(placed) > least and len(left):
            work = min(MOVE_WORK * (len(self.ids) + len(self.sizes)), MOST_MOVE_WORK)
            left = place_all(places, left, max(0, len(left) - self.missing(placed) + least), work)
        return places, np.concatenate([left, np.flatnonzero(aside)])


def _fill(batches: Int64, given: Int64, rows: Int64, quota: Int64) -> None:
    """Put rows into the batches that they come from, as many as each takes, and the others where there are too few.

    Args:
        batches: int64[M], is changed.
        given: int64[M], -1 for rows that were over: they come last.
        rows: int64, which of them, the first of a batch first.
        quota: int64[B], how many each batch takes.
    """
    rows = rows[np.argsort(given[rows], kind="stable")]
    homes = given[rows]
    rank = np.arange(len(rows)) - np.searchsorted(homes, homes)
    stays = (homes >= 0) & (rank < quota[homes])
    batches[rows[stays]] = homes[stays]
    others = np.concatenate([rows[(homes >= 0) & ~stays], rows[homes < 0]])
    left = np.repeat(np.arange(len(quota)), quota - np.bincount(homes[stays], minlength=len(quota)))
    batches[others[: len(left)]] = left[: len(others)]


def _quota(places: Places, free: int) -> Int64:
    """int64[B], how many of the other rows each batch takes: the first are filled, and none is of one row."""
    sizes, load, base = (places.batches[name] for name in ("size", "load", "base"))
    # So that all epochs have as many batches, each gets two rows first: where one is there already before others.
    wants = np.maximum(np.minimum(sizes, 2) - load, 0)
    order = np.argsort(load == 0, kind="stable")
    order = order[np.cumsum(wants[order]) <= free]
    quota = np.zeros(len(sizes), np.int64)
    quota[order] = wants[order]
    free -= int(quota.sum())
    alone = np.flatnonzero((load == 1) & (quota == 0) & (sizes > 1))
    if len(alone):
        rows = places.slots[base[alone]]
        close(places, alone)
        place_all(places, rows, 0, 0)
    room = sizes - load - quota
    before = np.cumsum(room) - room
    quota += np.clip(free - before, 0, room)
    for batch in np.flatnonzero((load + quota == 1) & (sizes > 1)):
        roomy = np.flatnonzero(load + quota > 2)
        lending = roomy[quota[roomy] > 0]
        if len(lending):
            quota[lending[-1]] -= 1
            quota[batch] += 1
        elif len(roomy):
            move(places, places.slots[base[roomy[-1]]], batch)
        else:
            quota[batch] = 0
    return quota
