"""Stochastic acquisition against Plackett–Luce, and its promises about ties, zeros, shards and groups.

Statistical tests run at fixed seeds with an error rate of 1e-4 each, were the seed drawn at random.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from curation.gpu.topk import descending_ranks
from curation.selectors.acquisition import (
    KINDS,
    StochasticAcquisition,
    count_of,
    select_above,
    select_per_group,
)
from curation.selectors.samplers import AcquisitionSampler

ALPHA = 1e-4
Floats = npt.NDArray[np.float64]


def weights(kind: str, beta: float, scores: Floats) -> Floats:
    """The first pick's odds, as METHODS.md has them."""
    if kind == "power":
        return scores**beta
    if kind == "softmax":
        return np.exp(beta * scores)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    ranks = np.array([order.index(i) + 1.0 for i in range(len(scores))])
    return ranks**-beta


def plackett_luce(odds: Floats, k: int) -> dict[tuple[int, ...], float]:
    """The chance of every ordered outcome of k picks."""
    chances = {}
    for outcome in itertools.permutations(range(len(odds)), k):
        left, chance = float(odds.sum()), 1.0
        for index in outcome:
            chance *= odds[index] / left
            left -= odds[index]
        chances[outcome] = chance
    return chances


def fits(draw: Callable[[int], tuple[int, ...]], chances: dict[tuple[int, ...], float], draws: int) -> bool:
    seen = Counter(draw(seed) for seed in range(draws))
    assert set(seen) <= set(chances)
    observed = [seen[outcome] for outcome in chances]
    expected = [draws * chance for chance in chances.values()]
    assert min(expected) > 5
    return bool(stats.chisquare(observed, expected).pvalue > ALPHA)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_draws_are_plackett_luce(kind: str, beta: float) -> None:
    scores = np.array([0.8, 1.6, 1.1, 0.6])
    method = StochasticAcquisition(kind=kind, beta=beta)
    chances = plackett_luce(weights(kind, beta, scores), 2)
    assert fits(lambda seed: tuple(method.select(scores, 2, seed=seed).indices.tolist()), chances, 3_000)


def test_the_fit_can_fail() -> None:
    scores = np.array([0.8, 1.6, 1.1, 0.6])
    method = StochasticAcquisition(kind="power", beta=1.0)
    wrong = plackett_luce(weights("power", 1.5, scores), 2)
    assert not fits(lambda seed: tuple(method.select(scores, 2, seed=seed).indices.tolist()), wrong, 3_000)


@pytest.mark.parametrize("source", [np.random.default_rng(5), torch.Generator().manual_seed(5)])
def test_successive_draws_of_one_generator_are_plackett_luce(source: Any) -> None:
    scores = torch.tensor([0.8, 1.6, 1.1, 0.6], dtype=torch.float64)
    method = StochasticAcquisition()
    chances = plackett_luce(scores.numpy(), 3)
    assert fits(lambda _: tuple(method.draw(scores, 3, generator=source).indices.tolist()), chances, 2_500)


