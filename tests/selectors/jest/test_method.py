import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from curation import JEST, Pair

Floats = npt.NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[3]
LOSSES = ("sigmoid", "softmax")
FORMS = (("sigmoid", False), ("softmax", False), ("softmax", True))
"""Loss, and whether a candidate's own positive stands in its denominators."""
CRITERIA = {"learnability": (1, -1), "hard": (1, 0), "easy": (0, -1)}
ALPHA = 1e-4  # of each statistical test here; seeds are fixed, so a test that passes keeps passing


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny products: a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(size: int, width: int, seed: int, scale: float = 4.0, bias: float = -1.0) -> Pair:
    random = np.random.default_rng(seed)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in random.normal(size=(2, size, width)))
    return Pair(a, b, scale, bias)


def cast(source: Pair, dtype: torch.dtype) -> Pair:
    a, b = (torch.from_numpy(side).to(dtype) for side in (source.a, source.b))
    return Pair(a, b, source.scale, source.bias)


def loss_parts(model: Pair) -> tuple[Floats, Floats]:
    """z and the sigmoid losses, all B×B of them: the plain algorithm's memory."""
    a, b = (torch.as_tensor(side).double().numpy() for side in (model.a, model.b))
    z = model.scale * a @ b.T + model.bias
    signs = np.where(np.eye(len(z), dtype=bool), -1, 1)
    return z, np.logaddexp(0, signs * z)


def plain_logits(
    learner: Pair, reference: Pair, taken: list[int], loss: str, criterion: str, own_positive: bool = False
) -> Floats:
    """METHODS.md, word for word; from scratch for each round."""
    total = np.zeros(len(learner))
    for sign, model in zip(CRITERIA[criterion], (learner, reference), strict=True):
        z, losses = loss_parts(model)
        if loss == "sigmoid":
            part = np.diag(losses) + losses[taken].sum(0) + losses[:, taken].sum(1)
        else:
            part = -np.diag(z)
            if taken:
                for j in range(len(z)):
                    others = [*taken, j] if own_positive else taken
                    part[j] += (np.logaddexp.reduce(z[j, others]) + np.logaddexp.reduce(z[others, j])) / 2
        total += sign * part
    return total


def info_nce(model: Pair, rows: list[int]) -> list[float]:
    """The symmetric InfoNCE loss of each of these rows in a batch of them, one by one."""
    z = model.scale * model.a[rows] @ model.b[rows].T + model.bias
    losses = []
    for j in range(len(rows)):
        to_b = -z[j, j] + np.log(sum(np.exp(z[j, k]) for k in range(len(rows))))
        to_a = -z[j, j] + np.log(sum(np.exp(z[k, j]) for k in range(len(rows))))
        losses.append((to_b + to_a) / 2)
    return losses


def plain_draw(learner: Pair, reference: Pair, sizes: list[int], loss: str, random: np.random.Generator) -> list[int]:
    """Sequential draws from softmax(logit), without Gumbel noise."""
    taken: list[int] = []
    for size in sizes:
        logits = plain_logits(learner, reference, taken, loss, "learnability")
        left = np.setdiff1d(np.arange(len(learner)), taken)
        weights = np.exp(logits[left] - logits[left].max())
        taken += random.choice(left, size, replace=False, p=weights / weights.sum()).tolist()
    return taken


def outcome_probability(outcome: tuple[int, ...], sizes: list[int], weigh: Callable[[list[int]], Floats]) -> float:
    """Of an ordered outcome, when each round draws one by one in proportion to ``weigh(taken before it)``."""
    probability, start = 1.0, 0
    for size in sizes:
        weights = weigh(list(outcome[:start])).copy()
        weights[list(outcome[:start])] = 0
        for pick in outcome[start : start + size]:
            probability *= weights[pick] / weights.sum()
            weights[pick] = 0
        start += size
    return probability


@functools.cache
def draws(jest: JEST, count: int) -> dict[tuple[int, ...], int]:
    """How often each outcome came, from the five pairs of the tests below."""
    learner, reference = pair(5, 3, 0), pair(5, 3, 1)
    generator = torch.Generator().manual_seed(11)
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(count):
        outcome = tuple(jest.select(learner, reference, generator=generator).indices.tolist())
        seen[outcome] = seen.get(outcome, 0) + 1
    return seen


