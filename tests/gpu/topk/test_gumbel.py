"""Keys at the limits of floats: a draw of equal noise goes by values, and one of equal values by noise, always."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.topk import cpu, gumbel_topk, merge_topk, tensor, topk
from curation.gpu.topk.gumbel import Keying, noise_seeds

SCALES = [5e-324, 1e-300, 1e-3, 1.0, 0.7, 1e17, 1e300, 1.7e308]
near = st.sampled_from([0.3, 1.0, 1e9, 1e-300, 1e300, 1.79e308]).flatmap(
    lambda x: st.sampled_from([x, float(np.nextafter(x, 0)), float(np.nextafter(np.nextafter(x, 0), 0))])
)
values_above_zero = st.one_of(
    near,
    st.sampled_from([0.0, -0.0, 5e-324, 1e-323, 2.2e-308, 1e260, 1e269, np.inf]),
    st.floats(0, allow_nan=False),
)
integers = st.integers(0, 3).flatmap(lambda near: st.sampled_from([0, 2**53 + near, 2**62 + near, 2**63 - 1 - near]))


def arrays(kind: str) -> st.SearchStrategy[npt.NDArray[Any]]:
    if kind == "uint64":
        return st.lists(integers.flatmap(lambda x: st.sampled_from([x, 2 * x])), max_size=40).map(
            lambda values: np.array(values, np.uint64)
        )
    if kind == "int64":
        return st.lists(integers, max_size=40).map(lambda values: np.array(values, np.int64))
    return st.lists(values_above_zero, max_size=40).map(
        lambda values: np.array(values, np.float64).clip(max=6e4 if kind == "float16" else None).astype(kind)
    )


def rank_in(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.argsort(order)


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "int64", "uint64"])
@settings(deadline=None, max_examples=60)
@given(data=st.data(), scale=st.sampled_from(SCALES), log=st.booleans(), seed=st.integers(0, 99))
def test_what_is_no_less_in_value_and_in_noise_comes_first(
    kind: str, data: st.DataObject, scale: float, log: bool, seed: int
) -> None:
    with np.errstate(over="ignore"):
        values = data.draw(arrays(kind))
    n = len(values)
    by_noise = rank_in(gumbel_topk(values, n, seed=seed, scale=0.0)[0])
    order = gumbel_topk(values, n, seed=seed, scale=scale, log=log)[0]
    place = rank_in(order)
    ahead = (values[:, None] >= values[None, :]) & (by_noise[:, None] < by_noise[None, :])
    assert np.all((place[:, None] < place[None, :])[ahead])
    # The other path, any k, any shards.
    keying = Keying(scale=scale, log=log, seeds=noise_seeds(seed))
    np.testing.assert_array_equal(tensor.best(torch.from_numpy(values), n, 0, keying)[0].numpy(), order)
    k, cut = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    parts = [
        gumbel_topk(part, k, seed=seed, scale=scale, log=log, start=start)
        for part, start in ((values[cut:], cut), (values[:cut], 0))
    ]
    np.testing.assert_array_equal(merge_topk(parts, k)[0], order[:k])


@pytest.mark.parametrize("kind", ["float64", "int64", "uint64"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_topk_is_by_value_then_position(kind: str, data: st.DataObject) -> None:
    values = data.draw(arrays(kind))
    expected = sorted(range(len(values)), key=lambda i: (-values[i].item(), i))
    assert topk(values, len(values))[0].tolist() == expected
    assert topk(torch.from_numpy(values), len(values))[0].tolist() == expected
    assert tensor.best(torch.from_numpy(values), len(values), 0, Keying())[0].tolist() == expected


@pytest.mark.parametrize("values", [(1, 2, 3), (1e-300, 2e-300, 3e-300), (1e260, 2e260, 1e308), (2**60, 2**61, 2**62)])
@pytest.mark.parametrize("log", [False, True])
def test_a_very_strict_draw_is_the_top(values: tuple[float, ...], log: bool) -> None:
    scale = 1e300 if log or values[0] >= 1 else 1e308
    for seed in range(20):
        assert gumbel_topk(np.array(values), 3, seed=seed, scale=scale, log=log)[0].tolist() == [2, 1, 0]


@pytest.mark.parametrize(("value", "scale"), [(0.3, 1e300), (1e18, 1.0), (0.0, 1.0), (1e300, 1e300), (2**62 + 1, 1e20)])
@pytest.mark.parametrize("log", [False, True])
def test_equal_values_are_equally_likely_however_large(
    value: float, scale: float, log: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come in the order of their noise, over blocks whose survivors are cut, too."""
    monkeypatch.setattr(cpu, "BLOCK", 64)
    values = np.full(3_000, value)
    expected = gumbel_topk(values, 50, seed=3, scale=0.0)[0]
    np.testing.assert_array_equal(gumbel_topk(values, 50, seed=3, scale=scale, log=log)[0], expected)
    keying = Keying(scale=scale, log=log, seeds=noise_seeds(3))
    np.testing.assert_array_equal(tensor.best(torch.from_numpy(values), 50, 0, keying)[0].numpy(), expected)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(st.floats(-1e308, 1e308), st.sampled_from([-1e-20, 0.0, 1e-20, 2e-20])), min_size=1, max_size=30
    ),
    st.sampled_from([1.0, 1e300]),
    st.integers(0, 99),
)
def test_shifted_values_keep_their_order(given_values: list[float], scale: float, seed: int) -> None:
    values = np.array(given_values)
    n, shift = len(values), -min(given_values)
    by_noise = rank_in(gumbel_topk(values, n, seed=seed, scale=0.0)[0])
    keying = Keying(scale=scale, log=True, shift=shift, seeds=noise_seeds(seed))
    order = cpu.best(values, 0, n, n, 0, keying)[0]
    order = order[0][np.lexsort((order[0], *-order[1].T[::-1]))]
    np.testing.assert_array_equal(tensor.best(torch.from_numpy(values), n, 0, keying)[0].numpy(), order)
    place = rank_in(order)
    ahead = (values[:, None] >= values[None, :]) & (by_noise[:, None] < by_noise[None, :])
    assert np.all((place[:, None] < place[None, :])[ahead])


def test_bad_parameters() -> None:
    for name in ("scale", "shift"):
        with pytest.raises(ValueError, match=name):
            Keying(**{name: np.inf})