def test_large_pool_inclusion_matches_the_odds() -> None:
    """One pick each from 20,000 candidates by 400 seeds: the picked scores follow s's size-biased law."""
    scores = np.random.default_rng(0).random(20_000)
    picked = [
        float(StochasticAcquisition().select(scores, 1, seed=(1, seed)).scores[0])  # type: ignore[index]
        for seed in range(400)
    ]
    assert stats.kstest(picked, lambda x: np.clip(x, 0, 1) ** 2).pvalue > ALPHA


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_beta_is_top_k_with_ties_by_index(kind: str) -> None:
    scores = np.random.default_rng(0).integers(0, 7, 200).astype(np.float32)
    expected = sorted(range(200), key=lambda i: (-scores[i], i))[:50]
    chosen = StochasticAcquisition(kind=kind, beta=np.inf).select(scores, 50)
    assert chosen.indices.tolist() == expected
    np.testing.assert_array_equal(chosen.scores, scores[expected])
    near = StochasticAcquisition(kind=kind, beta=1e6).select(np.random.default_rng(1).random(200), 50, seed=0)
    assert np.all(np.diff(near.scores) < 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_zero_beta_ignores_scores(kind: str) -> None:
    scores = np.array([0.0, 0.0, 1.0, 1e9, np.inf])
    method = StochasticAcquisition(kind=kind, beta=0)
    even = method.select(np.ones(5), 5, seed=3)
    assert method.select(scores, 5, seed=3).indices.tolist() == even.indices.tolist()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 1e-320, 1e-12, 0.3, 5.0]), min_size=1, max_size=60),
    st.integers(0, 1000),
    st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_power_takes_no_zero_before_a_positive(values: list[float], seed: int, beta: float) -> None:
    scores = np.array(values)
    positives = int(np.count_nonzero(scores))
    for k in {0, positives, len(scores)}:
        chosen = StochasticAcquisition(beta=beta).select(scores, k, seed=seed).indices
        assert np.all(scores[chosen[:positives]] > 0)
        assert np.all(scores[chosen[positives:]] == 0)


def test_zeros_fill_uniformly_and_leave_the_positives_order() -> None:
    scores = np.array([0.0, 2.0, 0.0, 1.0, 0.0])
    method = StochasticAcquisition()
    odds = {
        (first, second, zero): chance / 3
        for (first, second), chance in {(1, 3): 2 / 3, (3, 1): 1 / 3}.items()
        for zero in (0, 2, 4)
    }
    assert fits(lambda seed: tuple(method.select(scores, 3, seed=seed).indices.tolist()), odds, 3_000)


def test_infinities_of_softmax_come_last_and_first() -> None:
    scores = np.array([1.0, -np.inf, 2.0, np.inf, -np.inf, np.inf])
    for seed in range(50):
        chosen = StochasticAcquisition(kind="softmax").select(scores, 6, seed=seed).indices.tolist()
        assert (set(chosen[:2]), set(chosen[2:4]), set(chosen[4:])) == ({3, 5}, {0, 2}, {1, 4})


def test_soft_rank_favours_the_most_informative() -> None:
    scores = np.arange(1_000.0)
    chosen = StochasticAcquisition(kind="soft-rank", beta=1.0).select(scores, 100, seed=0)
    assert chosen.scores is not None
    assert chosen.scores.mean() > 650
    negative = StochasticAcquisition(kind="soft-rank").select(scores - 2_000, 100, seed=0)
    assert negative.indices.tolist() == chosen.indices.tolist()