def chi_square(seen: dict[tuple[int, ...], int], expected: dict[tuple[int, ...], float]) -> float:
    """p-value; rare outcomes pooled."""
    count = sum(seen.values())
    common = [o for o in expected if expected[o] * count >= 5]
    observed = [seen.get(o, 0) for o in common]
    wanted = [expected[o] * count for o in common]
    if count - sum(wanted) > 1e-6:
        observed.append(count - sum(observed))
        wanted.append(count - sum(wanted))
    return float(stats.chisquare(observed, wanted).pvalue)


@pytest.mark.parametrize(
    ("loss", "criterion", "filter_ratio", "chunks", "own_positive"),
    [
        ("sigmoid", "learnability", 0.4, 2, False),
        ("sigmoid", "hard", 0.6, 2, False),
        ("softmax", "learnability", 0.4, 3, False),
        ("softmax", "easy", 0.4, 2, False),
        ("softmax", "hard", 0.4, 3, True),
    ],
)
def test_every_outcome_is_as_likely_as_by_the_plain_algorithm(
    loss: str, criterion: str, filter_ratio: float, chunks: int, own_positive: bool
) -> None:
    learner, reference = pair(5, 3, 0), pair(5, 3, 1)
    options: Any = {"loss": loss, "criterion": criterion, "own_positive": own_positive}
    jest = JEST(filter_ratio=filter_ratio, chunks=chunks, **options)
    sizes = jest.rounds(5)

    def weigh(taken: list[int]) -> Floats:
        return np.exp(plain_logits(learner, reference, taken, **options))

    outcomes = list(itertools.permutations(range(5), sum(sizes)))
    expected = {outcome: outcome_probability(outcome, sizes, weigh) for outcome in outcomes}
    assert sum(expected.values()) == pytest.approx(1)
    assert chi_square(draws(jest, 1_500), expected) > ALPHA


def test_the_outcome_test_sees_the_ports_faults() -> None:
    learner, reference = pair(5, 3, 0), pair(5, 3, 1)
    jest = JEST(filter_ratio=0.4, chunks=2)
    seen = draws(jest, 1_500)

    def shifted(taken: list[int]) -> Floats:
        logits = plain_logits(learner, reference, taken, "sigmoid", "learnability")
        return logits - logits.min() + 1e-3

    def reference_overwritten(taken: list[int]) -> Floats:
        return np.exp(plain_logits(learner, learner, taken, "sigmoid", "learnability"))

    def not_pairwise(taken: list[int]) -> Floats:
        own = plain_logits(learner, reference, [], "sigmoid", "learnability")
        return np.exp(own * (1 + 2 * len(taken)))

    for wrong in (shifted, reference_overwritten, not_pairwise):
        outcomes = itertools.permutations(range(5), 3)
        expected = {outcome: outcome_probability(outcome, [2, 1], wrong) for outcome in outcomes}
        assert chi_square(seen, expected) < ALPHA, wrong


@pytest.mark.parametrize("loss", LOSSES)
def test_moments_on_a_larger_super_batch(loss: str) -> None:
    learner, reference = pair(60, 8, 2), pair(60, 8, 3)
    jest = JEST(loss=loss, filter_ratio=0.8, chunks=4)  # type: ignore[arg-type]
    sizes, random, count = jest.rounds(60), np.random.default_rng(5), 200
    value = np.random.default_rng(6).normal(size=60)
    ours, plains = [], []
    for _ in range(count):
        ours.append(value[jest.select(learner, reference, generator=random).indices].sum())
        plains.append(value[plain_draw(learner, reference, sizes, loss, random)].sum())
    assert stats.ttest_ind(ours, plains, equal_var=False).pvalue > ALPHA
    assert stats.levene(ours, plains).pvalue > ALPHA


@pytest.mark.parametrize(("loss", "own_positive"), FORMS)
@pytest.mark.parametrize("criterion", list(CRITERIA))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_logits_equal_the_plain_ones_in_every_round(
    loss: str, own_positive: bool, criterion: str, dtype: torch.dtype
) -> None:
    # The two models differ in width, scale and bias.
    learner, reference = cast(pair(90, 16, 0, 10.0, -10.0), dtype), cast(pair(90, 7, 1, 20.0, -3.0), dtype)
    options: Any = {"loss": loss, "criterion": criterion, "own_positive": own_positive}
    jest = JEST(tile_bytes=1, **options)
    rounds = [[5, 80], [0, 41, 89], [7]]
    for done in range(len(rounds) + 1):
        taken = [pick for picks in rounds[:done] for pick in picks]
        left = np.setdiff1d(np.arange(90), taken)
        got = jest.logits(learner, reference, rounds[:done])
        expected = plain_logits(learner, reference, taken, **options)
        np.testing.assert_allclose(got[left], expected[left], rtol=1e-4, atol=1e-4)


