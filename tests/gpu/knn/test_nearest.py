"""nearest against the host's exact search, which has a plain float64 reference of its own."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.knn import knn
from curation.gpu.knn import nearest as module
from curation.gpu.knn.matrix import Matrix
from curation.gpu.knn.nearest import PRODUCT_PRECISIONS, nearest, pair_scores, shorten


def rows(seed: int, count: int, width: int, *, whole: bool = False) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    # Small whole numbers: many equal scores, all of them exact in every type.
    return torch.from_numpy(np.round(2 * values) if whole else values)


def assert_ranks(found: module.Nearest, queries: Any, database: Any, **options: Any) -> None:
    expected = knn(queries, database, engine="torch-cpu", **options)
    np.testing.assert_array_equal(found.ids.cpu().numpy(), expected.indices)
    np.testing.assert_array_equal(found.scores.cpu().numpy(), expected.scores)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("precision", PRODUCT_PRECISIONS)
def test_ranks_are_exact_in_every_precision(metric: str, whole: bool, precision: Any, device: torch.device) -> None:
    queries, database = rows(0, 80, 33, whole=whole), rows(1, 700, 33, whole=whole)
    banned = torch.from_numpy(np.random.default_rng(2).integers(-1, 700, (80, 2)))
    found = nearest(
        queries.to(device), database.to(device), count=20, metric=metric, exclude=banned.to(device),
        precision=precision, memory_budget=1 << 20,
    )  # fmt: skip
    assert found.ids.device.type == device.type
    assert_ranks(found, queries, database, count=20, metric=metric, exclude=banned.numpy())


@pytest.mark.gpu
def test_the_kernels_find_the_hosts_ranks() -> None:
    database = torch.nn.functional.normalize(rows(3, 30_000, 96), dim=1)
    own = torch.arange(2_000)
    for metric in ("ip", "l2"):
        found = nearest(database[:2_000].cuda(), database.cuda(), count=50, metric=metric, exclude=own.cuda())
        assert_ranks(found, database[:2_000], database, count=50, metric=metric, exclude=own.numpy())


def test_copies_that_crowd_the_shortlist_are_searched_again() -> None:
    database = rows(4, 6, 8).repeat_interleave(90, 0)[torch.randperm(540, generator=torch.Generator().manual_seed(0))]
    for precision in ("float32", "bfloat16"):
        found = nearest(database[:30], database, count=10, precision=precision)  # type: ignore[arg-type]
        assert_ranks(found, database[:30], database, count=10)
        assert found.again[1] == 30


def test_a_precision_that_cannot_decide_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without room for error the bound must send queries on, and the result must not change.
    monkeypatch.setattr(module, "MARGIN", 1)
    queries, database = (torch.nn.functional.normalize(rows(seed, 600, 64), dim=1) for seed in (5, 6))
    found = nearest(queries, database, count=5, precision="bfloat16")
    assert_ranks(found, queries, database, count=5)
    assert found.again[0] > 60
    assert found.again[1] < found.again[0]


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 999), st.integers(1, 30), st.integers(1, 60), st.integers(1, 70), st.sampled_from(PRODUCT_PRECISIONS)
)
def test_any_shape(seed: int, queries: int, size: int, count: int, precision: Any) -> None:
    left, right = rows(seed, queries, 5, whole=True), rows(seed + 1, size, 5, whole=True)
    assert_ranks(nearest(left, right, count=count, precision=precision), left, right, count=count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pair_scores_are_the_hosts_bit_for_bit(dtype: torch.dtype, device: torch.device) -> None:
    queries, database = rows(7, 40, 37).to(dtype), rows(8, 90, 37).to(dtype)
    ids = torch.from_numpy(np.random.default_rng(9).integers(0, 90, (40, 30)))
    for l2 in (False, True):
        expected = Matrix(database, "database").score_pairs(queries.float().numpy(), ids.numpy(), l2=l2)
        found = pair_scores(queries.to(device), database.to(device), ids.to(device), l2=l2)
        np.testing.assert_array_equal(found.cpu().numpy(), expected)


def test_shortening_measures_what_it_cuts_off() -> None:
    values = rows(10, 50, 20) * torch.logspace(-3, 3, 50)[:, None]
    for precision, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        short, exponent = shorten(values, precision)  # type: ignore[arg-type]
        assert short.rows.dtype == dtype
        assert torch.isfinite(short.rows).all()
        gap = (values.double() - short.rows.double() * 2.0**-exponent).norm(dim=1)
        np.testing.assert_allclose(short.errors.numpy(), gap.numpy(), rtol=1e-4, atol=1e-9)


def test_the_search_does_not_wait_in_its_loops(
    device: torch.device, no_waits: Callable[[], AbstractContextManager[None]]
) -> None:
    queries, database = rows(11, 300, 32).to(device).half(), rows(12, 20_000, 32).to(device).half()

    def search() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if device.type == "cuda":
            ids, floor, _ = module.shortlist_filtered(queries, database, None, 60)
        else:
            ids, floor = module.shortlist_plain(queries, database, None, 60, 1 << 24)
        return ids, floor, pair_scores(queries, database, ids, l2=False)

    search()
    with no_waits():
        ids, floor, exact = search()
    assert ids.shape == exact.shape == (300, 60)
    np.testing.assert_array_equal(exact.amin(1).half().cpu().numpy(), floor.half().cpu().numpy())


def test_mistakes_are_named() -> None:
    good = rows(13, 9, 4)
    bad = good.clone()
    bad[4, 1] = torch.nan
    for message, arguments in (
        ("row 4 holds NaN", {"database": bad}),
        (r"not \(9, 4\) and \(9, 3\)", {"database": good[:, :3]}),
        ("float32, float16 or bfloat16", {"database": good.double()}),
        ("count must be at least 1", {"count": 0}),
        ("metric must be one of", {"metric": "cosine"}),
        ("precision must be one of", {"precision": "int8"}),
        ("exclude must be int64", {"exclude": torch.zeros(8, dtype=torch.int64)}),
    ):
        with pytest.raises(ValueError, match=message):
            nearest(**{"queries": good, "database": good, "count": 2, **arguments})  # type: ignore[arg-type]