def merged(method: StochasticAcquisition, scores: Any, k: int, seed: Any) -> Any:
    """The draw of three shards, each by itself."""
    ranks, edges = descending_ranks(scores, seed=seed), [0, 3 * len(scores) // 7, len(scores) // 2, len(scores)]
    shards = [method.local(scores[a:b], k, seed=seed, start=a, ranks=ranks[a:b]) for a, b in itertools.pairwise(edges)]
    return method.merge(shards[::-1], k).indices


def sampled(method: StochasticAcquisition, scores: Any, k: int, seed: Any) -> Any:
    sampler = AcquisitionSampler(scores, method, size=len(scores), batch_size=k // 2, budget=k, seed=hash(seed) % 997)
    return np.array([row for batch in sampler for row in batch])


WAYS: dict[str, Callable[..., Any]] = {
    "select": lambda method, scores, k, seed: method.select(scores, k, seed=seed).indices,
    "a tensor": lambda method, scores, k, seed: method.select(torch.from_numpy(scores), k, seed=seed).indices,
    "a generator": lambda method, scores, k, seed: (
        method.select(scores, k, generator=np.random.default_rng(seed)).indices
    ),
    "shards": merged,
    "one group": lambda method, scores, k, seed: (
        select_per_group(method, scores, np.zeros(len(scores), np.int64), count=k, seed=seed).indices
    ),
    "a sampler": sampled,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "beta", "score"), [("soft-rank", 1.0, 0.5), ("softmax", 1.0, 1e18), ("power", 1e300, 3)]
)
def test_equal_scores_are_drawn_wherever_they_stand(way: str, kind: str, beta: float, score: float) -> None:
    """6,000 of 10,000 equal scores by position: a share of the first 1 %, and a chi-square of 20 parts; 1e-4 each."""
    method, scores, draws = StochasticAcquisition(kind=kind, beta=beta), np.full(10_000, score), 60
    picks = np.concatenate([WAYS[way](method, scores, 100, (seed, 7)) for seed in range(draws)])
    assert abs((picks < 100).mean() - 0.01) < stats.norm.isf(ALPHA / 2) * np.sqrt(0.01 * 0.99 / len(picks))
    assert stats.chisquare(np.bincount(picks // 500, minlength=20)).pvalue > ALPHA


def test_soft_rank_shares_the_ranks_of_equal_scores_out_at_random() -> None:
    """Ordered pairs of picks against Plackett–Luce, averaged over every order of the equal scores."""
    scores, k = np.array([1.0, 2.0, 2.0, 3.0, 2.0]), 2
    chances = Counter[tuple[int, ...]]()
    for equal in itertools.permutations([1, 2, 4]):
        ranks = np.empty(5)
        ranks[[3, *equal, 0]] = np.arange(1, 6)
        for outcome, chance in plackett_luce(1 / ranks, k).items():
            chances[outcome] += chance / 6
    method = StochasticAcquisition(kind="soft-rank")
    assert fits(lambda seed: tuple(method.select(scores, k, seed=(seed, 1)).indices.tolist()), chances, 2_000)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 5e-324, 1e-12, 0.3, float(np.nextafter(0.3, 1)), 5.0, 1e300, np.inf]), max_size=40),
    st.sampled_from([5e-324, 1e-300, 0.7, 1.0, 1e17, 1e300, 1.7e308]),
    st.integers(0, 99),
)
def test_no_limit_of_floats_decides_a_draw(kind: str, values: list[float], beta: float, seed: int) -> None:
    """A candidate of no lower score and of no lower noise comes first; at a high β the score alone decides."""
    scores, n = np.array(values), len(values)
    method = StochasticAcquisition(kind=kind, beta=beta)
    order = method.select(scores, n, seed=seed).indices
    place = np.argsort(order)
    by_noise = np.argsort(StochasticAcquisition(beta=0).select(scores, n, seed=seed).indices)
    higher = scores[:, None] > scores[None, :]
    ahead = higher & (by_noise[:, None] < by_noise[None, :])
    assert np.all((place[:, None] < place[None, :])[ahead])
    if beta > 1e299 and kind != "softmax":
        assert np.all((place[:, None] < place[None, :])[higher])
    for way in ("shards", "one group"):
        np.testing.assert_array_equal(WAYS[way](method, scores, n // 2, seed), order[: n // 2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_highest_beta_keeps_the_order_of_the_scores(kind: str) -> None:
    method = StochasticAcquisition(kind=kind, beta=1e300)
    assert all(method.select(np.array([1.0, 2, 3]), 3, seed=seed).indices.tolist() == [2, 1, 0] for seed in range(20))
    for dtype in (np.int64, np.uint64):
        scores = np.array([2**53, 2**53 + 1, 2**53 + 2], dtype)
        assert StochasticAcquisition(kind=kind, beta=np.inf).select(scores, 3).indices.tolist() == [2, 1, 0]
        assert method.select(torch.from_numpy(scores), 3, seed=0).indices.tolist() == [2, 1, 0]


@pytest.mark.parametrize("beta", [0.0, 1.0, np.inf])
def test_a_shift_makes_negative_scores_fit_for_power(beta: float) -> None:
    scores = np.array([0.4, -0.012, 0.1, np.inf, -0.012])
    seed = None if beta == np.inf else 5
    with pytest.raises(ValueError, match=r"position 1 is -0\.012: it must be 0 or more .*shift"):
        StochasticAcquisition(beta=beta).select(scores, 2, seed=seed)
    with pytest.raises(ValueError, match=r"position 1 is -0\.012: it must be -0\.01 or more, with the shift of 0\.01"):
        StochasticAcquisition(beta=beta, shift=0.01).select(scores, 2, seed=seed)
    added = StochasticAcquisition(beta=beta).select(scores + 0.012, 5, seed=seed).indices
    for shift in (0.012, "lowest"):
        method = StochasticAcquisition(beta=beta, shift=shift)  # type: ignore[arg-type]
        for given_scores in (scores, torch.from_numpy(scores)):
            chosen = method.select(given_scores, 5, seed=seed)
            assert chosen.indices.tolist() == added.tolist()
            np.testing.assert_array_equal(chosen.scores, scores[added])
        assert select_per_group(method, scores, np.zeros(5, int), count=5, seed=seed).indices.tolist() == added.tolist()
        assert not method.refused(scores).any()
    assert StochasticAcquisition().refused(np.append(scores, np.nan)).tolist() == [
        False,
        True,
        False,
        False,
        True,
        True,
    ]
    assert StochasticAcquisition(kind="softmax").refused(scores).tolist() == [False] * 5
    integers = np.array([-5, 2**62, -7], np.int64)
    assert StochasticAcquisition(beta=1e300, shift="lowest").select(integers, 3, seed=0).indices.tolist() == [1, 0, 2]


def test_what_no_shift_makes_a_score_is_named() -> None:
    method = StochasticAcquisition(shift="lowest")
    for bad in (np.nan, -np.inf):
        for scores in (np.array([-3.0, 1, bad]), torch.tensor([-3.0, 1, bad])):
            with pytest.raises(ValueError, match=f"position 2 is {bad}: it must be"):
                method.select(scores, 1, seed=0)
            assert method.refused(scores).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="a shard does not know the lowest"):
        method.local(np.ones(2), 1, seed=0)
    for shift, words in ((np.inf, "finite"), ("least", '"lowest"')):
        with pytest.raises(ValueError, match=words):
            StochasticAcquisition(shift=shift)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="goes with power"):
        StochasticAcquisition(kind="softmax", shift=1.0)
    assert len(method.select(np.empty(0), 0, seed=0)) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 2.0, np.inf])
