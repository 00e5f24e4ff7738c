import importlib.util
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.gpu.learnability import accumulate, choose_backend, own_logits

ROOT = Path(__file__).resolve().parents[3]
LOSSES = ("sigmoid", "softmax")


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=1)


def plain(taken: torch.Tensor, rows: torch.Tensor, loss: str, scale: float, bias: float) -> npt.NDArray[np.float64]:
    """The definition, in float64, with all logits at once."""
    z = scale * taken.double().cpu().numpy() @ rows.double().cpu().numpy().T + bias
    pairwise = np.logaddexp(0, z)
    return pairwise.sum(0) if loss == "sigmoid" else np.logaddexp.reduce(z, axis=0)


def start(loss: str, size: int, device: str = "cpu") -> torch.Tensor:
    value = 0.0 if loss == "sigmoid" else -torch.inf
    return torch.full((size,), value, dtype=torch.float64, device=device)


def assert_close(got: torch.Tensor, expected: npt.NDArray[np.float64]) -> None:
    np.testing.assert_allclose(got.cpu().numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("numba", torch.float32),
        ("numba", torch.bfloat16),
        ("numba", torch.float16),
        ("torch", torch.float32),
        ("torch", torch.bfloat16),
        ("torch", torch.float64),
    ],
)
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, 3.0), (1.0, 0.0), (0.0, 0.0), (0.1, -17.0)])
def test_two_rounds_equal_the_definition(
    loss: str, backend: str, dtype: torch.dtype, scale: float, bias: float
) -> None:
    taken, rows = unit(250, 24, 0).to(dtype), unit(301, 24, 1).to(dtype)
    out = start(loss, 301)
    for part in (taken[:3], taken[3:]):
        accumulate(part, rows, out, loss=loss, scale=scale, bias=bias, backend=backend, tile_bytes=1)  # type: ignore[arg-type]
    assert_close(out, plain(taken, rows, loss, scale, bias))


def test_small_terms_are_not_lost() -> None:
    # softplus(-17) is 4e-8: as 1 + u in float32 it would vanish, and 2,000 of them with it.
    taken, rows = torch.zeros(2_000, 4), torch.zeros(130, 4)
    out = start("sigmoid", 130)
    accumulate(taken, rows, out, loss="sigmoid", bias=-17.0, backend="numba")
    np.testing.assert_allclose(out.numpy(), 2_000 * np.log1p(np.exp(-17.0)), rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    taken=st.integers(0, 7),
    rows=st.integers(1, 300),
    width=st.integers(1, 9),
    loss=st.sampled_from(LOSSES),
    backend=st.sampled_from(["numba", "torch"]),
    seed=st.integers(0, 2**16),
)
def test_any_shape(taken: int, rows: int, width: int, loss: str, backend: str, seed: int) -> None:
    x, y = unit(taken, width, seed).float(), unit(rows, width, seed + 1).float()
    out = start(loss, rows)
    accumulate(x, y, out, loss=loss, scale=7.0, bias=-1.0, backend=backend, tile_bytes=512)  # type: ignore[arg-type]
    if taken:
        assert_close(out, plain(x, y, loss, 7.0, -1.0))
    else:
        assert torch.equal(out, start(loss, rows))


def test_autocast_does_not_reach_the_sums() -> None:
    taken, rows = unit(64, 32, 0).float(), unit(200, 32, 1).float()
    for backend in ("numba", "torch"):
        inside, outside = start("sigmoid", 200), start("sigmoid", 200)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            accumulate(taken, rows, inside, loss="sigmoid", scale=30.0, backend=backend)  # type: ignore[arg-type]
        accumulate(taken, rows, outside, loss="sigmoid", scale=30.0, backend=backend)  # type: ignore[arg-type]
        assert torch.equal(inside, outside)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("loss", LOSSES)
def test_factors_may_be_tensors(loss: str, backend: str) -> None:
    taken, rows = unit(20, 8, 0).float(), unit(50, 8, 1).float()
    by_number, by_tensor = start(loss, 50), start(loss, 50)
    accumulate(taken, rows, by_number, loss=loss, scale=7.5, bias=-2.0, backend=backend)  # type: ignore[arg-type]
    factors: Any = {"scale": torch.tensor(7.5), "bias": torch.tensor(-2.0)}
    accumulate(taken, rows, by_tensor, loss=loss, backend=backend, **factors)  # type: ignore[arg-type]
    assert torch.equal(by_number, by_tensor)


def test_no_candidates_need_no_sums() -> None:
    for backend in ("numba", "torch"):
        accumulate(torch.ones(3, 4), torch.ones(0, 4), start("softmax", 0), loss="softmax", backend=backend)  # type: ignore[arg-type]


