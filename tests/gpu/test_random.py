"""SplitMix64 on the host, by tensor operations and in Triton's interpreter: the same integers, from Python's own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch

from curation.gpu.random import GOLDEN, MIX_A, MIX_B, cpu, derive_key, derive_keys, tensor

ROOT = Path(__file__).resolve().parents[2]
WORD = 2**64
WORDS = [0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, WORD - 1, GOLDEN, *map(int, derive_keys(0, 300))]

INTERPRETED = """
import sys, torch, triton
import triton.language as tl
from curation.gpu.random.kernels import high_bits, mix

@triton.jit
def kernel(words, mixed, high):
    i = tl.arange(0, 512)
    x = tl.load(words + i).to(tl.uint64)
    tl.store(mixed + i, mix(x).to(tl.int64, bitcast=True))
    tl.store(high + i, (high_bits(x) >> 33).to(tl.int64, bitcast=True))

words = torch.tensor(list(map(int, sys.stdin.read().split())))
mixed, high = torch.zeros_like(words), torch.zeros_like(words)
kernel[(1,)](words, mixed, high)
print(*mixed.tolist())
print(*high.tolist())
"""


def mixed(x: int) -> int:
    """The mixer in Python's integers."""
    x = (x ^ (x >> 30)) * MIX_A % WORD
    x = (x ^ (x >> 27)) * MIX_B % WORD
    return x ^ (x >> 31)


@numba.njit
def on_host(words: npt.NDArray[np.uint64], numbers: Any, mixes: Any, uniforms: Any, fine: Any) -> None:
    for i in range(len(words)):
        numbers[i] = cpu.number(words[0], i)
        mixes[i] = cpu.mix(words[i])
        uniforms[i] = cpu.uniform(words[i])
        fine[i] = cpu.fine_uniform(words[i])


def test_host_and_tensors_agree(device: torch.device) -> None:
    words = np.array(WORDS, np.uint64)
    numbers, mixes = np.empty_like(words), np.empty_like(words)
    uniforms, fine = np.empty(len(words)), np.empty(len(words))
    on_host(words, numbers, mixes, uniforms, fine)
    bits = torch.from_numpy(words.view(np.int64)).to(device)
    assert mixes.tolist() == [mixed(word) for word in WORDS]
    for host, tensors in (
        (mixes.view(np.int64), tensor.mix(bits)),
        (numbers.view(np.int64), tensor.numbers(WORDS[0], len(WORDS), device)),
        (uniforms, tensor.uniform(bits)),
        (fine, tensor.fine_uniform(bits)),
    ):
        np.testing.assert_array_equal(host, tensors.cpu().numpy())
    assert 0 <= uniforms.min() < uniforms.max() < 1
    assert 0 < fine.min() < fine.max() <= 1


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_agrees() -> None:
    words = (WORDS * 2)[:512]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=250, check=False,
        input=" ".join(str(tensor.signed(word)) for word in words),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    mixes, high = (list(map(int, line.split())) for line in run.stdout.splitlines())
    assert mixes == [tensor.signed(mixed(word)) for word in words]
    assert high == [mixed(word) >> 33 for word in words]


def test_the_stream_is_splitmix() -> None:
    # The first outputs for seed 1234567, as published with the generator.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(bits) % WORD for bits in tensor.numbers(1234567, 3, torch.device("cpu"))] == expected


def test_shift_has_no_sign() -> None:
    bits = torch.tensor([-1, 2**63 - 1, -(2**63)])
    assert [int(bits) % WORD for bits in tensor.shift(bits, 1)] == [2**63 - 1, 2**62 - 1, 2**62]


def test_keys_depend_on_every_number_of_the_seed() -> None:
    assert len({derive_keys(seed, 2) for seed in ((0, 1), (1, 0), (1, 1), (0, 2), (2**40, 1))}) == 5
    assert derive_keys((3, 1), 2)[0] == derive_key((3, 1))
    assert derive_key((3, 1)).dtype == np.uint64
    with pytest.raises(ValueError, match="non-negative"):
        derive_key((-1,))