@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(1, 300),
    cuts=st.lists(st.integers(0, 300), max_size=4),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_shards_merge_to_the_global_draw(
    kind: str, beta: float, n: int, cuts: list[int], share: float, seed: int
) -> None:
    scores = np.random.default_rng(seed).integers(0, 30, n) / 7
    k = int(share * n)
    method = StochasticAcquisition(kind=kind, beta=beta)
    needed = None if beta == np.inf else (seed, 4)
    whole = method.draw(scores, k, seed=needed)
    ranks = descending_ranks(scores, seed=(seed, 4))
    edges = [0, *sorted(min(cut, n) for cut in cuts), n]
    shards = [
        method.local(scores[a:b], k, seed=needed, start=a, ranks=ranks[a:b]) for a, b in itertools.pairwise(edges)
    ]
    keys = np.concatenate(
        [method.keys(scores[a:b], seed=needed, start=a, ranks=ranks[a:b]) for a, b in itertools.pairwise(edges)]
    )
    merged = method.merge(shards[::-1], k)
    for name in ("indices", "keys", "scores"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    np.testing.assert_array_equal(np.lexsort((np.arange(n), *-keys.T[::-1]))[:k], whole.indices)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_in_tensors_out_and_the_draw_of_numpy(kind: str, dtype: torch.dtype) -> None:
    scores = torch.rand(3_000, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    before = scores.detach().clone()
    method = StochasticAcquisition(kind=kind)
    drawn = method.draw(scores, 40, seed=2)
    assert all(isinstance(part, torch.Tensor) for part in (drawn.indices, drawn.keys, drawn.scores))
    plain = method.draw(scores.detach().double().numpy(), 40, seed=2)
    assert isinstance(plain.indices, np.ndarray)
    np.testing.assert_array_equal(drawn.indices.numpy(), plain.indices)
    selection = method.select(scores, 40, seed=2)
    np.testing.assert_array_equal(selection.indices, plain.indices)
    assert (selection.size, selection.weights.tolist()) == (3_000, [1.0] * 40)
    assert torch.equal(scores.detach(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_may_be_read_only_and_are_not_changed(kind: str) -> None:
    scores = np.random.default_rng(0).random(500)
    scores.setflags(write=False)
    before = scores.copy()
    StochasticAcquisition(kind=kind, beta=3.0).select(scores, 20, seed=0)
    select_per_group(StochasticAcquisition(kind=kind), scores, np.zeros(500, np.int64), count=2, seed=0)
    np.testing.assert_array_equal(scores, before)


def test_bad_parameters() -> None:
    with pytest.raises(ValueError, match="power, softmax, soft-rank"):
        StochasticAcquisition(kind="softrank")
    for beta in (-1.0, np.nan):
        with pytest.raises(ValueError, match="beta"):
            StochasticAcquisition(beta=beta)


def test_bad_calls() -> None:
    method = StochasticAcquisition()
    with pytest.raises(ValueError, match="k is 4, but there are only 3"):
        method.select(np.ones(3), 4, seed=0)
    with pytest.raises(ValueError, match="k must be"):
        method.select(np.ones(3), -1, seed=0)
    with pytest.raises(ValueError, match="seed or a generator"):
        method.select(np.ones(3), 1)
    with pytest.raises(ValueError, match="not both"):
        method.select(np.ones(3), 1, seed=0, generator=np.random.default_rng(0))
    with pytest.raises(TypeError, match="numpy array"):
        method.select([1.0], 1, seed=0)
    for kind in KINDS:
        for beta in (0.0, 1.0, np.inf):
            with pytest.raises(ValueError, match="position 1 is nan"):
                StochasticAcquisition(kind=kind, beta=beta).select(np.array([1, np.nan]), 1, seed=0)
    for beta in (0.0, 1.0, np.inf):
        with pytest.raises(ValueError, match=r"position 2 is -0\.5"):
            StochasticAcquisition(beta=beta).select(np.array([1, 0, -0.5]), 1, seed=0)
    with pytest.raises(ValueError, match="ranks"):
        StochasticAcquisition(kind="soft-rank").local(np.ones(3), 1, seed=0)
    with pytest.raises(ValueError, match="hold 2"):
        method.merge([method.local(np.ones(2), 5, seed=0)], 5)
    assert len(method.select(np.ones(3), 0, seed=0)) == len(method.select(np.ones(0), 0, seed=0)) == 0


def test_select_above() -> None:
    scores = np.array([0.2, 0.9, 0.5, -1.0])
    chosen = select_above(scores, 0.5)
    assert chosen.indices.tolist() == [1, 2]
    assert chosen.scores is not None
    assert chosen.scores.tolist() == [0.9, 0.5]
    assert select_above(torch.from_numpy(scores), 2.0).indices.tolist() == []
    with pytest.raises(ValueError, match="position 0 is nan"):
        select_above(np.array([np.nan]), 0.5)
    with pytest.raises(ValueError, match="threshold"):
        select_above(scores, np.nan)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-2, 3), st.integers(0, 4)), max_size=50),
    st.one_of(st.integers(0, 6), st.floats(0, 1)),
)
def test_per_group_is_the_top_of_each_group(rows: list[tuple[int, int]], amount: int | float) -> None:
    groups = np.array([group for group, _ in rows], np.int64)
    scores = np.array([score for _, score in rows], np.float64)
    asked: dict[str, Any] = {"count": amount} if isinstance(amount, int) else {"fraction": amount}
    chosen = select_per_group(StochasticAcquisition(beta=np.inf), scores, groups, **asked)
    expected = []
    for group in set(groups.tolist()):
        members = sorted(np.flatnonzero(groups == group).tolist(), key=lambda i: (-scores[i], i))
        take = amount if isinstance(amount, int) else count_of(amount, len(members))
        expected += members[:take]
    assert chosen.indices.tolist() == sorted(expected, key=lambda i: (-scores[i], i))


