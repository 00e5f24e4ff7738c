"""Scores against their formulas in plain Python, their direction, and their safety at the edges."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from curation.selectors import uncertainty
from curation.selectors.acquisition import StochasticAcquisition

Floats = npt.NDArray[Any]


def entropy(p: Any) -> float:
    return -sum(float(x) * math.log(float(x)) for x in p if x > 0)


def mean(p: Floats) -> Floats:
    return np.asarray(p, np.float64).mean(0)


def ref_margin(p: Floats) -> float:
    ordered = sorted(mean(p))
    return float(1 - (ordered[-1] - ordered[-2]))


def ref_variation_ratio(p: Floats) -> float:
    votes = Counter(max(range(len(q)), key=lambda c: (q[c], -c)) for q in p.tolist())
    return 1 - max(votes.values()) / len(p)


REFERENCES: dict[str, Callable[[Floats], float]] = {
    "bald": lambda p: entropy(mean(p)) - sum(entropy(q) for q in p) / len(p),
    "entropy": lambda p: entropy(mean(p)),
    "least-confidence": lambda p: float(1 - mean(p).max()),
    "margin": ref_margin,
    "mean-std": lambda p: float(np.mean([math.sqrt(np.var(column)) for column in np.asarray(p, float).T])),
    "variation-ratio": ref_variation_ratio,
}


def ref_epig(p: Floats, targets: Floats) -> float:
    total = 0.0
    for target in targets:
        joint = sum(np.outer(a, b) for a, b in zip(p, target, strict=True)) / len(p)
        total += entropy(mean(p)) + entropy(mean(target)) - entropy(np.ravel(joint))
    return total / len(targets)


def predictions(n: int = 23, samples: int = 6, classes: int = 4, seed: int = 0) -> Floats:
    """Probabilities with exact zeros and exact ones among them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.5), (n, samples))
    p[0] = np.eye(classes)[0]
    p[1, :, 0] = 0
    p[1] /= p[1].sum(-1, keepdims=True)
    p[2] = np.eye(classes)[np.arange(samples) % classes]
    return p


@pytest.mark.parametrize("name", uncertainty.SCORES)
@pytest.mark.parametrize("chunk_bytes", [1, 1_500, 1 << 26])
def test_scores_are_their_formulas(name: str, chunk_bytes: int) -> None:
    p = predictions()
    expected = [REFERENCES[name](each) for each in p]
    scores = uncertainty.SCORES[name](p, chunk_bytes=chunk_bytes)
    assert isinstance(scores, np.ndarray)
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    with np.errstate(divide="ignore"):
        logits = np.log(p) + np.random.default_rng(1).normal(size=(23, 6, 1))
    np.testing.assert_allclose(
        uncertainty.SCORES[name](logits, logits=True, chunk_bytes=chunk_bytes), expected, atol=1e-9
    )