def topical(scale: float, noise: float, seed: int) -> Pair:
    """240 pairs in 16 topics; the same topics and pairs for each noise and seed."""
    made, random = np.random.default_rng(0), np.random.default_rng((1, seed))
    base = made.normal(size=(16, 32))[made.integers(16, size=240)] + 0.7 * made.normal(size=(240, 32))
    a, b = (base + noise * random.normal(size=base.shape) for _ in range(2))
    a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (a, b))
    return Pair(a, b, scale)


@pytest.mark.parametrize("scales", [(10.0, 10.0), (20.0, 50.0), (100.0, 100.0)])
def test_with_its_own_positive_a_logit_is_the_loss_in_the_batch(scales: tuple[float, float]) -> None:
    """On made pairs (one seed) it then also follows more closely what taking j does to the batch's mean loss."""
    models = topical(scales[0], 0.9, 1), topical(scales[1], 0.5, 2)
    taken = np.random.default_rng(0).choice(240, 30, replace=False).tolist()
    left = np.setdiff1d(np.arange(240), taken)[:60]
    before = [np.mean(info_nce(model, taken)) for model in models]
    losses, changes = [], []
    for j in left:
        learner, reference = (info_nce(model, [*taken, j]) for model in models)
        losses.append(learner[-1] - reference[-1])
        changes.append(np.mean(learner) - before[0] - (np.mean(reference) - before[1]))
    paper, own = (JEST(loss="softmax", own_positive=form).logits(*models, [taken])[left] for form in (False, True))
    np.testing.assert_allclose(own, losses, rtol=1e-9, atol=1e-9)
    correlations = [stats.spearmanr(logits, changes).statistic for logits in (paper, own)]
    assert correlations[1] > max(0.5, correlations[0] + 0.1)
    if scales == (20.0, 50.0):
        assert correlations[0] < 0.2


def test_the_first_round_is_the_papers_in_both_forms() -> None:
    learner, reference = pair(30, 4, 0), pair(30, 4, 1)
    for joint in (True, False):
        paper, own = (
            JEST(loss="softmax", joint=joint, own_positive=form).logits(learner, reference) for form in (False, True)
        )
        np.testing.assert_array_equal(paper, own)


@pytest.mark.parametrize("loss", LOSSES)
def test_scores_are_the_logits_of_the_round(loss: str) -> None:
    learner, reference = pair(50, 8, 0), pair(50, 8, 1)
    jest = JEST(loss=loss, filter_ratio=0.5, chunks=3)  # type: ignore[arg-type]
    chosen = jest.select(learner, reference, generator=np.random.default_rng(0))
    assert chosen.scores is not None
    assert chosen.size == 50
    start = 0
    for size in jest.rounds(50):
        expected = plain_logits(learner, reference, chosen.indices[:start].tolist(), loss, "learnability")
        now = slice(start, start + size)
        np.testing.assert_allclose(chosen.scores[now], expected[chosen.indices[now]], rtol=1e-6)
        start += size


def test_independent_ignores_what_was_taken() -> None:
    learner, reference = pair(40, 8, 0), pair(40, 8, 1)
    jest = JEST(joint=False)
    chosen = jest.select(learner, reference, generator=np.random.default_rng(0))
    own = plain_logits(learner, reference, [], "sigmoid", "learnability")
    assert jest.rounds(40) == [8]
    np.testing.assert_allclose(chosen.scores, own[chosen.indices], rtol=1e-6)
    np.testing.assert_allclose(jest.logits(learner, reference, [[1, 2]]), own, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 40),
    filter_ratio=st.floats(0, 0.999),
    chunks=st.integers(1, 20),
    loss=st.sampled_from(LOSSES),
    joint=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_any_size_gives_b_distinct_rows(
    size: int, filter_ratio: float, chunks: int, loss: str, joint: bool, seed: int
) -> None:
    jest = JEST(loss=loss, filter_ratio=filter_ratio, chunks=chunks, joint=joint)  # type: ignore[arg-type]
    sizes = jest.rounds(size)
    b = max(1, round((1 - filter_ratio) * size))
    assert sum(sizes) == b
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    learner, reference = pair(size, 4, seed), pair(size, 4, seed + 1)
    first, second = (jest.select(learner, reference, generator=np.random.default_rng(seed)) for _ in range(2))
    assert len(set(first.indices.tolist())) == b
    np.testing.assert_array_equal(first.indices, second.indices)


