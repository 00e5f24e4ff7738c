"""Target of a run: the folder OUT, whether a result can go there, and how it gets there whole.

Where OUT can be replaced, the unfinished run lies beside it, as ``OUT.partial``, and one rename puts the result in
place. An empty mount point, or an empty folder in one that may not be written to, cannot: there it lies inside, as
``OUT/.partial``, and the result's files appear one by one, the manifest last, without which OUT is no dataset.
"""

import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

from curation.dataset.manifest import MANIFEST
from curation.errors import OutputError
from curation.files import atomic

_INSIDE = ".partial"
_OVERLOOKED = {_INSIDE, "lost+found"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_ESCAPED = re.compile(r"\\([0-7]{3})")


def folder_of(out: str | Path) -> Path:
    """The folder that a path or a ``file:///`` URL names.

    Raises:
        OutputError: it is another URL.
    """
    given = str(out)
    # A path has lost one of the slashes.
    scheme = _URL.match(given)
    if scheme is None:
        return Path(out)
    rest = given[scheme.end() - 1 :]
    path = "/" + rest.lstrip("/")
    if scheme[1].lower() != "file" or (isinstance(out, str) and not rest.startswith("///")):
        raise OutputError(
            f"{given}: a result goes to a folder, not to a URL: give a path that all nodes see, and copy "
            "the finished dataset from there"
        )
    return Path(unquote(path) if isinstance(out, str) else path)


def followed(out: Path) -> Path:
    """The absolute path, and what it leads to where it is a link.

    Raises:
        OutputError: the link leads round in a circle.
    """
    path = out.absolute()
    if path.is_symlink() or path.name in ("", ".."):
        try:
            return path.resolve()
        except (OSError, RuntimeError) as error:
            raise OutputError(f"{path}: this link leads nowhere: {error}") from error
    return path


def check_target(out: Path) -> None:
    """Check that a folder holds a dataset, or nothing, or an unfinished run.

    Raises:
        OutputError: something else is there.
    """
    if not out.exists() or (out / MANIFEST).exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out} is a file: give a folder")
    held = {entry.name for entry in out.iterdir()}
    if held - _OVERLOOKED and _INSIDE not in held:
        raise OutputError(f"{out} exists and is no curated dataset: give another output folder")


def partial_of(out: Path) -> Path:
    """Where the unfinished run of a target lies."""
    return out / _INSIDE if _stays(out) else out.with_name(out.name + _INSIDE)


def put_in_place(dataset: Path, out: Path) -> None:
    """Make a finished dataset, in the folder of its run, visible as OUT.

    Raises:
        OSError: it cannot be; nothing is lost, and OUT is no dataset yet.
    """
    if not _stays(out):
        dataset.rename(out)
        return
    names = {path.name for path in dataset.iterdir()}
    for left in out.glob("data-*-of-*.arrow"):
        # Of a run that was killed right here, and whose recipe was changed then.
        if left.name not in names:
            left.unlink()
    for name in sorted(names, key=lambda name: name == MANIFEST):
        with atomic(out / name) as temporary:
            try:
                temporary.hardlink_to(dataset / name)
            except OSError:
                shutil.copyfile(dataset / name, temporary)


def _stays(out: Path) -> bool:
    """Whether a folder is there that no rename can replace."""
    return out.is_dir() and (_is_mount(out) or not os.access(out.parent, os.W_OK | os.X_OK))


def _is_mount(out: Path) -> bool:
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return out.is_mount()
    # A folder that is mounted elsewhere on its own disk is known by nothing else.
    points = (_ESCAPED.sub(lambda code: chr(int(code[1], 8)), line.split()[4]) for line in mounts)
    return out.is_mount() or str(out.resolve()) in points