def test_strided_rows_and_gradients_are_accepted() -> None:
    base = unit(90, 32, 0).float().requires_grad_()
    taken, rows = base[:20, ::2], base[20:, ::2]
    for backend in ("numba", "torch"):
        out = start("softmax", 70)
        accumulate(taken, rows, out, loss="softmax", scale=5.0, backend=backend)  # type: ignore[arg-type]
        assert_close(out, plain(taken.detach(), rows.detach(), "softmax", 5.0, 0.0))
        assert not out.requires_grad


def test_own_logits_are_not_finite_where_a_row_is_not() -> None:
    a, b = unit(6, 4, 0).float(), unit(6, 4, 1).float()
    np.testing.assert_allclose(own_logits(a, b, scale=3.0, bias=1.0).numpy(), 3 * (a * b).sum(1).numpy() + 1, rtol=1e-5)
    a[1, 2], b[3, 0], b[5] = torch.nan, torch.inf, 0
    a[5, 0] = torch.inf
    assert torch.isfinite(own_logits(a, b)).tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taken": torch.zeros(2, 3)}, r"taken must be \[S, D\]"),
        ({"taken": torch.zeros(2, 4, dtype=torch.float64)}, "one floating dtype"),
        ({"out": torch.zeros(5)}, r"out must be float64\[5\]"),
        ({"out": torch.zeros(4, dtype=torch.float64)}, r"out must be float64\[5\]"),
        ({"backend": "numpy"}, "backend must be one of"),
    ],
)
def test_misfits_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"taken": torch.zeros(2, 4), "rows": torch.zeros(5, 4), "out": start("sigmoid", 5)} | change
    with pytest.raises(ValueError, match=message):
        accumulate(**arguments, loss="sigmoid")  # type: ignore[arg-type]


def test_backends_that_cannot_run_here_say_so() -> None:
    wide = torch.zeros(2, 2, dtype=torch.float64)
    assert choose_backend("auto", wide) == "torch"
    assert choose_backend("auto", wide.half()) == "numba"
    for backend in ("numba", "triton"):
        with pytest.raises(ValueError, match="at most 32 bits"):
            choose_backend(backend, wide)  # type: ignore[arg-type]


INTERPRETED = """
import json, sys
import torch
from curation.gpu.learnability import accumulate
from tests_learnability import plain, start, unit
worst = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for loss in ("sigmoid", "softmax"):
        # Ragged in every block, a second round, and shares of one group that end inside a tile.
        for taken, rows, width, scale, bias in ((20, 35, 24, 10.0, -10.0), (16, 32, 16, 0.0, 0.0)):
            x, y = unit(taken, width, 0).to(dtype), unit(rows, width, 1).to(dtype)
            out = start(loss, rows)
            for part, factors in ((x[:3], (scale, bias)), (x[3:], (torch.tensor(scale), bias))):
                accumulate(part, y, out, loss=loss, scale=factors[0], bias=factors[1], backend="triton")
            expected = torch.from_numpy(plain(x, y, loss, scale, bias))
            error = ((out - expected).abs() / (1 + expected.abs())).max()
            worst[f"{dtype} {loss} {taken}"] = float(error)
for taken in (130, 128):
    x, y = torch.zeros(taken, 16), torch.zeros(5, 16)
    out = start("sigmoid", 5)
    accumulate(x, y, out, loss="sigmoid", backend="triton")
    worst[f"{taken} equal logits"] = float((out / (taken * 0.6931471805599453) - 1).abs().max())
print(json.dumps(worst))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_kernel_in_its_interpreter(tmp_path: Path) -> None:
    # Triton reads the variable when it is first imported, which another test may have done here.
    (tmp_path / "tests_learnability.py").write_text(Path(__file__).read_text())
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout)
    assert len(worst) == 14
    assert max(worst.values()) < 1e-4, worst


@pytest.mark.gpu
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_equals_the_definition_without_a_wait(loss: str, backend: str, dtype: torch.dtype) -> None:
    taken, rows = unit(300, 96, 0).to(dtype).cuda(), unit(1_001, 96, 1).to(dtype).cuda()
    tensors: Any = {"scale": torch.tensor(10.0, device="cuda"), "bias": torch.tensor(-5.0, device="cuda")}
    calls: Any = [{"scale": 10.0, "bias": -5.0}, tensors]
    for _, factors in product(range(2), calls):  # the first call of each tunes, which waits
        out = start(loss, 1_001, "cuda")
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error" if _ else mode)
        try:
            accumulate(taken, rows, out, loss=loss, backend=backend, **factors)  # type: ignore[arg-type]
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    assert_close(out, plain(taken, rows, loss, 10.0, -5.0))
