"""benchmarks/gpu.py on a machine without a GPU, and without anything but torch, triton and numpy."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

BARE = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Missing())
sys.argv = ["gpu", *{arguments}]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""
ABSENT = {
    *("datasets", "faiss", "fastapi", "fsspec", "kaminpar", "llvmlite", "lz4", "networkx", "numba", "pandas", "plotly"),
    *("pyarrow", "pydantic", "pymetis", "ray", "rich", "scipy", "sklearn", "transformers", "typer", "xxhash", "yaml"),
    "zstandard",
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    gpu = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks_gpu", gpu)
    spec.loader.exec_module(gpu)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 0
    assert capsys.readouterr().out.startswith("No GPU that torch can use")
    monkeypatch.setattr(sys, "argv", ["gpu", "--only", "knn,warp"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "unknown part 'warp'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_dry_run_goes_through_every_part() -> None:
    # From the checkout's root and by its path alone: on a bare machine nothing is installed.
    code = BARE.format(names=ABSENT, arguments=["--dry-run"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    for part in ("ceiling copy", "JEST kernel sigmoid bf16", "JEST select softmax", "kNN exact", "kNN product alone",
                 "Gumbel top-20 float64", "InfoBatch epoch", "CSR either"):  # fmt: skip
        assert f"\n{part} " in done.stdout, part
    assert "0 checks failed" in done.stdout
