"""The command line: a few real processes, and every command in-process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from curation import cli
from curation.dataset.manifest import Manifest
from curation.errors import CurationError, OutputError
from curation.recipe import Recipe

from ..conftest import Finished

ROOT = Path(__file__).resolve().parents[3]
RAY_FREE = "ray", "torch", "datasets", "pandas", "pyarrow", "numpy", "faiss", "fastapi"


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160", "RAY_ADDRESS": None}).invoke(cli.app, list(arguments), prog_name="curation")


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "curation.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from curation.cli import main\n"
        "try:\n    main(['--help'])\n"
        f"finally:\n    print([name for name in {RAY_FREE!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for name in cli.COMMANDS:
        assert re.search(rf"^│ {name} ", done.stdout, re.MULTILINE), name
    assert "Exit codes" in done.stdout


def test_a_real_process_fails_with_its_code_and_no_traceback(finished: Finished) -> None:
    out = finished().folder
    (out / "state.json").unlink()
    done = process("verify", str(out))
    assert done.returncode == 7
    assert "state.json: missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    done = invoke("--debug", "verify", str(out))
    assert done.exit_code == 7
    assert "Traceback" in done.stderr


def test_completion_names_commands() -> None:
    done = process(_CURATION_COMPLETE="complete_bash", COMP_WORDS="curation ver", COMP_CWORD="1")
    assert done.stdout.split() == ["verify", "version"]


def test_every_command_has_help_and_json() -> None:
    for name in cli.COMMANDS:
        done = invoke(name, "--help")
        assert done.exit_code == 0, name
        if name not in ("serve", "token", "owner", "store"):  # a server, and groups of commands
            assert "--json" in done.output, name


def test_the_table_of_the_docs_is_complete() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name in cli.COMMANDS:
        assert f"## `curation {name}" in text, name
    codes = {error.exit_code for error in [CurationError, *CurationError.__subclasses__()]} | {0, 2, cli.INTERRUPTED}
    assert set(map(int, re.findall(r"^\| (\d+) \|", text, re.MULTILINE))) == codes
    for code in codes:
        assert re.search(rf"\b{code} ", cli.EPILOG), code


def test_unknown_commands_suggest_the_near_one() -> None:
    done = invoke("verfy")
    assert done.exit_code == 2
    assert "Did you mean 'verify'" in done.output


def test_verify_json(finished: Finished) -> None:
    out = finished().folder
    done = invoke("verify", str(out), "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"out": str(out), "verified": True, "findings": []}
    assert {json.loads(line)["event"] for line in done.stderr.splitlines()} == {"begin", "end"}
    (out / "state.json").write_text("{}")
    done = invoke("verify", str(out), "--json")
    assert done.exit_code == 7
    assert not json.loads(done.stdout)["verified"]


def test_errors_for_machines_are_json(tmp_path: Path) -> None:
    done = invoke("verify", str(tmp_path), "--json")
    assert done.exit_code == 4
    error = json.loads(done.stderr)
    assert (error["error"], error["exit_code"]) == ("SourceError", 4)
    assert "no manifest.json" in error["message"]


def test_inspect(finished: Finished) -> None:
    out = finished(texts={3: "\x1b[31mred"}).folder
    done = invoke("inspect", str(out))
    assert done.exit_code == 0
    for expected in ("3. acquire: below the cut", "75.0 %", "◂ cut 0.442", "Sample 3", "█"):
        assert expected in done.stdout
    answer = json.loads(invoke("inspect", str(out), "--json", "--samples", "1").stdout)
    assert answer["counts"]["kept"] == 60
    assert len(answer["samples"]) == 1
    assert sum(answer["histograms"][0]["kept"]) == 60
    done = invoke("inspect", str(out.parent / "source.parquet"), "--samples", "400")
    assert "␛[31mred" in done.stdout
    assert "\x1b" not in done.stdout


def test_explain(finished: Finished) -> None:
    out = finished().folder
    done = invoke("explain", str(out), "--index", "25")
    assert done.exit_code == 0
    assert "Row 25 dropped" in done.stdout
    assert "below the cut" in done.stdout
    assert "def function_25()" in done.stdout
    answer = json.loads(invoke("explain", str(out), "-i", "25", "--json").stdout)
    assert answer["reason"] == "3. acquire: below the cut"
    assert answer["cuts"][0]["rank"] > 60
    assert 0 < answer["scores"]["quality"]["percentile"] < 100
    done = invoke("explain", str(out), "-i", "400")
    assert done.exit_code == 4
    assert "positions go from 0 to 399" in done.stderr


def test_schema_is_the_recipes() -> None:
    assert json.loads(invoke("schema").stdout) == Recipe.model_json_schema()
    assert invoke("schema", "--json").stdout == invoke("schema").stdout


def test_recipes_ship_and_load() -> None:
    answer = json.loads(invoke("recipes", "--json").stdout)
    assert "quickstart" in [entry["name"] for entry in answer]
    assert all(entry["about"] for entry in answer)
    assert "quickstart" in invoke("recipes").stdout


def test_version_names_what_decides_results() -> None:
    answer = json.loads(invoke("version", "--json").stdout)
    assert {"python", "numpy", "pyarrow", "lz4", "ray"} <= answer.keys()
    assert answer["numpy"] in invoke("version").stdout


def test_run_takes_a_path_or_a_name(tmp_path: Path) -> None:
    done = invoke("run", "no-such-recipe", "-o", str(tmp_path / "out"))
    assert done.exit_code == 3
    assert "those are" in done.stderr
    assert "quickstart" in done.stderr
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("source: {format: stdlib}\nsteps:\n  - step: dedup\nsed: 1\n")
    done = invoke("run", str(recipe), "-o", str(tmp_path / "out"))
    assert done.exit_code == 3
    assert f"{recipe}:4: sed: unknown key" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, finished: Finished) -> list[dict[str, Any]]:
    """Calls that reach the pipelines; each returns a finished dataset's manifest."""
    from curation.pipelines import job as run

    made: list[dict[str, Any]] = []
    manifest = finished().manifest

    def record(*arguments: Any, **options: Any) -> Manifest:
        made.append({"arguments": arguments, **options})
        return manifest

    monkeypatch.setattr(run, "run", record)
    monkeypatch.setattr(run, "reselect", record)
    return made


