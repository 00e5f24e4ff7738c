"""Rank windows against plain ones, and what they say of the searches that made them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.gpu.knn import search
from curation.selectors.b3 import B3, rank_window
from curation.selectors.b3.ranking import join_metadata


def vectors(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


def test_a_plan_is_exact_only_where_every_search_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(search, "EXACT_ON_CPU", 500)
    rows = vectors(900)
    # The first goes by IVF, and not the last.
    datasets = (np.arange(900) >= 800).astype(np.int64)
    alone = rank_window(rows[:800], rows[:800], ranks=(2, 12)).metadata
    assert alone["exact"] == "false"
    plan = B3(batch_size=16, cluster_size=8, ranks=(2, 12)).plan(rows, rows, datasets=datasets)
    found = {name: plan.metadata[name] for name in ("engine", "exact", "recall", "nlist")}
    assert found == {**found, "engine": "faiss-ivf, torch-cpu", "exact": "false", "nlist": alone["nlist"]}
    assert float(found["recall"]) == pytest.approx(float(alone["recall"]), abs=0.05)


SEARCHES = st.lists(
    st.one_of(
        st.just({"engine": "torch-cpu", "exact": "true"}),
        st.builds(
            lambda recall, nlist: {
                "engine": "faiss-ivf", "exact": "false", "recall": f"{recall:.4f}", "nlist": str(nlist)
            },
            st.floats(0, 1), st.integers(1, 99),
        ),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(SEARCHES, st.integers(0, 6))
def test_metadata_of_searches_is_what_is_true_of_all(searches: list[dict[str, str]], cut: int) -> None:
    found = join_metadata(searches)
    assert (found["exact"] == "true") == all(search["exact"] == "true" for search in searches)
    assert set(found["engine"].split(", ")) == {search["engine"] for search in searches}
    recalls = [float(search["recall"]) for search in searches if "recall" in search]
    assert float(found.get("recall", 2)) == min(recalls, default=2)
    # In whatever order and groups they are joined: workers join theirs first.
    assert join_metadata([join_metadata(searches[cut:]), join_metadata(searches[:cut])]) == found
