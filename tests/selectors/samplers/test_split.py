"""The rule by which an epoch is split among ranks."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation.selectors.samplers.batch_split import REMAINDERS, BatchSplit, Remainder, SharedBatchSplit
from curation.selectors.samplers.split import RowSplit, Split


def rows_of(split: Split) -> list[list[list[int]]]:
    """The rows of each rank at each step; checks that positions go along with them."""
    steps, position = [], split.start
    for step in range(split.steps):
        steps.append([list(range(*split.span(rank, step))) for rank in range(split.world_size)])
        assert position < split.end(step) or split.rows == 0
        position = split.end(step)
    return steps


def check_shares(split: Split, steps: list[list[list[int]]], *, repeats: bool = False) -> None:
    """No row is lost or comes twice, and no rank gets an empty batch, where there are enough rows."""
    flat = [row for ranks in steps for batch in ranks for row in batch]
    everything = list(range(split.rows - split.remaining, split.rows))
    assert set(flat) <= set(everything)
    if repeats or (split.scarce and split.start > 0):
        assert set(flat) == set(everything)
    else:
        assert flat == everything[: len(flat)]
    if not split.scarce or split.start > 0:
        assert all(batch for ranks in steps for batch in ranks)


@settings(deadline=None, max_examples=500)
@given(
    rows=st.integers(0, 300),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 9),
    drop_last=st.booleans(),
    start=st.integers(0, 300),
    together=st.booleans(),
)
def test_rows(rows: int, batch_size: int, world_size: int, drop_last: bool, start: int, together: bool) -> None:
    start = min(start, rows)
    batch_size += world_size if together else 0
    split = RowSplit(rows, batch_size, world_size, drop_last, start, together)
    steps = rows_of(split)
    flat = [row for ranks in steps for batch in ranks for row in batch]
    stride = batch_size if together else batch_size * world_size
    remaining = rows - start
    check_shares(split, steps)
    if drop_last and (remaining >= stride or start > 0):
        assert flat == list(range(start, start + remaining // stride * stride))
    else:
        assert set(flat) == set(range(start, rows))
    sizes = [[len(batch) for batch in ranks] for ranks in steps]
    assert all(max(ranks) - min(ranks) <= 1 for ranks in sizes)
    assert all(sum(ranks) == stride for ranks in sizes[:-1])
    assert sum(sizes[-1]) < stride + world_size if sizes else start > 0
    assert split.scarce == bool(steps and remaining < world_size)
    unions = [split.step_span(step) for step in range(split.steps)]
    assert split.fewest == min((stop - first for first, stop in unions), default=0)


@settings(deadline=None, max_examples=500)
@given(
    sizes=st.lists(st.integers(1, 12), max_size=30),
    world_size=st.integers(1, 9),
    remainder=st.sampled_from(REMAINDERS),
    start=st.integers(0, 30),
)
def test_batches(sizes: list[int], world_size: int, remainder: Remainder, start: int) -> None:
    start = min(start, len(sizes))
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    split = BatchSplit(offsets, world_size, remainder, start)
    steps = rows_of(split)
    batches = [list(range(first, stop)) for first, stop in pairwise(offsets.tolist())][start:]
    full, rest = divmod(len(batches), world_size)
    if remainder == "drop":
        assert len(steps) == (full or int(start == 0 and rest > 0))
        check_shares(split, steps)
        assert [batch for ranks in steps for batch in ranks][: full * world_size] == batches[: full * world_size]
        return
    assert len(steps) == -(-len(batches) // world_size)
    if remainder == "repeat":
        assert [batch for ranks in steps for batch in ranks][: len(batches)] == batches
        assert all(batch in batches for ranks in steps for batch in ranks)
        assert not split.scarce
        return
    tail = sum(map(len, batches[full * world_size :]))
    shared = 0 if rest == 0 else 1 if tail >= world_size or full == 0 else 2
    whole = len(steps) - shared
    assert [batch for ranks in steps[:whole] for batch in ranks] == batches[: whole * world_size]
    check_shares(split, steps, repeats=shared == 2 and any(len(rows) < world_size for rows in map(flat, steps[-2:])))
    assert set(flat(flat(steps))) == set(flat(batches))
    inside = [set(batch) for batch in batches]
    assert all(any(set(batch) <= one for one in inside) for ranks in steps for batch in ranks), "two batches mix"
    for ranks in steps[whole:]:
        # The largest share is as small as ranks that take no rows of two batches can make it.
        sizes = [len(one & set(flat(ranks))) for one in inside]
        largest = max(map(len, ranks))
        assert largest == 1 or sum(-(-size // (largest - 1)) for size in sizes) > world_size


def flat(lists: list[list[Any]]) -> list[Any]:
    return [item for items in lists for item in items]


@settings(deadline=None, max_examples=500)
@given(
    sizes=st.lists(st.sampled_from([1, 1, 1, 2, 30]), min_size=1, max_size=24),
    world_size=st.integers(1, 9),
    remainder=st.sampled_from(REMAINDERS[:2]),
    taken=st.integers(0, 8),
)
@example([30, 30, 1, 1, 1, 1, 1], 4, "share", 1)
def test_the_rest_of_a_split_is_what_the_whole_would_have_gone_on_with(
    sizes: list[int], world_size: int, remainder: Remainder, taken: int
) -> None:
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    split = BatchSplit(offsets, world_size, remainder)
    taken = min(taken, split.steps)
    if split.scarce or taken == 0:
        return
    rest = BatchSplit(offsets, world_size, remainder, split.end(taken - 1))
    assert rows_of(rest) == rows_of(split)[taken:]


def test_batches_whose_last_has_fewer_rows_than_ranks() -> None:
    """The last two steps are halved at a batch, so that positions stay whole batches."""
    split = BatchSplit(np.array([0, 3, 6, 9, 11]), world_size=3)
    assert rows_of(split) == [[[0], [1, 2], [3, 4, 5]], [[6], [7, 8], [9, 10]]]
    assert [split.end(step) for step in range(2)] == [2, 4]
    rest = BatchSplit(split.offsets, world_size=2, start=2)
    assert rows_of(rest) == [[[6, 7, 8], [9, 10]]]


def test_no_half_has_more_batches_than_ranks() -> None:
    """Rows alone would put six batches into the second half: two steps of theirs, and an epoch longer by one."""
    split = BatchSplit(np.array([0, 30, 60, 61, 62, 63, 64, 65]), world_size=4)
    assert rows_of(split)[-1] == [[61], [62], [63], [64]]
    assert BatchSplit(split.offsets, 4, start=split.end(0)).steps == 1


@settings(deadline=None)
@given(st.permutations([1, 2, 3, 3, 3, 3, 3]), st.integers(1, 9))
def test_the_order_of_a_plan_does_not_change_how_many_steps_an_epoch_has(sizes: list[int], world_size: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    assert BatchSplit(offsets, world_size).steps == -(-7 // world_size)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    world_size=st.integers(1, 9),
    start=st.integers(0, 29),
)
def test_shared_batches(sizes: list[int], world_size: int, start: int) -> None:
    start = min(start, len(sizes) - 1)
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    even = rows_of(SharedBatchSplit(offsets, world_size, start, even=True))
    assert [[len(batch) for batch in ranks] for ranks in even] == [
        [size // world_size] * world_size for size in sizes[start:]
    ]
    split = SharedBatchSplit(offsets, world_size, start)
    steps = rows_of(split)
    assert [[row for batch in ranks for row in batch] for ranks in steps] == [
        list(range(offsets[batch], offsets[batch + 1])) for batch in range(start, len(sizes))
    ]
    assert split.fewest == min(sizes[start:])


def test_the_example_of_the_docs_prints_what_it_says() -> None:
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    section = text.partition("## How an epoch is split among ranks")[2]
    code, printed = re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)[:2]
    output = io.StringIO()
    with redirect_stdout(output):
        exec(code, {})
    assert output.getvalue() == printed


def test_the_rule_needs_nothing_heavy() -> None:
    code = (
        "import sys, curation.selectors.samplers.batch_split, curation.selectors.samplers.plan_order\n"
        "assert not {'torch', 'numba', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
