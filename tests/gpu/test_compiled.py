"""Compiled loops where numba can and cannot keep what it compiled."""

import subprocess
import sys
from pathlib import Path

import numba
import pytest

from curation.gpu.compiled import compiled

ROOT = Path(__file__).resolve().parents[2]

READ_ONLY = """
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda cls, function, path: None)
import curation.gpu.graph.cpu, curation.gpu.knn.search, curation.gpu.learnability.cpu, curation.gpu.pruning.cpu
import curation.gpu.topk.cpu, curation.selectors.b3.method, curation.selectors.importance
import curation.selectors.zipfit.method
"""


def test_options_reach_numba() -> None:
    @compiled(nogil=True)
    def double(x):  # type: ignore[no-untyped-def]
        return 2 * x

    assert double(3) == 6
    assert double.targetoptions["nogil"]


def test_without_a_folder_for_the_cache_it_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def njit(*, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled()(lambda x: 2 * x)(3) == 6


def test_every_compiled_module_imports_in_a_read_only_container() -> None:
    run = subprocess.run([sys.executable, "-c", READ_ONLY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
