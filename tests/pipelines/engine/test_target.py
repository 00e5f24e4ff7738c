"""Where a result goes: paths and URLs, links, files, mount points; and how it gets there whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curation import cli
from curation.dataset import Dataset
from curation.errors import OutputError, SourceError
from curation.pipelines.engine.target import check_target, folder_of, followed, partial_of, put_in_place
from curation.pipelines.job import reselect, run

from ..conftest import recipe

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("out", "folder"),
    [
        ("out", "out"),
        ("a/b:c/out", "a/b:c/out"),
        (Path("/a/out"), "/a/out"),
        ("file:///a/b%20c", "/a/b c"),
        ("file:/a/b", None),
        (Path("file:///a/b"), "/a/b"),
        ("s3://bucket/out", None),
        (Path("s3://bucket/out"), None),
        ("gs://bucket", None),
        ("hf://datasets/a/b", None),
        ("file://host/a", None),
    ],
)
def test_a_folder_is_a_path_or_a_file_url(out: str | Path, folder: str | None) -> None:
    if folder is None:
        with pytest.raises(OutputError, match="goes to a folder, not to a URL"):
            folder_of(out)
    else:
        assert folder_of(out) == Path(folder)


def test_urls_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    steps = ({"step": "score", "column": "quality"}, {"step": "acquire", "count": 5})
    with pytest.raises(OutputError, match="s3://bucket/out"):
        run(recipe(corpus, *steps), "s3://bucket/out")
    for command in (["run", "quickstart"], ["reselect", "out", "--count", "1"]):
        done = CliRunner().invoke(cli.app, [*command, "-o", "s3://bucket/out"])
        assert done.exit_code == OutputError.exit_code, done.output
        assert "s3://bucket/out" in done.stderr
    with pytest.raises(OutputError, match="s3:/bucket/out"):
        reselect("out", Path("s3://bucket/out"), count=1)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(there: bool, tmp_path: Path, corpus: Path, ray_session: None) -> None:
    real, out = tmp_path / "disk" / "real", tmp_path / "out"
    real.mkdir(parents=True) if there else real.parent.mkdir()
    out.symlink_to(real)
    steps = ({"step": "score", "column": "quality"}, {"step": "acquire", "count": 5})
    run(recipe(corpus, *steps), out)
    assert out.is_symlink()
    assert [path.name for path in real.parent.iterdir()] == ["real"]
    Dataset(out).verify()
    run(recipe(corpus, *steps), out)


def test_what_cannot_be_a_target_is_said_first(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    spec = recipe(corpus, {"step": "score", "column": "quality"}, {"step": "acquire", "count": 5})
    out.write_text("mine")
    with pytest.raises(OutputError, match="is a file: give a folder"):
        run(spec, out)
    out.unlink()
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(OutputError, match="is no curated dataset"):
        run(spec, out)
    with pytest.raises(OutputError, match="is no curated dataset"):
        run(spec, "/")
    round_about = tmp_path / "a"
    round_about.symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(round_about)
    with pytest.raises(OutputError, match="leads nowhere"):
        run(spec, round_about)
    with pytest.raises(OutputError, match="cannot be made"):
        run(spec, out / "mine" / "below")
    assert not list(tmp_path.glob("*.partial"))


def test_a_partial_on_another_disk_is_said_first(tmp_path: Path, corpus: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second disk")
    spec = recipe(corpus, {"step": "score", "column": "quality"}, {"step": "acquire", "count": 5})
    (tmp_path / "out.partial").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="another disk"):
        run(spec, tmp_path / "out")
    (elsewhere / "lock").unlink(missing_ok=True)


def in_a_namespace(script: str, folder: Path, timeout: float = 60) -> None:
    """Run a script as root of its own mounts, where the machine lets us."""
    unshare = ["unshare", "-rm", sys.executable, "-c"]
    mounts = "import subprocess, sys; subprocess.run(['mount', '-t', 'tmpfs', 'none', sys.argv[1]], check=True)"
    if not folder.exists():
        folder.mkdir()
    try:
        subprocess.run([*unshare, mounts, str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount here")
    done = subprocess.run(
        [*unshare, script, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""},
    )
    assert done.returncode == 0, done.stderr


MOUNTED = """
import subprocess, sys
from pathlib import Path
from curation.errors import OutputError
from curation.pipelines.engine.target import check_target
from curation.pipelines.engine.workspace import Workspace

folder = Path(sys.argv[1])
mount = lambda *arguments: subprocess.run(["mount", *map(str, arguments)], check=True)
names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow", "manifest.json"]

def publish(out, killed_after=None):
    check_target(out)
    workspace = Workspace(out)
    assert workspace.folder == out / ".partial"
    with workspace.held():
        workspace.identify({}, restart=False)
        dataset = workspace.folder / "dataset"
        dataset.mkdir(exist_ok=True)
        for name in names:
            (dataset / name).write_text(name)
        if killed_after is not None:
            for name in killed_after:
                (out / name).write_text("torn")
            return
        workspace.publish(dataset, names)
    assert sorted(path.name for path in out.iterdir() if path.name != "lost+found") == names
    assert all((out / name).read_text() == name for name in names)

for kind in ("disk", "folder"):
    out = folder / kind
    out.mkdir()
    if kind == "disk":
        mount("-t", "tmpfs", "none", out)
        (out / "lost+found").mkdir()
    else:
        (folder / "same disk").mkdir()
        mount("--bind", folder / "same disk", out)
    publish(out, killed_after=[names[0], "data-00000-of-00007.arrow"])
    assert not (out / "manifest.json").exists()
    publish(out)
    check_target(out)

sealed = folder / "sealed"
sealed.mkdir()
mount("-t", "tmpfs", "-o", "ro", "none", sealed)
try:
    with Workspace(sealed / "out").held():
        raise AssertionError
except OutputError as error:
    assert "cannot be made" in str(error), error
"""


def test_an_empty_mount_point_gets_the_files_one_by_one(tmp_path: Path) -> None:
    in_a_namespace(MOUNTED, tmp_path / "mounts")


MOUNTED_RUN = """
import subprocess, sys
from pathlib import Path
import pyarrow as pa
from curation.dataset import Dataset
from curation.pipelines import Acquire, Score, run

out = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "none", str(out)], check=True)
(out / "lost+found").mkdir()
rows = pa.table({"quality": [float(row) for row in range(100)]})
for _ in range(2):
    run([Score(column="quality"), Acquire(count=5)], source=rows, out=out, workers=1)
    Dataset(out).verify()
assert not (out / ".partial").exists()
"""


@pytest.mark.slow
def test_a_run_onto_a_mount_point(tmp_path: Path) -> None:
    in_a_namespace(MOUNTED_RUN, tmp_path / "out", timeout=250)


def test_a_folder_without_its_manifest_is_no_dataset(tmp_path: Path) -> None:
    dataset, out = tmp_path / "dataset", tmp_path / "out"
    dataset.mkdir()
    (dataset / "data-00000-of-00001.arrow").touch()
    out.mkdir()
    assert partial_of(out) == tmp_path / "out.partial"
    put_in_place(dataset, out)
    with pytest.raises(SourceError):
        Dataset(out)
    with pytest.raises(OutputError):
        check_target(followed(out))