def test_the_paper_s_sizes() -> None:
    assert JEST().rounds(163_840) == [2_048] * 16
    assert JEST().rounds(1_280) == [16] * 16
    assert JEST(chunks=3).rounds(50) == [4, 3, 3]


def test_one_seed_one_choice_whatever_the_backend() -> None:
    learner, reference = cast(pair(300, 16, 0), torch.float32), cast(pair(300, 16, 1), torch.float32)

    def choose(seed: int, backend: str) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        jest = JEST(backend=backend)  # type: ignore[arg-type]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return jest.select(learner, reference, generator=generator).indices.tolist()

    assert choose(1, "numba") == choose(1, "numba") == choose(1, "torch")
    assert choose(1, "numba") != choose(2, "numba")


def test_equal_rows_tie_by_nothing_but_noise() -> None:
    ones = Pair(np.ones((6, 2)), np.ones((6, 2)))
    jest = JEST(filter_ratio=0.5, chunks=3)
    firsts = {int(jest.select(ones, ones, generator=np.random.default_rng(s)).indices[0]) for s in range(60)}
    assert firsts == set(range(6))


def test_no_tensor_grows_with_b_squared() -> None:
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.seen = max(self.seen, tensor.numel() * tensor.element_size())
            return out

    size, width, budget = 2_048, 8, 64 << 10
    learner, reference = cast(pair(size, width, 0), torch.float32), cast(pair(size, width, 1), torch.float32)
    for backend in ("numba", "torch"):
        with Largest() as mode:
            JEST(backend=backend, tile_bytes=budget).select(  # type: ignore[arg-type]
                learner, reference, generator=torch.Generator().manual_seed(0)
            )
        assert 0 < mode.seen <= max(budget, size * width * 4), backend


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "sigmod"}, "loss must be one of sigmoid, softmax"),
        ({"criterion": "best"}, "criterion must be one of learnability, hard, easy"),
        ({"backend": "jax"}, "backend must be one of"),
        ({"filter_ratio": 1.0}, r"filter_ratio must lie in \[0, 1\)"),
        ({"filter_ratio": float("nan")}, "filter_ratio"),
        ({"chunks": 0}, "chunks must be at least 1"),
        ({"tile_bytes": 0}, "tile_bytes must be positive"),
        ({"own_positive": True}, "own_positive is of loss='softmax'"),
    ],
)
def test_bad_parameters(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JEST(**options)  # type: ignore[arg-type]


def test_bad_input_is_named() -> None:
    good, g = pair(10, 3, 0), np.random.default_rng(0)
    with pytest.raises(ValueError, match="needs the reference's embeddings"):
        JEST().select(good, None, generator=g)
    with pytest.raises(ValueError, match="learner has 10 rows, but reference has 9"):
        JEST().select(good, pair(9, 3, 1), generator=g)
    with pytest.raises(TypeError, match="generator must be"):
        JEST().select(good, good, generator=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"learner\.a must be"):
        JEST().select(Pair(np.ones((3, 2), int), np.ones((3, 2), int)), pair(3, 2, 0), generator=g)
    with pytest.raises(ValueError, match=r"learner\.a is torch.float64 on cpu, but b is torch.float32"):
        JEST().select(Pair(good.a, good.b.astype(np.float32)), good, generator=g)
    bad = pair(10, 3, 1)
    bad.b[4, 1] = np.nan
    for choose in (JEST().select, JEST().draw):
        with pytest.raises(ValueError, match=r"reference\.b, row 4: not finite"):
            choose(good, bad, generator=g)
        with pytest.raises(ValueError, match="learner, row 0: its own logit is inf"):
            choose(Pair(good.a, good.b, 1.0, np.inf), good, generator=g)
    with pytest.raises(TypeError, match=r"learner\.a must be .* of at most 64 bits, not float128"):
        JEST().select(Pair(good.a.astype(np.longdouble), good.b), good, generator=g)
    with pytest.raises(ValueError, match=r"learner\.bias must be one number, not a tensor of shape \[10\]"):
        JEST().select(Pair(good.a, good.b, 1.0, torch.ones(10)), good, generator=g)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("taken", "error", "message"),
    [
        ([[1, 10]], ValueError, "taken: index 10 is out of range: there are 10"),
        ([[1], [-1]], ValueError, "taken: index -1 is negative"),
        ([[1], [1]], ValueError, "taken: index 1 appears more than once"),
        ([[0], [1.9]], TypeError, r"taken\[1\] must be integers, not float64"),
        ([[[0, 1]]], ValueError, r"taken\[0\] must be one-dimensional"),
    ],
)
@pytest.mark.parametrize("joint", [True, False])
def test_positions_taken_are_checked(taken: Any, error: type[Exception], message: str, joint: bool) -> None:
    with pytest.raises(error, match=message):
        JEST(joint=joint).logits(pair(10, 3, 0), pair(10, 3, 1), taken)