def test_run_ends_with_an_account(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    done = invoke("run", "smoke", "-o", str(tmp_path / "out"), "--workers", "3", "--restart", "--ray-address", "local")
    assert done.exit_code == 0, done.output
    (call,) = calls
    assert call["arguments"][1] == tmp_path / "out"
    assert (call["workers"], call["restart"], call["ray_address"]) == (3, True, "local")
    for expected in (
        "3. acquire",
        "     below the cut",
        "−300",
        "Kept 60 of 400 rows (15.0 %)",
        "report.html",
        "curation verify",
    ):
        assert expected in done.stdout
    answer = json.loads(invoke("run", "smoke", "-o", str(tmp_path / "out"), "--json").stdout)
    assert (answer["rows_in"], answer["rows_out"], answer["bad_rows"]) == (400, 60, 1)
    assert [step["step"] for step in answer["steps"]] == ["score", "dedup", "acquire"]


def test_reselect_passes_the_cut_on(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    done = invoke("reselect", "done", "-o", str(tmp_path), "--fraction", "0.1", "--kind", "power", "--seed", "7")
    assert done.exit_code == 0, done.output
    (call,) = calls
    assert call["arguments"] == (Path("done"), tmp_path)
    assert (call["fraction"], call["kind"], call["seed"], call["count"]) == (0.1, "power", 7, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fraction", "1.5"], "at most 1"),
        (["--fraction", "0.1", "--count", "5"], "only one of"),
        ([], "say what is to change"),
        (["--kind", "best"], "best"),
    ],
)
def test_reselect_refuses_nonsense(calls: list[dict[str, Any]], tmp_path: Path, options: list[str], words: str) -> None:
    done = invoke("reselect", "done", "-o", str(tmp_path), *options)
    assert done.exit_code == 2
    assert words in done.output
    assert calls == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OutputError("out: holds something else"), 6, "out: holds something else"),
        (CurationError("other"), 1, "other"),
        (KeyboardInterrupt(), 130, "run the same command again to go on"),
    ],
)
def test_errors_of_a_run_become_exit_codes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int, words: str
) -> None:
    from curation.pipelines import job as run

    def fail(*arguments: Any, **options: Any) -> Manifest:
        raise error

    monkeypatch.setattr(run, "run", fail)
    done = invoke("run", "smoke", "-o", str(tmp_path))
    assert done.exit_code == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_in_a_real_process(finished: Finished) -> None:
    """The signal is sent while a command is at work: here, reading a named pipe that nobody writes to."""
    out = finished().folder
    pipe = out / "state.json"
    pipe.unlink()
    os.mkfifo(pipe)
    manifest = Manifest.load(out)
    del manifest.files["state.json"]
    manifest.save(out)
    with subprocess.Popen(
        [sys.executable, "-m", "curation.cli", "verify", str(out), "--json"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, which this may be a part of, ignores the signal, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as started:
        try:
            end = _writing_end(pipe, started)
            while psutil.Process(started.pid).status() != psutil.STATUS_SLEEPING:
                time.sleep(0.01)
            started.send_signal(signal.SIGINT)
            _, said = started.communicate(timeout=30)
            os.close(end)
        finally:
            started.kill()
    assert started.returncode == 130
    assert json.loads(said.splitlines()[-1])["error"] == "interrupted"


def _writing_end(pipe: Path, reader: subprocess.Popen[str]) -> int:
    """Open a named pipe once the process has opened it to read."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert reader.poll() is None, "it ended without reading the pipe"
            assert time.monotonic() < deadline, "it never came to the pipe"
            time.sleep(0.01)


def test_a_new_command_needs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "again", "curation.cli.commands:version")
    assert "python" in json.loads(invoke("again", "--json").stdout)
