"""Conflict columns against comparisons of all pairs, within a column and across two."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.graph import build_graph
from curation.selectors.b3.conflicts import conflict_columns, conflict_pairs, count_together, separate_clusters


def plain(apart: Any, across: Any) -> Any:
    """bool[N, N]: whether two rows must not meet."""
    count = len(across[0])
    out = np.zeros((count, count), bool)
    pairs = [(column, column) for column in np.asarray(apart).T]
    pairs += [(mine, theirs) for mine in across for theirs in across]
    for mine, theirs in pairs:
        out |= (mine[:, None] == theirs[None]) & (mine[:, None] >= 0)
    np.fill_diagonal(out, False)
    return out


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(0, 2), st.integers(1, 30))
def test_columns_and_pairs_say_who_must_not_meet(seed: int, count: int, kinds: int, names: int) -> None:
    rng = np.random.default_rng(seed)
    apart, across = rng.integers(-1, names, (count, kinds)), rng.integers(-1, names, (2, count))
    columns = conflict_columns(apart, count, across=(across[0], across[1]))
    expected = plain(apart, across)
    found = np.zeros((count, count), bool)
    for mine, theirs in conflict_pairs(columns):
        found |= (mine[:, None] == theirs[None]) & (mine[:, None] >= 0)
    np.fill_diagonal(found, False)
    assert (found == expected).all()
    batches = rng.integers(-1, 4, count)
    together = (batches[:, None] == batches[None]) & (batches[:, None] >= 0) & expected
    assert (0 if columns is None else count_together(batches, columns)) == np.count_nonzero(together.any(1))


def test_ids_of_two_columns_are_of_two_kinds() -> None:
    columns = conflict_columns([[4, 9], [7, 4], [4, 4]], 3)
    assert columns is not None
    assert columns.tolist() == [[0, -1, 0], [-1, 1, 1]]
    assert conflict_columns([[4, 9], [9, 4]], 2) is None
    with pytest.raises(ValueError, match=r"shape \[3\] or \[3, c\], not \(2,\)"):
        conflict_columns([1, 1], 3)
    with pytest.raises(ValueError, match="across must be two columns of ids of shape"):
        conflict_columns(None, 3, across=([1, 2, 3], [1, 2]))


def test_clusters_are_separated_as_far_as_it_goes() -> None:
    rng = np.random.default_rng(0)
    graph = build_graph((np.arange(200)[:, None] + np.array([-2, -1, 1, 2])) % 200)
    clusters = np.arange(200) // 8
    columns = conflict_columns(None, 200, across=(rng.integers(-1, 150, 200), rng.integers(-1, 150, 200)))
    assert columns is not None
    assert count_together(clusters, columns) > 0
    separated = separate_clusters(clusters, columns, graph)
    assert np.bincount(separated).tolist() == [8] * 25
    assert count_together(separated, columns) == 0
    assert np.count_nonzero(separated == clusters) > 150