def test_any_memory_of_an_array_is_read() -> None:
    plain, reference = pair(10, 3, 0), pair(10, 3, 1)
    expected = JEST().logits(plain, reference)
    wide = np.zeros((10, 8))
    wide[:, ::3] = plain.a
    record = np.zeros((10, 3), [("flag", "i1"), ("value", "f8")])
    record["value"] = plain.a
    frozen = plain.a.copy()
    frozen.flags.writeable = False
    forms = [plain.a.astype(">f8"), plain.a[::-1].copy()[::-1], np.asfortranarray(plain.a), wide[:, ::3]]
    for a in (*forms, record["value"], frozen):
        np.testing.assert_array_equal(JEST().logits(Pair(a, plain.b, 4.0, -1.0), reference), expected)


def test_a_models_own_scale_is_read_without_its_gradient() -> None:
    plain, reference = pair(10, 3, 0), pair(10, 3, 1)
    log_scale, bias = torch.nn.Parameter(torch.tensor(4.0).log()), torch.nn.Parameter(torch.tensor([-1.0]))
    expected = JEST().logits(Pair(plain.a, plain.b, float(log_scale.detach().exp()), -1.0), reference)
    model = Pair(plain.a, plain.b, log_scale.exp(), bias)
    np.testing.assert_array_equal(JEST().logits(model, reference), expected)
    assert model.factors == (float(log_scale.detach().exp()), -1.0)


def test_one_model_is_enough_for_hard_and_easy_and_inputs_stay_as_they_are() -> None:
    model = pair(20, 4, 0)
    model.a.flags.writeable = False
    before = model.a.copy(), model.b.copy()
    for criterion, models in (("hard", (model, None)), ("easy", (None, model))):
        jest = JEST(criterion=criterion)  # type: ignore[arg-type]
        assert len(jest.select(*models, generator=np.random.default_rng(0))) == 4
    np.testing.assert_array_equal(model.a, before[0])
    np.testing.assert_array_equal(model.b, before[1])


@pytest.mark.gpu
@pytest.mark.parametrize("loss", LOSSES)
def test_on_cuda_nothing_waits_and_logits_agree(loss: str) -> None:
    models = [cast(pair(4_000, 64, seed), torch.bfloat16) for seed in (0, 1)]
    # A trained model's factors are on its device, and carry gradients.
    factors = [torch.tensor([model.scale, model.bias], device="cuda", requires_grad=True) for model in models]
    learner, reference = (Pair(m.a.cuda(), m.b.cuda(), *f) for m, f in zip(models, factors, strict=True))
    jest = JEST(loss=loss)  # type: ignore[arg-type]
    generator = torch.Generator("cuda").manual_seed(0)
    jest.draw(learner, reference, generator=generator)  # tunes the kernel, which waits
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        indices, _ = jest.draw(learner, reference, generator=generator)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert len(set(indices.tolist())) == 800
    picks = [list(range(100)), [200, 300]]
    np.testing.assert_allclose(
        jest.logits(learner, reference, picks)[400:], jest.logits(*models, picks)[400:], rtol=1e-4, atol=1e-4
    )
