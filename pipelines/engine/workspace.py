"""The workspace, ``OUT.partial``: what an unfinished run has on disk. It becomes ``OUT`` in one rename.

::

    OUT.partial/
      identity.json     recipe hash and inputs: only the same run may go on here
      lock              held while a driver works here
      00-check/ 01-align/ ...    a file for each finished piece, and done.json for a finished stage
      dataset/          what is going to be OUT
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from curation.errors import OutputError
from curation.files import atomic, write_text


def save(path: Path, values: npt.NDArray[Any]) -> None:
    """Write an array as ``.npy``, atomically."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)


class Stage:
    """A folder with a file for each finished piece."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def piece(self, number: int, suffix: str = "npy") -> Path:
        """The file of one piece."""
        return self.folder / f"{number:07d}.{suffix}"

    def finished(self, suffix: str = "npy") -> set[int]:
        """Numbers of the pieces that an earlier run left here whole."""
        return {int(path.stem) for path in self.folder.glob(f"[0-9]*.{suffix}")}

    @property
    def done(self) -> dict[str, Any] | None:
        """What the finished stage said of itself, or None where it is not finished."""
        path = self.folder / "done.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def finish(self, record: dict[str, Any]) -> None:
        """Mark the stage as finished."""
        write_text(self.folder / "done.json", json.dumps(record))


class Workspace:
    """The folder of one unfinished run."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self.dataset = self.folder / "dataset"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other drivers out.

        Raises:
            OutputError: another driver is at work here, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made: {error.strerror}") from error
        with lock:
            _lock(lock, self.folder)
            yield

    @property
    def claimed(self) -> bool:
        """Whether a run has begun to work here."""
        return (self.folder / "identity.json").exists()

    def identify(self, identity: dict[str, Any], *, restart: bool, keep: str = "") -> None:
        """Claim the folder for a run, or go on with what an interrupted one left.

        Args:
            identity: what the run depends on.
            restart: drop what is there.
            keep: a file that stays even so.

        Raises:
            OutputError: it holds another run's work.
        """
        path = self.folder / "identity.json"
        if restart or not self.claimed:
            for entry in self.folder.iterdir():
                if entry.name not in ("lock", keep):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            write_text(path, json.dumps(identity, indent=2))
        held = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in identity if held.get(key) != identity[key]]
        if differing:
            raise OutputError(
                f"{self.folder} holds an interrupted run with another {' and '.join(differing)}: "
                "give another output folder, or --restart to drop what it had done"
            )
        self.dataset.mkdir(exist_ok=True)

    def stage(self, number: int, name: str) -> Stage:
        """The folder of one stage."""
        return Stage(self.folder / f"{number:02d}-{name}")

    def publish(self) -> None:
        """Make the dataset visible as OUT, in one rename, and drop the rest.

        Raises:
            OutputError: something appeared at OUT meanwhile.
        """
        try:
            self.dataset.rename(self.out)
        except OSError as error:
            raise OutputError(
                f"{self.out}: cannot be put in place: {error.strerror}. The finished dataset is at {self.dataset}"
            ) from error
        self.discard()

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)


def _lock(lock: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"{folder}: another run is at work here; wait for it or give another output") from None
