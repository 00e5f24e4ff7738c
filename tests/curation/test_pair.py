"""Two sides of a super-batch."""

import numpy as np
import pytest
import torch

from curation import Pair


def test_a_pair_keeps_what_it_was_given() -> None:
    a, b = np.ones((3, 2)), np.zeros((3, 2))
    pair = Pair(a, b, 10.0, -5.0)
    assert pair.a is a
    assert pair.b is b
    assert (pair.scale, pair.bias, len(pair)) == (10.0, -5.0, 3)
    assert (Pair(a, b).scale, Pair(a, b).bias) == (1.0, 0.0)


def test_factors_are_numbers_whatever_they_are_kept_in() -> None:
    sides = np.ones((3, 2)), np.ones((3, 2))
    learned = torch.nn.Parameter(torch.tensor([0.0])), torch.nn.Parameter(torch.tensor(-5.0))
    assert Pair(*sides, learned[0].exp(), learned[1]).factors == (1.0, -5.0)
    assert Pair(*sides, np.float32(2.0), 3).factors == (2.0, 3.0)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((3, 2), (2, 2), r"a has shape \(3, 2\), but b has \(2, 2\)"),
        ((3, 2), (3, 4), r"a has shape \(3, 2\), but b has \(3, 4\)"),
        ((3,), (3,), r"shape \[B, D\] with B, D ≥ 1, not \(3,\)"),
        ((0, 2), (0, 2), r"not \(0, 2\)"),
        ((3, 0), (3, 0), r"not \(3, 0\)"),
        ((1, 2, 3), (1, 2, 3), r"not \(1, 2, 3\)"),
    ],
)
def test_shapes_are_checked(a: tuple[int, ...], b: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pair(np.ones(a), np.ones(b))