@pytest.mark.parametrize("name", uncertainty.SCORES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_in_tensors_out_at_any_precision(name: str, dtype: torch.dtype) -> None:
    logits = torch.randn(30, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores = uncertainty.SCORES[name](logits, logits=True)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = logits.double().softmax(2)
    np.testing.assert_allclose(scores, [REFERENCES[name](p) for p in exact.numpy()], atol=2e-6)
    probabilities = uncertainty.SCORES[name](exact.to(dtype))
    assert bool(probabilities.isfinite().all())


@pytest.mark.parametrize("name", uncertainty.SCORES)
def test_chunks_may_come_from_anywhere(name: str, tmp_path: Any) -> None:
    p = predictions()
    whole = uncertainty.SCORES[name](p)
    np.save(tmp_path / "p.npy", p)
    mapped = uncertainty.SCORES[name](np.load(tmp_path / "p.npy", mmap_mode="r"), chunk_bytes=2_000)
    streamed = uncertainty.SCORES[name](part for part in (p[:5], p[5:5], p[5:]))
    tensors = uncertainty.SCORES[name]([torch.from_numpy(p[:9]), torch.from_numpy(p[9:])])
    for other in (mapped, streamed, tensors):
        np.testing.assert_allclose(other, whole, atol=1e-15)
    fewer = uncertainty.SCORES[name]([p[:5], p[5:, :3]])
    np.testing.assert_allclose(fewer[5:], uncertainty.SCORES[name](p[5:, :3]), atol=1e-15)


@pytest.mark.parametrize("name", uncertainty.SCORES)
def test_higher_is_more_informative_and_fit_for_power_sampling(name: str) -> None:
    sure = np.full((1, 8, 3), [0.98, 0.01, 0.01])
    torn = np.tile([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]], (1, 4, 1))
    scores = uncertainty.SCORES[name](np.concatenate([sure, torn]))
    assert scores[1] > scores[0] >= 0
    random = torch.randn(500, 4, 5, generator=torch.Generator().manual_seed(1)) * 1e-3
    StochasticAcquisition().select(uncertainty.SCORES[name](random, logits=True), 10, seed=0)


def test_agreement_and_confusion_at_their_limits() -> None:
    p = predictions()
    assert uncertainty.bald(p)[0] == uncertainty.predictive_entropy(p)[0] == uncertainty.variation_ratio(p)[0] == 0
    disagreement = uncertainty.bald(p[2:3, :4])
    np.testing.assert_allclose(disagreement, math.log(4))
    single = uncertainty.margin(p[:, 0])
    np.testing.assert_allclose(single, uncertainty.margin(p[:, :1]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_probabilities_and_infinite_log_probabilities_are_safe(dtype: Any) -> None:
    p = np.eye(3, dtype=dtype)[None].repeat(4, 0)
    with np.errstate(divide="ignore"):
        logs = np.log(p)
    for name, score in uncertainty.SCORES.items():
        for found in (score(p), score(logs, logits=True)):
            np.testing.assert_allclose(found, [REFERENCES[name](each) for each in p], atol=1e-6)
    assert np.isfinite(uncertainty.bald(np.full((2, 2, 3), -3e38, np.float32), logits=True)).all()


def test_epig_is_its_formula() -> None:
    p, targets = predictions(), predictions(9, classes=3, seed=2)
    expected = [ref_epig(each, targets) for each in p]
    for chunk_bytes in (1, 4_000, 1 << 26):
        np.testing.assert_allclose(uncertainty.epig(p, targets, chunk_bytes=chunk_bytes), expected, atol=1e-12)
    found = uncertainty.epig(torch.from_numpy(p).float(), torch.from_numpy(targets).float())
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with np.errstate(divide="ignore"):
        logits = uncertainty.epig(np.log(p), np.log(targets), logits=True)
    np.testing.assert_allclose(logits, expected, atol=1e-9)


def test_epig_prefers_what_tells_of_the_targets() -> None:
    """Two candidates of equal BALD: one varies with the targets over the parameters, one with nothing else."""
    coin = np.array([[0.95, 0.05], [0.05, 0.95]])
    related, unrelated = coin[[0, 0, 1, 1]], coin[[0, 1, 0, 1]]
    pool = np.stack([unrelated, related])
    scores = uncertainty.epig(pool, related[None])
    np.testing.assert_allclose(*uncertainty.bald(pool))
    assert scores[1] > 0.3
    assert scores[0] == pytest.approx(0, abs=1e-12)


def test_standard_deviation_of_regression() -> None:
    values = np.random.default_rng(0).normal(size=(20, 7, 2))
    expected = np.sqrt(np.mean((values - values.mean(1, keepdims=True)) ** 2, 1))
    np.testing.assert_allclose(uncertainty.standard_deviation(values, chunk_bytes=200), expected.mean(1))
    np.testing.assert_allclose(uncertainty.standard_deviation(values[:, :, 0]), expected[:, 0])
    half = torch.tensor([[1000.0, 1001.0]], dtype=torch.float16)
    assert uncertainty.standard_deviation(half).tolist() == [0.5]


def test_bad_predictions_are_named() -> None:
    p = predictions()
    with pytest.raises(ValueError, match="candidate 3 .*logits=True"):
        uncertainty.bald(np.concatenate([p[:3], p[3:] * 2]), chunk_bytes=1)
    with pytest.raises(ValueError, match="candidate 0 .*probabilities"):
        uncertainty.margin(p - 0.5)
    logits = np.zeros((4, 2, 3))
    for value in (np.nan, np.inf):
        logits[2, 1, 0] = value
        with pytest.raises(ValueError, match="candidate 2 .*logits"):
            uncertainty.predictive_entropy(logits, logits=True)
    logits[2, 1] = -np.inf
    with pytest.raises(ValueError, match="candidate 2 .*all -inf"):
        uncertainty.bald(logits, logits=True)
    with pytest.raises(ValueError, match="candidate 1 .*finite"):
        uncertainty.standard_deviation(np.array([[0.0, 1.0], [np.nan, 1.0]]))


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        uncertainty.bald(np.ones((3, 1)))
    with pytest.raises(ValueError, match="dimensions"):
        uncertainty.bald(np.ones((3, 0, 2)))
    with pytest.raises(ValueError, match="2 classes"):
        uncertainty.margin(np.ones((3, 1)))
    with pytest.raises(TypeError, match="float"):
        uncertainty.bald([1.0])
    with pytest.raises(TypeError, match="predictions"):
        uncertainty.bald(3)
    with pytest.raises(ValueError, match="6 samples, but targets have 5"):
        uncertainty.epig(predictions(), predictions(samples=5))
    with pytest.raises(ValueError, match="targets must"):
        uncertainty.epig(predictions(), predictions()[:0])
    assert uncertainty.bald(np.ones((0, 2, 3))).shape == (0,)


@pytest.mark.gpu
def test_cuda_agrees_with_the_host() -> None:
    logits = torch.randn(2_000, 10, 8, generator=torch.Generator().manual_seed(0))
    for score in uncertainty.SCORES.values():
        found = score(logits.cuda(), logits=True)
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), score(logits, logits=True), rtol=1e-4, atol=1e-5)
    found = uncertainty.epig(logits.cuda(), logits[:50].cuda(), logits=True)
    torch.testing.assert_close(found.cpu(), uncertainty.epig(logits, logits[:50], logits=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("score", uncertainty.SCORES.values(), ids=uncertainty.SCORES)
@pytest.mark.parametrize(("above", "dtype"), [(9e-4, torch.float32), (0.015, torch.bfloat16)])
def test_no_score_is_negative_where_probabilities_sum_to_a_little_over_1(
    score: Callable[..., Any], above: float, dtype: torch.dtype
) -> None:
    p = torch.tensor([[1 + above, 0.0, 0.0]] * 3 + [[0.2, 0.3, 0.5]] * 3).reshape(2, 3, 3).to(dtype)
    scores = score(p)
    assert (scores >= 0).all()
    StochasticAcquisition().select(scores, 2, seed=0)