@pytest.mark.parametrize("kind", KINDS)
def test_per_group_draws_are_plackett_luce_in_each_group(kind: str) -> None:
    scores = np.array([0.8, 1.6, 1.1, 0.6])
    trials = 4_000
    shuffled = np.random.default_rng(0).permutation(4 * trials)
    groups = shuffled // 4 - 17
    chosen = select_per_group(StochasticAcquisition(kind=kind), scores[shuffled % 4], groups, count=2, seed=6).indices
    picks = (shuffled[chosen] % 4)[np.argsort(groups[chosen], kind="stable")].reshape(trials, 2).tolist()
    chances = plackett_luce(weights(kind, 1.0, scores), 2)
    assert fits(lambda trial: tuple(picks[trial]), chances, trials)


def test_bad_groups() -> None:
    method, scores = StochasticAcquisition(), np.ones(3)
    with pytest.raises(ValueError, match="either count or fraction"):
        select_per_group(method, scores, np.zeros(3, int), seed=0)
    with pytest.raises(ValueError, match="shape"):
        select_per_group(method, scores, np.zeros(2, int), count=1, seed=0)
    with pytest.raises(TypeError, match="integers"):
        select_per_group(method, scores, np.zeros(3), count=1, seed=0)
    with pytest.raises(ValueError, match="fraction"):
        select_per_group(method, scores, np.zeros(3, int), fraction=1.5, seed=0)
    with pytest.raises(ValueError, match="count"):
        select_per_group(method, scores, np.zeros(3, int), count=-1, seed=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0, np.inf])
