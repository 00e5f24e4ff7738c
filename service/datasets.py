"""Datasets by name, from the configured roots only.

A name is one path segment; the folder and every file opened must, with all symbolic links followed, still lie in the
root. So no request reads anything else of the server.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from curation.dataset import Dataset
from curation.dataset.manifest import BATCHES, MANIFEST, Manifest
from curation.errors import SourceError
from curation.plan import BatchPlan
from curation.service.errors import Refusal
from curation.service.session.caller import Caller

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Datasets:
    """The datasets under some roots.

    Args:
        roots: folders whose subfolders are curated datasets; the first that has a name wins.
        owners: the only owners that see the datasets of a root; those of a root not named here are everybody's.
    """

    def __init__(self, roots: Sequence[Path], owners: Mapping[Path, Collection[str]] = MappingProxyType({})) -> None:
        self._roots = [root.resolve() for root in roots]
        self._owners = {root.resolve(): frozenset(names) for root, names in owners.items()}

    def seen_by(self, caller: Caller) -> "Datasets":
        """Those that a caller may see."""
        seen = Datasets(())
        seen._roots = [
            root
            for root in self._roots
            if caller.everyone or root not in self._owners or caller.owner in self._owners[root]
        ]
        return seen

    def names(self) -> list[str]:
        """All of them, sorted."""
        names = {
            folder.name
            for root in self._roots
            if root.is_dir()
            for folder in root.iterdir()
            if _NAME.fullmatch(folder.name) and _inside(folder / MANIFEST, root)
        }
        return sorted(names)

    def file(self, name: str, file: str) -> Path:
        """A file of a dataset, checked to be in it.

        Raises:
            Refusal: no such dataset, or it has no such file.
        """
        root = self._root(name)
        path = root / name / file
        if _NAME.fullmatch(file) and _inside(path, root):
            return path
        raise Refusal("not-found", f"dataset {name!r} has no {file}")

    def open(self, name: str) -> Dataset:
        """A dataset; it raises SourceError rather than read a file that leads out of the root.

        Raises:
            Refusal: no such dataset, or its manifest cannot be read.
        """
        root = self._root(name)
        try:
            return Dataset(root / name, within=root)
        except SourceError as error:
            raise Refusal("bad-dataset", f"dataset {name!r} has no readable manifest") from error

    def manifest(self, name: str) -> Manifest:
        """What a dataset says of itself.

        Raises:
            Refusal: no such dataset, or its manifest cannot be read.
        """
        return self.open(name).manifest

    def size(self, name: str, given: int | None) -> int:
        """The rows of a dataset that a session names; ``given`` is what the session says.

        Raises:
            Refusal: no such dataset, it has no rows, or not as many as were given.
        """
        try:
            rows = self.manifest(name).rows_out
        except Refusal as refusal:
            raise Refusal("bad-dataset", refusal.detail) from refusal
        if given is not None and given != rows:
            raise Refusal("bad-dataset", f"size is {given}, but dataset {name!r} has {rows} rows: leave size out")
        if not rows:
            raise Refusal("bad-dataset", f"dataset {name!r} has no rows")
        return rows

    def plan(self, name: str) -> BatchPlan:
        """A dataset's batches.

        Raises:
            Refusal: it has none, or they cannot be read.
        """
        try:
            plan = self.open(name).plan
        except SourceError as error:
            raise Refusal("bad-dataset", f"the batches of dataset {name!r} cannot be read") from error
        if plan is None:
            raise Refusal("bad-dataset", f"dataset {name!r} has no {BATCHES}")
        return plan

    def _root(self, name: str) -> Path:
        """The root that a dataset lies in."""
        if _NAME.fullmatch(name):
            for root in self._roots:
                if _inside(root / name / MANIFEST, root):
                    return root
        raise Refusal("not-found", f"there is no dataset {name[:128]!r}: GET /v1/datasets lists them")


def _inside(path: Path, root: Path) -> bool:
    """Whether a path is a file that, with every link followed, lies under the root."""
    try:
        real = path.resolve(strict=True)
    except OSError:
        return False
    return real.is_file() and real.is_relative_to(root)
