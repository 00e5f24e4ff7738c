"""The kernels compiled for an H100, which needs none: the matrix unit is used, and registers suffice."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux"),
]


def compiled(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], tmp_path: Path, **options: int) -> Any:
    """(PTX, what ptxas says); integers are multiples of 16, as sizes and strides mostly are."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = dict.fromkeys(names, "i32") | pointers | dict.fromkeys(constants, "constexpr")
    even = [name for name in names if signature[name] == "i32" or signature[name].startswith("*")]
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name in even}
    source = ASTSource(kernel, signature, constants, hints)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    (tmp_path / "kernel.ptx").write_text(ptx)
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    done = subprocess.run(
        [ptxas, "-v", "-arch=sm_90a", tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ptx, done.stderr


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("factor", ["fp32", "*fp32"])
def test_the_learnability_kernel(softmax: bool, factor: str, tmp_path: Path) -> None:
    from curation.gpu.learnability import kernels as module

    pointers = {"taken": "*bf16", "rows": "*bf16", "out": "*fp32", "scale": factor, "bias": factor}
    for config in module.configs():
        constants = {"D": 512, "SOFTMAX": softmax, "EVEN": True, "PRECISION": "tf32", "UPCAST": False, **config.kwargs}
        constants["POINTERS"] = factor.startswith("*")
        ptx, said = compiled(
            module.sums_kernel, pointers, constants, tmp_path, num_warps=config.num_warps, num_stages=config.num_stages
        )
        assert "wgmma.mma_async" in ptx, config
        assert "wgmma.wait_group.sync.aligned \t1;" in ptx or "wgmma.wait_group.sync.aligned 1;" in ptx, config
        assert " 0 bytes spill stores" in said, (config, said)


def test_the_passes_over_scores_and_products(tmp_path: Path) -> None:
    from curation.gpu.knn import kernels as knn_kernels
    from curation.gpu.topk import kernels as topk_kernels

    pointers = {"values": "*fp32", "seeds": "*i64", "bar": "*fp32", "slots": "*i64", "counts": "*i32", "slope": "fp32"}
    for log in (False, True):
        constants = {"LOG": log, "NOISE": True, "SCALED": True, "BLOCK": topk_kernels.BLOCK}
        ptx, said = compiled(topk_kernels.filter_kernel, pointers, constants, tmp_path, num_warps=4, num_stages=3)
        assert "lg2.approx.ftz.f32" in ptx
        assert " 0 bytes spill stores" in said
        # 64 registers leave room for eight programs of 128 threads on a multiprocessor.
        assert int(said.split("Used ")[1].split()[0]) <= 64
    pointers = {"products": "*fp16", "offsets": "*fp32", "bars": "*fp32", "counts": "*i32", "ids": "*i32",
                "scores": "*fp32", "factor": "fp32"}  # fmt: skip
    _, said = compiled(knn_kernels.keep_above_kernel, pointers, {"L2": False, "WIDTH": 1024}, tmp_path, num_warps=4)
    assert " 0 bytes spill stores" in said
    pointers = {"queries": "*fp32", "database": "*fp32", "ids": "*i64", "out": "*fp32"}
    constants = {"D": 768, "L2": True, "ENTRIES": 64}
    _, said = compiled(knn_kernels.scores_kernel, pointers, constants, tmp_path, num_warps=4, enable_fp_fusion=False)
    assert " 0 bytes spill stores" in said
