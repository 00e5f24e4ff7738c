"""Chains of moves that find places in batches for rows that must not meet: the compiled loops of an arrangement.

A row without a place goes where no row shares an id with it. Where there is no room, one goes on from there; where
every batch clashes, the rows in the way change places with those of a second batch, these with the next in their way,
and so on (the alternating paths by which König colours the edges of a bipartite graph: with ids in two columns and no
want of room they end well). Where that fails too, the row takes the place of those in the way, which look for another
and may not come back for a while (PartialCol: Blöchliger and Zufferey, Computers & Operations Research 35, 2008).

A look at one row costs O(B + r) for B batches and r rows that share its ids; a chain, r for each row in it.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curation.gpu.compiled import compiled
from curation.gpu.random.cpu import number

Int64 = npt.NDArray[np.int64]

# Batches tried where each leads on: for rows to move to, and for chains of swaps from one and to another.
SPREADS, FROM, TO = 16, 12, 12
# Batches tried for a row before all of them are looked at.
GUESSES = 8
# Rows without a place that are weighed against each other before others are thrown out for one.
WEIGHED = 8


class Places(NamedTuple):
    """The rows with ids, and where each stands. Only the compiled loops change it.

    Args:
        ids: int64[M, c], ids 0..; -1 for none.
        starts, members: int64, the rows of id i are ``members[starts[i]:starts[i + 1]]``.
        rows: records[M]: ``batch`` (-1 for none) and ``place`` in it; notes on the chain that it is ``queued`` in, and
            on the batch that it is ``barred`` from ``until`` which move.
        batches: records[B]: ``size``, the ``load`` that it holds, in ``slots`` from ``base`` on; notes on who clashes.
        slots: int64, the rows of batch after batch.
        queue, rivals: int64[M], the rows of a chain, and those that it begins with.
        state: int64[4], key and counter of the random numbers, the latest note's number, the work done.
    """

    ids: Int64
    starts: Int64
    members: Int64
    rows: npt.NDArray[np.void]
    batches: npt.NDArray[np.void]
    slots: Int64
    queue: Int64
    rivals: Int64
    state: Int64


ROW = np.dtype([(name, np.int64) for name in ("batch", "place", "queued", "barred", "until")])
BATCH = np.dtype([(name, np.int64) for name in ("size", "load", "base", "clashes", "seen", "absent")])
KEY, COUNTER, CLOCK, WORK = range(4)


def places_of(ids: Int64, sizes: Int64, key: int) -> Places:
    """Rows without any place yet.

    Args:
        ids: int64[M, c], ids 0.., each once in a row; -1 for none.
        sizes: int64[B].
        key: of the random numbers.
    """
    holders, columns = np.nonzero(ids >= 0)
    named = ids[holders, columns]
    rows, batches = np.zeros(len(ids), ROW), np.zeros(len(sizes), BATCH)
    rows["batch"] = rows["barred"] = -1
    batches["size"] = sizes
    # One more than there is room for stands in a batch for a moment.
    batches["base"] = np.cumsum(sizes + 1) - sizes - 1
    return Places(
        ids=np.ascontiguousarray(ids),
        starts=np.append(0, np.cumsum(np.bincount(named))).astype(np.int64),
        members=holders[np.argsort(named, kind="stable")].astype(np.int64),
        rows=rows,
        batches=batches,
        slots=np.zeros(int(sizes.sum()) + len(sizes), np.int64),
        queue=np.zeros(len(ids), np.int64),
        rivals=np.zeros(len(ids), np.int64),
        state=np.array([key, 0, 0, 0], np.int64),
    )


@compiled(nogil=True)
def settle(p: Any, batches: Any, order: Any) -> Any:
    """Put rows into their batches, batch after batch, but those that clash there: int64, the latter. O(c·M)."""
    left = np.empty(len(order), np.int64)
    held_by = np.full(len(p.starts) - 1, -1, np.int64)
    count = 0
    for row in order:
        target, clashes = batches[row], False
        for shared in p.ids[row]:
            clashes = clashes or (shared >= 0 and held_by[shared] == target)
        if clashes:
            left[count] = row
            count += 1
            continue
        for shared in p.ids[row]:
            if shared >= 0:
                held_by[shared] = target
        _put(p, row, target)
    return left[:count]


@compiled(nogil=True)
def move(p: Any, row: Any, target: Any) -> None:
    """Put a row elsewhere."""
    _take(p, row)
    _put(p, row, target)


@compiled(nogil=True)
def place_all(p: Any, pool: Any, goal: Any, work: Any) -> Any:
    """Find places for rows: int64, those that found none.

    While more than ``goal`` are left and ``work`` allows (0: not at all), others are thrown out for one of them. The
    state that leaves the fewest over is the one that stays.
    """
    waiting = np.empty(len(p.rows), np.int64)
    count = 0
    for row in pool:
        if not _insert(p, row):
            waiting[count] = row
            count += 1
    left, best = waiting[:count].copy(), np.empty(len(p.rows), np.int64)
    for row in range(len(p.rows)):
        best[row] = p.rows[row].batch
    p.state[WORK] = 0
    turn = 0
    while count > goal and p.state[WORK] < work:
        turn += 1
        count = _throw_out(p, waiting, count, turn)
        kept = 0
        for i in range(count):
            # Those that wait for longer are tried now and then only.
            if (count - i > WEIGHED and turn % WEIGHED) or not _insert(p, waiting[i]):
                waiting[kept] = waiting[i]
                kept += 1
        count = kept
        if count < len(left):
            left = waiting[:count].copy()
            for row in range(len(p.rows)):
                best[row] = p.rows[row].batch
    if count == len(left):
        # Others may wait by now, as many of them.
        return waiting[:count].copy()
    for row in range(len(best)):
        if p.rows[row].batch >= 0:
            _take(p, row)
    for row in range(len(best)):
        if best[row] >= 0:
            _put(p, row, best[row])
    return left


@compiled(nogil=True)
def place_roomiest(p: Any, order: Any, shuffle: Any) -> Any:
    """Put each row where most room is among the batches without a clash (``shuffle`` says which comes first of equal).

    With ids in one column and the commonest id first, this succeeds wherever anything can (Gale and Ryser). int64,
    the rows that find no place so.
    """
    left = np.empty(len(order), np.int64)
    count = 0
    for row in order:
        clock = _mark(p, row)
        best, most = -1, 0
        for target in shuffle:
            room = p.batches[target].size - p.batches[target].load
            if p.batches[target].seen != clock and room > most:
                best, most = target, room
        if best >= 0:
            _put(p, row, best)
        else:
            left[count] = row
            count += 1
    return left[:count]


@compiled(nogil=True)
def close(p: Any, batches: Any) -> None:
    """Take all rows out of some batches, which take no more."""
    for target in batches:
        p.batches[target].size = 0
        while p.batches[target].load:
            _take(p, p.slots[p.batches[target].base])


@compiled(nogil=True)
def relieve(ids: Any, excess: Any, order: Any) -> Any:
    """bool[M], rows without which no id has an excess of rows: those first that relieve the most ids at once.

    Args:
        ids: int64[M, c], ids 0..; -1 for none.
        excess: int64, how many rows each id has too many.
        order: int64[M], which rows are asked first.
    """
    aside = np.zeros(len(ids), np.bool_)
    for least in range(ids.shape[1], 0, -1):
        for row in order:
            relieved = 0
            for shared in ids[row]:
                relieved += shared >= 0 and excess[shared] > 0
            if relieved >= least and not aside[row]:
                aside[row] = True
                for shared in ids[row]:
                    if shared >= 0:
                        excess[shared] -= 1
    return aside


@compiled(nogil=True)
def _below(p: Any, end: Any) -> Any:
    # A random number of 0 to end - 1.
    p.state[COUNTER] += 1
    return np.int64(number(np.uint64(p.state[KEY]), p.state[COUNTER]) % np.uint64(end))


@compiled(nogil=True)
def _put(p: Any, row: Any, target: Any) -> None:
    p.rows[row].batch = target
    p.rows[row].place = p.batches[target].load
    p.slots[p.batches[target].base + p.batches[target].load] = row
    p.batches[target].load += 1


@compiled(nogil=True)
def _take(p: Any, row: Any) -> None:
    source = p.rows[row].batch
    p.batches[source].load -= 1
    last = p.slots[p.batches[source].base + p.batches[source].load]
    p.slots[p.batches[source].base + p.rows[row].place] = last
    p.rows[last].place = p.rows[row].place
    p.rows[row].batch = -1


@compiled(nogil=True)
def _fits(p: Any, row: Any, target: Any) -> Any:
    sharing = 0
    for shared in p.ids[row]:
        if shared >= 0:
            sharing += p.starts[shared + 1] - p.starts[shared]
    base, load = p.batches[target].base, p.batches[target].load
    if load < sharing:
        i = base
        while i < base + load and (p.slots[i] == row or not _share(p, row, p.slots[i])):
            i += 1
        return i == base + load
    for shared in p.ids[row]:
        if shared >= 0:
            for member in range(p.starts[shared], p.starts[shared + 1]):
                if p.rows[p.members[member]].batch == target and p.members[member] != row:
                    return False
    return True


@compiled(nogil=True)
def _share(p: Any, row: Any, other: Any) -> Any:
    for column in range(p.ids.shape[1]):
        if p.ids[row, column] >= 0:
            for second in range(p.ids.shape[1]):
                if p.ids[row, column] == p.ids[other, second]:
                    return True
    return False


@compiled(nogil=True)
def _spent(p: Any, row: Any) -> Any:
    # Whether one of its ids stands in every batch.
    for column in range(p.ids.shape[1]):
        shared = p.ids[row, column]
        if shared >= 0:
            placed = 0
            for member in range(p.starts[shared], p.starts[shared + 1]):
                placed += p.rows[p.members[member]].batch >= 0
            if placed >= len(p.batches):
                return True
    return False


@compiled(nogil=True)
def _mark(p: Any, row: Any) -> Any:
    # Count the clashes of a row in every batch: a batch without the mark has none.
    p.state[CLOCK] += 1
    clock = p.state[CLOCK]
    for column in range(p.ids.shape[1]):
        shared = p.ids[row, column]
        if shared >= 0:
            for member in range(p.starts[shared], p.starts[shared + 1]):
                target = p.rows[p.members[member]].batch
                if target >= 0 and p.members[member] != row:
                    if p.batches[target].seen != clock:
                        p.batches[target].seen, p.batches[target].clashes = clock, 0
                    p.batches[target].clashes += 1
            p.state[WORK] += p.starts[shared + 1] - p.starts[shared]
    p.state[WORK] += len(p.batches)
    return clock


@compiled(nogil=True)
def _chain(p: Any, count: Any, first: Any, second: Any, new: Any) -> Any:
    # From `count` rows of the queue on: all of the two batches that must change places with them. Their number, or -1
    # where one would come to `first` that clashes with the row `new`, which is to go there.
    p.state[CLOCK] += 1
    clock = p.state[CLOCK]
    for i in range(count):
        p.rows[p.queue[i]].queued = clock
    i = 0
    while i < count:
        row = p.queue[i]
        i += 1
        other = second if p.rows[row].batch == first else first
        if new >= 0 and other == first and _share(p, row, new):
            return -1
        for column in range(p.ids.shape[1]):
            shared = p.ids[row, column]
            if shared >= 0:
                for member in range(p.starts[shared], p.starts[shared + 1]):
                    found = p.members[member]
                    if p.rows[found].batch == other and p.rows[found].queued != clock:
                        p.rows[found].queued = clock
                        p.queue[count] = found
                        count += 1
                p.state[WORK] += p.starts[shared + 1] - p.starts[shared]
    return count


@compiled(nogil=True)
def _net(p: Any, count: Any, first: Any) -> Any:
    # By how many rows `first` shrinks when a chain changes places.
    leaving = 0
    for i in range(count):
        leaving += 1 if p.rows[p.queue[i]].batch == first else -1
    return leaving


@compiled(nogil=True)
def _swap(p: Any, chain: Any, first: Any, second: Any) -> None:
    for i in range(len(chain)):
        row = chain[i]
        p.rows[row].queued = second if p.rows[row].batch == first else first
        _take(p, row)
    for row in chain:
        _put(p, row, p.rows[row].queued)
        p.rows[row].queued = 0


@compiled(nogil=True)
def _with_room(p: Any) -> Any:
    # The first few batches that are not full, from any on.
    batches = len(p.batches)
    begin = _below(p, batches)
    targets = np.empty(SPREADS, np.int64)
    found = 0
    for step in range(batches):
        target = (begin + step) % batches
        if found < SPREADS and p.batches[target].load < p.batches[target].size:
            targets[found] = target
            found += 1
    return targets[:found]


@compiled(nogil=True)
def _spread(p: Any, full: Any) -> Any:
    # Lead a row on from a batch that holds one too many, to where there is room: alone, or by a chain.
    targets = _with_room(p)
    for target in targets:
        offset = _below(p, p.batches[full].load)
        for i in range(p.batches[full].load):
            row = p.slots[p.batches[full].base + (offset + i) % p.batches[full].load]
            if _fits(p, row, target):
                move(p, row, target)
                return True
    for target in targets:
        offset = _below(p, p.batches[full].load)
        for i in range(p.batches[full].load):
            p.queue[0] = p.slots[p.batches[full].base + (offset + i) % p.batches[full].load]
            count = _chain(p, 1, full, target, -1)
            if 1 <= _net(p, count, full) <= p.batches[target].size - p.batches[target].load:
                _swap(p, p.queue[:count].copy(), full, target)
                return True
    return False


@compiled(nogil=True)
def _insert(p: Any, row: Any) -> Any:
    batches = len(p.batches)
    for _ in range(GUESSES):
        target = _below(p, batches)
        if p.batches[target].load < p.batches[target].size and _fits(p, row, target):
            _put(p, row, target)
            return True
    if _spent(p, row):
        return False
    clock = _mark(p, row)
    begin = _below(p, batches)
    for step in range(batches):
        target = (begin + step) % batches
        if p.batches[target].seen != clock and p.batches[target].load < p.batches[target].size:
            _put(p, row, target)
            return True
    tried = 0
    for step in range(batches):
        target = (begin + step) % batches
        if p.batches[target].seen != clock and tried < SPREADS:
            tried += 1
            _put(p, row, target)
            if _spread(p, target):
                return True
            _take(p, row)
    tried = 0
    for fewest in (1, 2):
        for step in range(batches):
            target = (begin + step) % batches
            if p.batches[target].seen == clock and p.batches[target].clashes == fewest and tried < FROM:
                tried += 1
                if _push_in(p, row, target):
                    return True
    return False


@compiled(nogil=True)
def _push_in(p: Any, row: Any, target: Any) -> Any:
    # Those in the way go to a second batch that has none of the ids by which they are in the way.
    batches = len(p.batches)
    p.state[CLOCK] += 1
    clock = p.state[CLOCK]
    rivals = 0
    for column in range(p.ids.shape[1]):
        shared = p.ids[row, column]
        if shared < 0:
            continue
        within = False
        for member in range(p.starts[shared], p.starts[shared + 1]):
            other = p.members[member]
            if p.rows[other].batch == target and other != row:
                within = True
                known = False
                for i in range(rivals):
                    known = known or p.rivals[i] == other
                if not known:
                    p.rivals[rivals] = other
                    rivals += 1
        if within:
            for member in range(p.starts[shared], p.starts[shared + 1]):
                if p.rows[p.members[member]].batch >= 0:
                    p.batches[p.rows[p.members[member]].batch].absent = clock
    begin, tried = _below(p, batches), 0
    seeds = p.rivals[:rivals].copy()
    for step in range(batches):
        second = (begin + step) % batches
        if p.batches[second].absent == clock or tried == TO:
            continue
        tried += 1
        p.queue[:rivals] = seeds
        count = _chain(p, rivals, target, second, row)
        if count < 0:
            continue
        net = _net(p, count, target)
        over = p.batches[target].load - net + 1 - p.batches[target].size
        beyond = p.batches[second].load + net - p.batches[second].size
        if max(over, 0) + max(beyond, 0) > 1:
            continue
        chain = p.queue[:count].copy()
        _swap(p, chain, target, second)
        _put(p, row, target)
        if (over < 1 and beyond < 1) or _spread(p, target if over == 1 else second):
            return True
        _take(p, row)
        _swap(p, chain, target, second)
    return False


@compiled(nogil=True)
def _throw_out(p: Any, pool: Any, count: Any, move: Any) -> Any:
    # The cheapest of some rows and all batches: the row goes in, and whoever is in its way joins the pool's end.
    batches = len(p.batches)
    best_row, best_batch, cheapest, ties = -1, -1, 0, 0
    for _ in range(min(WEIGHED, count)):
        i = _below(p, count)
        row = pool[i]
        clock = _mark(p, row)
        for target in range(batches):
            if p.batches[target].size == 0 or (p.rows[row].barred == target and p.rows[row].until > move):
                continue
            clashes = p.batches[target].clashes if p.batches[target].seen == clock else 0
            cost = 2 * clashes if clashes else 2 * (p.batches[target].load >= p.batches[target].size)
            if best_row >= 0 and cost == cheapest:
                ties += 1
            if best_row < 0 or cost < cheapest or (cost == cheapest and _below(p, ties) == 0):
                if best_row < 0 or cost < cheapest:
                    ties = 1
                best_row, best_batch, cheapest = i, target, cost
    if best_row < 0:
        return count
    row = pool[best_row]
    count -= 1
    pool[best_row] = pool[count]
    for column in range(p.ids.shape[1]):
        shared = p.ids[row, column]
        if shared >= 0:
            for member in range(p.starts[shared], p.starts[shared + 1]):
                other = p.members[member]
                if p.rows[other].batch == best_batch:
                    count = _evict(p, other, pool, count, move)
    if p.batches[best_batch].load >= p.batches[best_batch].size:
        other = p.slots[p.batches[best_batch].base + _below(p, p.batches[best_batch].load)]
        count = _evict(p, other, pool, count, move)
    _put(p, row, best_batch)
    return count


@compiled(nogil=True)
def _evict(p: Any, row: Any, pool: Any, count: Any, move: Any) -> Any:
    p.rows[row].barred = p.rows[row].batch
    p.rows[row].until = move + 2 + _below(p, 10) + (6 * count) // 10
    _take(p, row)
    pool[count] = row
    return count + 1
