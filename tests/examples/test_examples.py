"""Every example runs on the real library, and one that is stopped and started again ends where a whole run ends."""

import contextlib
import io
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"

# The libraries' own warnings are theirs; that ours gives none is for the other tests.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples import ``digits`` from beside them; torch's global state is put back after each."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        except SystemExit as stopped:
            print(stopped)
    return out.getvalue()


def checksum(output: str) -> str:
    accuracy = re.search(r"accuracy (0\.\d+)", output)
    assert accuracy is not None, output
    assert float(accuracy[1]) > 0.85, output
    found = re.search(r"checksum (\S+)", output)
    assert found is not None, output
    return found[1]


def steps(output: str) -> int:
    found = re.search(r"(\d+) steps", output)
    assert found is not None, output
    return int(found[1])


def test_plain_pytorch_survives_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = run(monkeypatch, "plain_pytorch", "--epochs", 8)
    assert re.search(r"[1-9]\d% saved", whole)
    saved = ["--checkpoint", tmp_path / "run.pt", "--epochs", 8]
    assert "stopped in epoch 2" in run(monkeypatch, "plain_pytorch", *saved, "--stop-at", 50, "--workers", 1)
    rest = run(monkeypatch, "plain_pytorch", *saved)
    assert "goes on in epoch 2 after step 50" in rest
    assert checksum(rest) == checksum(whole)


def test_accelerate_survives_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = run(monkeypatch, "accelerate_loop", "--epochs", 8)
    saved = ["--checkpoint", tmp_path / "run", "--epochs", 8]
    assert "stopped in epoch 2" in run(monkeypatch, "accelerate_loop", *saved, "--stop-at", 100)
    rest = run(monkeypatch, "accelerate_loop", *saved)
    assert "goes on in epoch 2" in rest
    assert checksum(rest) == checksum(whole)


def test_lightning_goes_on_after_a_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = run(monkeypatch, "lightning_loop", "--epochs", 8)
    assert 100 < steps(whole) < 8 * 23, "nothing was pruned"
    saved = ["--checkpoint", tmp_path / "run.ckpt", "--epochs", 8]
    run(monkeypatch, "lightning_loop", *saved, "--stop-after", 3)
    rest = run(monkeypatch, "lightning_loop", *saved)
    assert checksum(rest) == checksum(whole)


def test_hf_trainer_survives_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = run(monkeypatch, "hf_trainer", "--epochs", 8, "--output", tmp_path / "whole")
    assert 100 < steps(whole) < 8 * 23, "nothing was pruned"
    run(monkeypatch, "hf_trainer", "--epochs", 8, "--output", tmp_path / "cut", "--stop-at", 50)
    folder = tmp_path / "cut" / "checkpoint-50"
    rest = run(monkeypatch, "hf_trainer", "--epochs", 8, "--output", tmp_path / "cut", "--resume", folder)
    assert checksum(rest) == checksum(whole)


def test_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(monkeypatch, "composition")
    assert len(re.findall(r"recall@10 0\.\d+", out)) == 6


def torchrun(processes: int, script: Path) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    result = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_ddp_under_torchrun(tmp_path: Path) -> None:
    # A thread of gloo's that is still there when Python shuts down aborts the process now and then.
    script = tmp_path / "counted.py"
    script.write_text(
        "import pathlib, runpy, sys\n"
        f"sys.path.insert(0, {str(EXAMPLES)!r})\n"
        f"runpy.run_path({str(EXAMPLES / 'ddp.py')!r}, run_name='__main__')\n"
        "names = [path.read_text() for path in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "sys.stdout.write(f\"threads of gloo: {sum('gloo' in name for name in names)}\\n\")\n"
    )
    out = torchrun(2, script)
    assert re.search(r"2 ranks, \d+ steps each, accuracy 0\.9", out)
    assert re.findall(r"threads of gloo: (\d+)", out) == ["0", "0"]


@pytest.mark.slow
def test_ddp_on_four_ranks() -> None:
    assert re.search(r"4 ranks, \d+ steps each, accuracy 0\.9", torchrun(4, EXAMPLES / "ddp.py"))


@pytest.mark.slow
def test_accelerate_on_two_ranks() -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    result = subprocess.run(
        [*command, *options, str(EXAMPLES / "accelerate_loop.py")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    checksum(result.stdout)


@pytest.mark.slow
def test_ray_train() -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "ray_train.py")], capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"accuracy 0\.9", result.stdout)
