"""Top-k with and without Gumbel noise, against a plain reference: keys by the formula, then a full sort."""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from curation.gpu import topk
from curation.gpu.random import GOLDEN, MIX_A, MIX_B
from curation.gpu.topk import gumbel, tensor

ALPHA = 1e-4
WORD = 2**64


def mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * MIX_A % WORD
    x = (x ^ (x >> 27)) * MIX_B % WORD
    return x ^ (x >> 31)


def reference_noise(seed: Any, position: int) -> float:
    """The noise at one position, in Python's integers."""
    first, second = (int(word) for word in np.random.SeedSequence(seed).generate_state(2, np.uint64))
    bits = mixed((mixed((position * GOLDEN + first) % WORD) + second) % WORD) >> 1
    uniform = min((float(bits) + 0.5) / 2.0**63, 1 - 2.0**-53)
    return -math.log(-math.log1p(-uniform))


def reference_top(keys: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.int64]:
    return np.array(sorted(range(len(keys)), key=lambda i: (-keys[i], i))[:k], np.int64)


def device_top(values: torch.Tensor, k: int, keying: gumbel.Keying, start: int = 0) -> topk.Top:
    """The tensor path, which CPU tensors do not take by themselves."""
    return tensor.best(values, k, start, keying)


@pytest.mark.parametrize("start", [0, 5, 2**24 + 1, 2**53 + 1])
def test_noise_is_the_formula_at_every_position(start: int) -> None:
    keys = topk.gumbel_keys(np.zeros(50), seed=(3, 1), start=start)
    expected = [reference_noise((3, 1), start + i) for i in range(50)]
    np.testing.assert_allclose(keys[:, 0], expected, rtol=1e-14)


def test_noise_is_gumbel_and_independent_between_positions_and_seeds() -> None:
    zeros = np.zeros(200_000)
    noise, other = (topk.gumbel_keys(zeros, seed=seed)[:, 0] for seed in (1, 2))
    assert stats.kstest(noise, stats.gumbel_r.cdf).pvalue > ALPHA
    tail = np.exp(-np.exp(-noise))
    tail = tail[tail > 0.99]
    assert stats.kstest(tail, "uniform", args=(0.99, 0.01)).pvalue > ALPHA
    limit = stats.norm.isf(ALPHA / 2) / math.sqrt(len(zeros))
    for lag in (1, 2, 64, 65_536):
        assert abs(np.corrcoef(noise[:-lag], noise[lag:])[0, 1]) < limit * 1.01
    assert abs(np.corrcoef(noise, other)[0, 1]) < limit


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 40.0, -2.0])
@pytest.mark.parametrize("k", [0, 1, 700, 150_000, 300_000])
def test_skipping_logarithms_changes_nothing(log: bool, scale: float, k: int) -> None:
    values = np.random.default_rng(0).exponential(size=200_000) + 1e-3
    if log and scale > 0:
        values[::3] = 0
        values[7:200:10] = np.inf
    keys = topk.gumbel_keys(values, seed=9, scale=scale, log=log)
    order = np.lexsort((np.arange(len(keys)), *-keys.T[::-1]))[:k]
    indices, chosen = topk.gumbel_topk(values, k, seed=9, scale=scale, log=log)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(chosen, keys[order])


def test_keys_are_the_formula() -> None:
    values = np.array([0.5, 3.0, 0.0, np.inf, 1e-310, 2.0])
    noise = np.array([reference_noise(4, i) for i in range(6)])
    with np.errstate(divide="ignore"):
        expected = np.log(values) + noise / 2
    keys = topk.gumbel_keys(values, seed=4, scale=2.0, log=True)
    np.testing.assert_allclose(keys[:, 0], expected, rtol=1e-13)
    np.testing.assert_allclose(keys[:, 2], noise, rtol=1e-13)


