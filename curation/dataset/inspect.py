"""Inspection: what is in a finished dataset, or in a source that nothing has been done to yet."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curation.dataset.decisions import Cut, Histogram
from curation.dataset.manifest import MANIFEST
from curation.errors import SourceError
from curation.recipe.load import load_recipe
from curation.recipe.model import FileSource, SourceSpec, StdlibSource

if TYPE_CHECKING:
    from curation.dataset.reader import Dataset

BINS = 20


@dataclass(frozen=True)
class Inspection:
    """What ``curation inspect`` shows.

    Args:
        name: the dataset's folder, or the source.
        rows: rows in the shards, or in the source.
        schema: column names and types.
        samples: rows at even distances.
        counts: candidates by reason; empty for a source.
        histograms: of each score; empty for a source.
        cuts: of each ``acquire`` step; empty for a source.
        files: files of the source with their rows; empty for a dataset.
    """

    name: str
    rows: int
    schema: dict[str, str]
    samples: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)
    histograms: list[Histogram] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)


def inspect(dataset: "Dataset", samples: int = 3) -> Inspection:
    """Look into a finished dataset.

    Args:
        dataset: what to look into.
        samples: how many rows to show, at even distances.

    Raises:
        SourceError: a file cannot be read.
    """
    return Inspection(
        name=str(dataset.folder),
        rows=len(dataset),
        schema=_types(dataset.schema),
        samples=dataset.rows(_even(len(dataset), samples)).to_pylist(),
        counts=dataset.decisions.counts(),
        histograms=dataset.decisions.histograms(BINS),
        cuts=dataset.decisions.cuts(),
    )


def inspect_source(spec: SourceSpec, name: str, samples: int = 3) -> Inspection:
    """Look into a source.

    Args:
        spec: the source; see :func:`source_of`.
        name: what to call it.
        samples: how many rows to show, at even distances.

    Raises:
        SourceError: it cannot be read.
    """
    from curation.sources import open_source
    from curation.sources.blocks import block_at

    source = open_source(spec)
    blocks = source.blocks(1024)
    rows = sum(block.rows for block in blocks)
    shown: list[dict[str, Any]] = []
    for index in _even(rows, samples):
        block = block_at(blocks, index)
        table, _ = source.read(block)
        shown += table.slice(index - block.start, 1).to_pylist()
    return Inspection(
        name=name,
        rows=rows,
        schema=_types(source.schema),
        samples=shown,
        files={record.path: record.rows for record in source.inputs()},
    )


def source_of(target: str) -> SourceSpec:
    """The source that a path on the command line means.

    Raises:
        SourceError: nothing can be made of it.
        RecipeError: it is a recipe with a fault.
    """
    from curation.sources import EXTENSIONS, format_of
    from curation.sources.listing import is_hidden

    if target == "stdlib":
        return StdlibSource(format="stdlib")
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return load_recipe(path).source
    if (path / "state.json").is_file():
        return FileSource(format="dataset", path=target)
    names = [target]
    if path.is_dir():
        below = (file.relative_to(path).as_posix() for file in sorted(path.rglob("*")))
        names = [name for name in below if not is_hidden(name)]
    form = next((form for name in names if (form := format_of(name))), None)
    if form is None:
        endings = ", ".join(ending for endings in EXTENSIONS.values() for ending in endings)
        raise SourceError(
            f"{target}: not a curated dataset (it has no {MANIFEST}), nor a source that can be told by its name: give "
            f"a file or folder of {endings}, a saved Hugging Face dataset, a recipe, or the word stdlib"
        )
    return FileSource.model_validate({"format": form, "path": target})


def _even(rows: int, samples: int) -> list[int]:
    """Positions at even distances, from the first to the last."""
    positions: list[int] = np.unique(np.linspace(0, rows - 1, max(0, min(samples, rows))).astype(int)).tolist()
    return positions


def _types(schema: pa.Schema) -> dict[str, str]:
    return {entry.name: str(entry.type) for entry in schema}
