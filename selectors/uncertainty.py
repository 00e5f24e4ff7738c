"""Uncertainty: how informative a label would be, from what a model predicts; scores for an acquisition.

Decides nothing by itself: one float a candidate, and **higher is always more informative**, margin and confidence
included. None is negative, so all suit power sampling. Predictions are ``[N, samples, classes]``: class
probabilities, or logits, under several draws of the parameters (MC dropout, ensembles). An array, a memory map, a
tensor on any device, or an iterable of such chunks in order, which may differ in their number of samples.

Cost: O(N · samples · classes) time; beside the input, one chunk of at most ``chunk_bytes``. Half precisions are
computed in float32, integers and all else in their own or float64. 0 · log 0 is 0.

Papers: BALD, Houlsby et al. 2011, arXiv 1112.5745; margin, Scheffer et al. 2001; variation ratio and mean standard
deviation, Gal et al. 2017, arXiv 1703.02910; EPIG, Bickford Smith et al. 2023, arXiv 2304.08151.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

Predictions = Any
"""[N, samples, classes], as a numpy array or torch tensor, or an iterable of [n, samples, classes] chunks."""
Scores = Any
"""[N], float32 or float64, a numpy array or a torch tensor on the device of the predictions."""

CHUNK_BYTES = 1 << 26


def bald(predictions: Predictions, *, logits: bool = False, chunk_bytes: int = CHUNK_BYTES) -> Scores:
    """Mutual information of label and parameters: H(mean p) - mean H(p), in nats, from 0 to log(classes).

    Args:
        predictions: [N, samples, classes], or an iterable of chunks of that shape.
        logits: whether they are logits or log-probabilities (-inf is a probability of 0); else probabilities.
        chunk_bytes: how much is worked on at once.

    Returns:
        [N] scores, of the kind and on the device of the predictions.

    Raises:
        ValueError: the shape is wrong; a candidate's probabilities are negative, not finite or do not sum to 1;
            a candidate's logits are NaN, +inf or all -inf (the first candidate is named).
        TypeError: predictions are neither arrays nor tensors.
    """
    return _score(predictions, _bald, logits, chunk_bytes, needs_samples=True)


def predictive_entropy(predictions: Predictions, *, logits: bool = False, chunk_bytes: int = CHUNK_BYTES) -> Scores:
    """H(mean p) in nats, from 0 to log(classes). As :func:`bald`; [N, classes] is one sample."""
    return _score(predictions, lambda p: _entropy(p.mean(1)), logits, chunk_bytes)


def least_confidence(predictions: Predictions, *, logits: bool = False, chunk_bytes: int = CHUNK_BYTES) -> Scores:
    """1 - max of mean p, from 0 to 1 - 1/classes. As :func:`bald`; [N, classes] is one sample."""
    return _score(predictions, lambda p: 1 - p.mean(1).amax(1), logits, chunk_bytes)


def margin(predictions: Predictions, *, logits: bool = False, chunk_bytes: int = CHUNK_BYTES) -> Scores:
    """1 - (largest - second largest of mean p), from 0 to 1. As :func:`bald`; [N, classes] is one sample."""
    return _score(predictions, _margin, logits, chunk_bytes)


def variation_ratio(predictions: Predictions, *, logits: bool = False, chunk_bytes: int = CHUNK_BYTES) -> Scores:
    """The share of samples whose class is not the commonest one, from 0 to below 1. As :func:`bald`.

    A sample's class is its likeliest, the first of equals.
    """
    return _score(predictions, _variation_ratio, logits, chunk_bytes, needs_samples=True)


def mean_standard_deviation(
    predictions: Predictions, *, logits: bool = False, chunk_bytes: int = CHUNK_BYTES
) -> Scores:
    """Standard deviation of p over samples (divided by their number), mean over classes. As :func:`bald`."""
    return _score(predictions, lambda p: p.std(1, correction=0).mean(1), logits, chunk_bytes, needs_samples=True)


def standard_deviation(predictions: Predictions, *, chunk_bytes: int = CHUNK_BYTES) -> Scores:
    """For regression: the predictions' standard deviation over samples (divided by their number).

    Args:
        predictions: [N, samples], or [N, samples, outputs], whose standard deviations are averaged; or an iterable
            of such chunks. Any unit; the scores have the same.
        chunk_bytes: how much is worked on at once.

    Returns:
        [N] scores, of the kind and on the device of the predictions.

    Raises:
        ValueError: the shape is wrong, or a candidate's predictions are not finite (the first is named).
        TypeError: predictions are neither arrays nor tensors.
    """

    def of_chunk(chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chunk = _computable(chunk)
        spread = chunk.std(1, correction=0)
        return spread if spread.ndim == 1 else spread.mean(1), chunk.isfinite().flatten(1).all(1)

    return _stream(predictions, of_chunk, chunk_bytes // 4, (2, 3), "finite predictions")


def epig(
    predictions: Predictions,
    targets: Any,
    *,
    logits: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Scores:
    """Expected predictive information gain: mean over targets of the mutual information of the two labels, nats.

    I(y; y*) = H(y) + H(y*) - H(y, y*), with p(y, y*) = mean over samples of p(y) p(y*) (equations 7 and 10 of the
    paper). O(N · M · samples · classes²) time, in matrix products.

    Args:
        predictions: [N, samples, classes], or an iterable of chunks of that shape.
        targets: [M, samples, classes*], predictions for inputs like those that will be met, under the *same* draws
            of the parameters in the same order; an array or tensor, of the predictions' kind and device.
        logits: whether both are logits or log-probabilities; else probabilities.
        chunk_bytes: how much is worked on at once.

    Returns:
        [N] scores, of the kind and on the device of the predictions.

    Raises:
        ValueError: as :func:`bald`, for targets too; there are no targets; the numbers of samples differ.
        TypeError: predictions or targets are neither arrays nor tensors.
    """
    if targets.ndim != 3 or 0 in tuple(targets.shape):
        raise ValueError(f"targets must have shape [M, samples, classes] with none 0, not {tuple(targets.shape)}")
    probabilities, valid = _probabilities(_tensor(targets), logits)
    _raise_if_invalid(valid, "target", _expected(logits))
    entropy = float(_entropy(probabilities.mean(1)).double().mean())

    def information(chunk: torch.Tensor) -> torch.Tensor:
        n, samples, classes = chunk.shape
        if samples != probabilities.shape[1]:
            raise ValueError(
                f"predictions have {samples} samples, but targets have {probabilities.shape[1]}: "
                "both must come from the same draws of the parameters"
            )
        left = chunk.transpose(1, 2).reshape(n * classes, samples)
        joint = torch.zeros(n, dtype=torch.float64, device=chunk.device)
        table_bytes = n * classes * probabilities.shape[2] * chunk.element_size()
        step = max(1, chunk_bytes // (2 * table_bytes))
        for low in range(0, len(probabilities), step):
            right = probabilities[low : low + step].transpose(0, 1).reshape(samples, -1).to(chunk.dtype)
            joint += torch.special.entr(left @ right / samples).reshape(n, -1).sum(1, dtype=torch.float64)
        gain = _entropy(chunk.mean(1)).double() + entropy - joint / len(probabilities)
        return gain.to(chunk.dtype)

    # A chunk of candidates meets targets in blocks, so that the joint tables take the memory, not the chunk.
    return _score(predictions, information, logits, chunk_bytes // 64, needs_samples=True)


SCORES: Mapping[str, Callable[..., Scores]] = {
    "bald": bald,
    "entropy": predictive_entropy,
    "least-confidence": least_confidence,
    "margin": margin,
    "mean-std": mean_standard_deviation,
    "variation-ratio": variation_ratio,
}
"""Scores of class predictions by name; :func:`standard_deviation` and :func:`epig` take other arguments."""


def _entropy(p: torch.Tensor) -> torch.Tensor:
    entropy: torch.Tensor = torch.special.entr(p).sum(-1)
    return entropy


def _bald(p: torch.Tensor) -> torch.Tensor:
    return _entropy(p.mean(1)) - _entropy(p).mean(1)


def _margin(p: torch.Tensor) -> torch.Tensor:
    if p.shape[2] < 2:
        raise ValueError("margin needs at least 2 classes")
    top = p.mean(1).topk(2, dim=1).values
    return 1 - (top[:, 0] - top[:, 1])


def _variation_ratio(p: torch.Tensor) -> torch.Tensor:
    votes = torch.zeros((len(p), p.shape[2]), dtype=p.dtype, device=p.device)
    classes = p.argmax(2)
    votes.scatter_add_(1, classes, torch.ones_like(classes, dtype=p.dtype))
    return 1 - votes.amax(1) / p.shape[1]


def _score(
    predictions: Predictions,
    score: Callable[[torch.Tensor], torch.Tensor],
    logits: bool,
    chunk_bytes: int,
    *,
    needs_samples: bool = False,
) -> Scores:
    def of_chunk(chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p, valid = _probabilities(chunk if chunk.ndim == 3 else chunk[:, None], logits)
        # Rounding, or a sum of probabilities a little above 1, may leave a hair below 0, which power refuses.
        return score(p).clamp(min=0), valid

    return _stream(predictions, of_chunk, chunk_bytes // 4, (3,) if needs_samples else (2, 3), _expected(logits))


def _probabilities(chunk: torch.Tensor, logits: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, samples, classes] probabilities, and bool[n] whether a candidate's are sound."""
    tolerance = 0.02 if chunk.dtype in (torch.float16, torch.bfloat16) else 1e-3
    chunk = _computable(chunk)
    if logits:
        p = chunk.softmax(2)
        return p, p.isfinite().flatten(1).all(1)
    sums = chunk.sum(2)
    return chunk, ((chunk >= 0).all(2) & ((sums - 1).abs() <= tolerance)).all(1)