def test_infinite_keys_keep_to_their_tier_and_the_order_of_their_noise() -> None:
    values = np.tile([0.0, 1.0, np.inf], 300)
    noise = topk.gumbel_keys(np.zeros(900), seed=2)[:, 0]
    indices, _ = topk.gumbel_topk(values, 900, seed=2, log=True)
    tiers = values[indices]
    np.testing.assert_array_equal(tiers, np.sort(tiers)[::-1])
    for tier in (0.0, 1.0, np.inf):
        assert np.all(np.diff(noise[indices[tiers == tier]]) < 0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(0, 45))
def test_topk_breaks_ties_by_position(values: list[int], k: int) -> None:
    array = np.array(values, np.float64)
    expected = reference_top(array, k)
    for top in (topk.topk(array, k), device_top(torch.from_numpy(array), k, gumbel.Keying())):
        np.testing.assert_array_equal(np.asarray(top[0]), expected)
        np.testing.assert_array_equal(np.asarray(top[1][:, 0]), array[expected])


def test_topk_breaks_ties_by_position_over_threads_and_blocks() -> None:
    values = np.random.default_rng(1).integers(0, 5, 700_000).astype(np.float32)
    for k in (10, 1_000, 200_000, 600_000):
        expected = np.argsort(-values, kind="stable")[:k]
        np.testing.assert_array_equal(topk.topk(values, k)[0], expected)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 400),
    st.lists(st.integers(0, 400), max_size=5),
    st.integers(0, 450),
    st.integers(0, 2**40),
    st.integers(0, 99),
)
def test_shards_merge_to_the_global_draw(n: int, cuts: list[int], k: int, start: int, seed: int) -> None:
    values = np.random.default_rng(seed).random(n)
    values[values < 0.1] = 0
    edges = [0, *sorted(min(cut, n) for cut in cuts), n]
    whole = topk.gumbel_topk(values, k, seed=(seed, 1), scale=3.0, log=True, start=start)
    parts = [
        topk.gumbel_topk(values[a:b], k, seed=(seed, 1), scale=3.0, log=True, start=start + a)
        for a, b in itertools.pairwise(edges)
    ]
    for order in (parts, parts[::-1]):
        merged = topk.merge_topk(order, k)
        np.testing.assert_array_equal(merged[0], whole[0])
        np.testing.assert_array_equal(merged[1], whole[1])
    tensors = [(torch.from_numpy(i), torch.from_numpy(x)) for i, x in parts[::-1]]
    assert topk.merge_topk(tensors, k)[0].tolist() == whole[0].tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32])
