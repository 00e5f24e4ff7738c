"""Curated datasets by name, from the configured roots only.

A name is one path segment; the folder and every file opened must, with all symbolic links followed, still lie in the
root. So no request reads anything else of the server.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from curation.dataset.manifest import BATCHES, MANIFEST, Manifest
from curation.errors import SourceError
from curation.plan import BatchPlan
from curation.service.errors import Refusal

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Datasets:
    """The datasets under some roots.

    Args:
        roots: folders whose subfolders are curated datasets; the first that has a name wins.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [root.resolve() for root in roots]

    def names(self) -> list[str]:
        """All of them, sorted."""
        found = {
            folder.name
            for root in self._roots
            if root.is_dir()
            for folder in root.iterdir()
            if _NAME.fullmatch(folder.name) and _inside(folder / MANIFEST, root)
        }
        return sorted(found)

    def file(self, name: str, file: str) -> Path:
        """A file of a dataset, checked to be in it.

        Raises:
            Refusal: no such dataset, or it has no such file.
        """
        if _NAME.fullmatch(name):
            for root in self._roots:
                if _inside(root / name / MANIFEST, root):
                    path = root / name / file
                    if _NAME.fullmatch(file) and _inside(path, root):
                        return path
                    raise Refusal("bad-dataset", f"dataset {name!r} has no {file}")
        raise Refusal("bad-dataset", f"there is no dataset {name[:128]!r}: GET /v1/datasets lists them")

    def manifest(self, name: str) -> Manifest:
        """What a dataset says of itself.

        Raises:
            Refusal: no such dataset, or its manifest cannot be read.
        """
        try:
            return Manifest.load(self.file(name, MANIFEST).parent)
        except SourceError as error:
            raise Refusal("bad-dataset", f"dataset {name!r} has no readable manifest") from error

    def plan(self, name: str) -> BatchPlan:
        """A dataset's batches.

        Raises:
            Refusal: it has none.
        """
        try:
            return BatchPlan.load(self.file(name, BATCHES))
        except SourceError as error:
            raise Refusal("bad-dataset", f"the batches of dataset {name!r} cannot be read") from error


def _inside(path: Path, root: Path) -> bool:
    """Whether a path is a file that, with every link followed, lies under the root."""
    try:
        real = path.resolve(strict=True)
    except OSError:
        return False
    return real.is_file() and real.is_relative_to(root)