def _stream(
    predictions: Predictions,
    of_chunk: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    chunk_bytes: int,
    dimensions: tuple[int, ...],
    expected: str,
) -> Scores:
    scores: list[torch.Tensor] = []
    validity: list[torch.Tensor] = []
    as_numpy = True
    for chunk in _chunks(predictions, chunk_bytes, dimensions):
        as_numpy = not isinstance(chunk, torch.Tensor)
        part, valid = of_chunk(_tensor(chunk))
        scores.append(part)
        validity.append(valid)
    if not scores:
        empty = np.empty(0, np.float32)
        return torch.from_numpy(empty).to(predictions.device) if isinstance(predictions, torch.Tensor) else empty
    # One look at the end: a look at each chunk would make the host wait for the device.
    _raise_if_invalid(torch.cat(validity), "candidate", expected)
    joined = torch.cat(scores)
    return joined.numpy() if as_numpy else joined


def _chunks(predictions: Any, chunk_bytes: int, dimensions: tuple[int, ...]) -> Iterator[Any]:
    """Pieces of about ``chunk_bytes``, counted in float32 or wider."""
    whole = isinstance(predictions, np.ndarray | torch.Tensor)
    if not whole and not isinstance(predictions, Iterable):
        raise TypeError("predictions must be a numpy array, a torch tensor or an iterable of them")
    for part in [predictions] if whole else predictions:
        if not isinstance(part, np.ndarray | torch.Tensor):
            raise TypeError(f"predictions must be numpy arrays or torch tensors, not {type(part).__name__}")
        if part.ndim not in dimensions or 0 in tuple(part.shape[1:]):
            raise ValueError(
                f"predictions must have {' or '.join(map(str, dimensions))} dimensions (candidates, samples, "
                f"classes), none after the first empty, not shape {tuple(part.shape)}"
            )
        row = int(np.prod(part.shape[1:])) * max(4, _item_size(part))
        step = max(1, chunk_bytes // row)
        for low in range(0, len(part), step):
            yield part[low : low + step]


def _item_size(array: Any) -> int:
    return int(array.element_size() if isinstance(array, torch.Tensor) else array.dtype.itemsize)


def _tensor(chunk: Any) -> torch.Tensor:
    if isinstance(chunk, torch.Tensor):
        return chunk.detach()
    # torch warns of arrays that it may not write to, as memory maps are.
    return torch.from_numpy(np.ascontiguousarray(chunk) if chunk.flags.writeable else np.array(chunk))


def _computable(chunk: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    if chunk.dtype in (torch.float32, torch.float64):
        return chunk
    return chunk.to(torch.float32 if chunk.is_floating_point() else torch.float64)


def _expected(logits: bool) -> str:
    if logits:
        return "logits without NaN or +inf, not all -inf"
    return "probabilities of at least 0 that sum to 1 (for logits, pass logits=True)"


def _raise_if_invalid(valid: torch.Tensor, name: str, expected: str) -> None:
    if not bool(valid.all()):
        raise ValueError(f"{name} {int((~valid).nonzero()[0])} does not have {expected}")