def test_tensors_get_the_same_draw_by_either_path(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor, "BLOCK", 1_000)
    values = (torch.rand(5_003, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    values[:40] = 0
    before = values.clone()
    expected, keys = topk.gumbel_topk(values.double().numpy(), 700, seed=5, scale=2.0, log=True)
    tensor_indices, tensor_keys = topk.gumbel_topk(values, 700, seed=5, scale=2.0, log=True)
    assert isinstance(tensor_indices, torch.Tensor)
    np.testing.assert_array_equal(tensor_indices.numpy(), expected)
    np.testing.assert_array_equal(tensor_keys.numpy(), keys)
    keying = gumbel.Keying(scale=2.0, log=True, seeds=gumbel.noise_seeds(5))
    device_indices, device_keys = device_top(values, 700, keying)
    np.testing.assert_array_equal(device_indices.numpy(), expected)
    np.testing.assert_allclose(device_keys.numpy(), keys, rtol=1e-13, atol=1e-14)
    assert torch.equal(values, before)


def test_positions_beyond_float32_are_exact() -> None:
    values = np.zeros(3)
    values[1] = 1e6
    for start in (2**24, 2**53, 2**60):
        assert topk.topk(values, 1, start=start)[0][0] == start + 1
        assert topk.gumbel_topk(values, 1, seed=0, start=start)[0][0] == start + 1
        keying = gumbel.Keying(seeds=gumbel.noise_seeds(0))
        assert int(device_top(torch.from_numpy(values), 1, keying, start)[0][0]) == start + 1


@pytest.mark.parametrize("values", [np.array([1, np.nan, np.nan]), torch.tensor([1, torch.nan, torch.nan])])
def test_nan_is_named(values: Any) -> None:
    calls = [
        lambda: topk.topk(values, 1, start=10),
        lambda: topk.gumbel_topk(values, 1, seed=0, start=10),
        lambda: topk.gumbel_keys(values, seed=0, start=10),
        lambda: device_top(torch.as_tensor(values), 1, gumbel.Keying(), 10),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="position 11 is nan"):
            call()
    with pytest.raises(ValueError, match="position 1 is nan"):
        topk.descending_ranks(values, seed=0)


def test_the_first_bad_value_is_named_over_threads() -> None:
    values = np.ones(600_000)
    values[[150_001, 150_000, 590_000]] = -1, -2, np.nan
    with pytest.raises(ValueError, match=r"position 150000 is -2\.0"):
        topk.gumbel_topk(values, 5, seed=0, log=True)


def test_bad_arguments() -> None:
    values = np.ones(3)
    with pytest.raises(ValueError, match="k must be"):
        topk.topk(values, -1)
    with pytest.raises(TypeError):
        topk.topk(values, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one-dimensional"):
        topk.topk(np.ones((2, 2)), 1)
    with pytest.raises(TypeError, match="complex"):
        topk.topk(np.ones(2, np.complex128), 1)
    with pytest.raises(TypeError, match="list"):
        topk.topk([1.0], 1)
    with pytest.raises(ValueError, match="scale"):
        topk.gumbel_topk(values, 1, seed=0, scale=np.inf)
    with pytest.raises(ValueError, match="no parts"):
        topk.merge_topk([], 1)
    with pytest.raises(TypeError, match="seed"):
        topk.gumbel_topk(values, 1, seed=None)  # type: ignore[arg-type]


def test_generators_move_on_and_repeat() -> None:
    values = np.ones(1_000)

    def draws(generator: Any) -> list[list[int]]:
        return [topk.gumbel_topk(values, 5, seed=generator)[0].tolist() for _ in range(2)]

    for make in (np.random.default_rng, lambda seed: torch.Generator().manual_seed(seed)):
        first, second = draws(make(1))
        assert first != second
        assert draws(make(1)) == [first, second]
        assert draws(make(2))[0] != first


def test_ranks() -> None:
    for values in (np.array([2.0, 5.0, 3.0, 7.0]), torch.tensor([2.0, 5.0, 3.0, 7.0])):
        assert topk.descending_ranks(values, seed=0).tolist() == [4, 2, 3, 1]
    for empty in (np.empty(0), torch.empty(0)):
        assert len(topk.descending_ranks(empty, seed=0)) == 0


def test_memory_maps_and_strides_are_read_as_they_are(tmp_path: Any) -> None:
    values = np.random.default_rng(0).random(1_000)
    np.save(tmp_path / "scores.npy", values)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    np.testing.assert_array_equal(topk.topk(mapped, 9)[0], topk.topk(values, 9)[0])
    np.testing.assert_array_equal(topk.topk(values[::-2], 9)[0], topk.topk(values[::-2].copy(), 9)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cuda_gives_the_hosts_draw(dtype: torch.dtype) -> None:
    values = torch.rand(9_000_001, generator=torch.Generator().manual_seed(0)).to(dtype)
    for scale in (0.0, 1.0, 8.0):
        expected = topk.gumbel_topk(values, 1_000, seed=1, scale=scale, log=True)
        indices, keys = topk.gumbel_topk(values.cuda(), 1_000, seed=1, scale=scale, log=True)
        assert indices.is_cuda
        assert torch.equal(indices.cpu(), expected[0])
        torch.testing.assert_close(keys.cpu(), expected[1], rtol=1e-12, atol=1e-12)
    assert torch.equal(topk.topk(values.cuda(), 5_000)[0].cpu(), topk.topk(values, 5_000)[0])