@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_per_group_refuses_what_select_refuses(kind: str, beta: float, make: Callable[[Any], Any]) -> None:
    method = StochasticAcquisition(kind=kind, beta=beta)
    for bad in (np.nan, *([-1.0] if kind == "power" else [])):
        scores = make([0.1, 0.2, bad, 0.4, bad])
        for choose in (
            lambda scores=scores: method.select(scores, 2, seed=0),
            lambda scores=scores: select_per_group(method, scores, np.zeros(5, int), count=2, seed=0),
        ):
            with pytest.raises(ValueError, match=f"the score at position 2 is {bad}"):
                choose()
    with pytest.raises(TypeError, match="list"):
        select_per_group(method, [1.0], np.zeros(1, int), count=1, seed=0)


def test_groups_of_any_integers() -> None:
    scores = np.array([1.0, 3, 2, 4])
    for groups in (
        np.array([2**63, 2**63 + 1] * 2, np.uint64),
        np.array([False, True] * 2),
        np.array([7, 8] * 2, ">i4"),
        torch.tensor([7, 8] * 2, dtype=torch.uint8),
    ):
        chosen = select_per_group(StochasticAcquisition(beta=np.inf), scores, groups, count=1)
        assert chosen.indices.tolist() == [3, 2]


def test_count_of() -> None:
    assert [count_of(0.1, size) for size in (0, 1, 14, 15, 30)] == [0, 1, 1, 2, 3]
    assert (count_of(0.0, 9), count_of(1.0, 9)) == (0, 9)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_gives_the_hosts_draw(kind: str) -> None:
    scores = torch.rand(500_000, generator=torch.Generator().manual_seed(0))
    method = StochasticAcquisition(kind=kind)
    drawn = method.draw(scores.cuda(), 500, seed=1)
    assert drawn.indices.is_cuda
    assert torch.equal(drawn.indices.cpu(), method.draw(scores, 500, seed=1).indices)
    groups = torch.arange(500_000) % 7
    on_device = select_per_group(method, scores.cuda(), groups.cuda(), count=9, seed=1)
    np.testing.assert_array_equal(on_device.indices, select_per_group(method, scores, groups, count=9, seed=1).indices)
