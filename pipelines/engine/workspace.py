"""The workspace, ``OUT.partial``: what an unfinished run has on disk (:mod:`curation.pipelines.engine.target`).

::

    OUT.partial/
      identity.json     the rows: only a run on the same ones may go on here
      lock              held while a driver works here
      00-check-KEY/ 01-align-KEY/ ...    a file for each finished piece, and done.json for a finished stage
      03-write-KEY/dataset/      what is going to be OUT

KEY is the hash of all that a stage's result depends on: the rows, the recipe up to it, and what it reads besides. So a
stage is either that of this very recipe, or not there; and a task of a killed driver, which may still be at work
somewhere, can write into no stage but its own.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from curation.errors import OutputError
from curation.files import atomic, write_text
from curation.pipelines.engine.fingerprints import changes
from curation.pipelines.engine.target import partial_of, put_in_place

KEY_LENGTH = 16


def digest(key: Mapping[str, Any]) -> str:
    """The hash of a stage's key, as it stands in the name of its folder."""
    return hashlib.sha256(_json(key).encode()).hexdigest()[:KEY_LENGTH]


def _json(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _flat(key: Mapping[str, Any]) -> dict[str, Any]:
    """A key without the names of its parts."""
    return {
        name: value
        for part, values in key.items()
        for name, value in (values.items() if isinstance(values, dict) else [(part, values)])
    }


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

    def drop_bad_rows(self) -> None:
        """Have pieces with bad rows done again: what set them aside may now stop at them."""
        for path in self.folder.glob("[0-9]*.jsonl"):
            if path.stat().st_size:
                (self.folder / "done.json").unlink(missing_ok=True)
                path.unlink()


class Workspace:
    """The folder of one unfinished run.

    Args:
        out: where the dataset goes.
        quarantine: whether bad rows may stand in a stage.
        note: told of stages that do not hold any more.
    """

    def __init__(self, out: Path, *, quarantine: bool = False, note: Callable[[str], None] = lambda text: None) -> None:
        self.out = out
        self.folder = partial_of(out)
        self.quarantine = quarantine
        self.note = note

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other drivers out.

        Raises:
            OutputError: another driver is at work here, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
            apart = self.folder.stat().st_dev != self.folder.parent.stat().st_dev
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made: {error.strerror}") from error
        if apart:
            lock.close()
            raise OutputError(f"{self.folder} lies on another disk than {self.out}: remove it, or give another output")
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
                f"{self.folder} holds an interrupted run with another {' and '.join(differing)}, so that nothing of it "
                "can be used: give another output folder, or --restart to drop what it had done"
            )

    def stage(self, number: int, name: str, key: Mapping[str, Any]) -> Stage:
        """The folder of one stage; what an earlier recipe left under its name is dropped.

        Args:
            number: the step's.
            name: the stage's among those of its step.
            key: all that its result depends on. ``before`` stands for what the steps before it depend on.
        """
        prefix = f"{number:02d}-{name}-"
        folder = self.folder / f"{prefix}{digest(key)}"
        if not folder.exists():
            for other in self.folder.glob(f"{prefix}{'?' * KEY_LENGTH}"):
                self._drop(number, name, other, key)
        stage = Stage(folder)
        if not (folder / "key.json").exists():
            write_text(folder / "key.json", _json(key))
        if not self.quarantine:
            stage.drop_bad_rows()
        return stage

    def _drop(self, number: int, name: str, folder: Path, key: Mapping[str, Any]) -> None:
        """Drop a stage that does not hold, and say why, where the steps before it do not say so already."""
        path = folder / "key.json"
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if held.get("before") == key.get("before"):
            differing = "; ".join(changes(_flat(held), _flat(json.loads(_json(key)))))
            self.note(f"{number}. {name} is done anew, and what follows it: {differing}")
        # A task of a killed driver may still be writing there.
        shutil.rmtree(folder, ignore_errors=True)

    def drop(self, number: int) -> None:
        """Drop all that stands of one step."""
        for folder in self.folder.glob(f"{number:02d}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, dataset: Path, names: Collection[str]) -> None:
        """Make a finished dataset visible as OUT, and drop the rest.

        Args:
            dataset: its folder in the workspace.
            names: its files. Anything else there was left by a task that was killed, and is removed.

        Raises:
            OutputError: something appeared at OUT meanwhile.
        """
        for path in dataset.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)
        try:
            put_in_place(dataset, self.out)
        except OSError as error:
            raise OutputError(
                f"{self.out}: cannot be put in place: {error.strerror}. The finished dataset is at {dataset}"
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
