"""What is in a finished dataset, or in a source that nothing has been done to yet."""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.dataset.decisions import Cut, Decisions, Histogram
from curation.dataset.manifest import MANIFEST, Manifest
from curation.dataset.shards import shard_batches, shard_names, shard_schema
from curation.errors import SourceError
from curation.recipe.load import load_recipe
from curation.recipe.model import FileSource, Source, StdlibSource

BINS = 20

_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}


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


def inspect(target: str, samples: int = 3) -> Inspection:
    """Look into a finished dataset, a recipe's source, a source's files, or ``stdlib``.

    Raises:
        SourceError: it is none of them, or cannot be read.
        RecipeError: it is a recipe with a fault.
    """
    if (Path(target) / MANIFEST).is_file():
        return inspect_dataset(Path(target), samples)
    return inspect_source(source_of(target), target, samples)


def inspect_dataset(folder: Path, samples: int = 3) -> Inspection:
    """Look into a finished dataset.

    Raises:
        SourceError: the folder is none.
    """
    manifest = Manifest.load(folder)
    decisions = Decisions(folder, manifest)
    schema = shard_schema(folder, manifest)
    return Inspection(
        name=str(folder),
        rows=manifest.rows_out,
        schema=_types(schema) if schema is not None else {},
        samples=_shard_samples(folder, manifest, samples),
        counts=decisions.counts(),
        histograms=decisions.histograms(BINS),
        cuts=decisions.cuts(),
    )


def inspect_source(spec: Source, name: str, samples: int = 3) -> Inspection:
    """Look into a source.

    Raises:
        SourceError: it cannot be read.
    """
    from curation.sources import open_source

    source = open_source(spec)
    blocks = source.blocks(1024)
    rows = sum(block.rows for block in blocks)
    found: list[dict[str, Any]] = []
    for index in _even(rows, samples):
        block = blocks[index // 1024]
        table, _ = source.read(block)
        found += table.slice(index - block.start, 1).to_pylist()
    return Inspection(
        name=name,
        rows=rows,
        schema=_types(source.schema),
        samples=found,
        files={record.path: record.rows for record in source.inputs()},
    )


def source_of(target: str) -> Source:
    """The source that a path on the command line means.

    Raises:
        SourceError: nothing can be made of it.
        RecipeError: it is a recipe with a fault.
    """
    if target == "stdlib":
        return StdlibSource(format="stdlib")
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return load_recipe(path).source
    if (path / "state.json").is_file():
        return FileSource(format="dataset", path=target)
    names = [target]
    if path.is_dir():
        names = [file.name for file in islice((f for f in sorted(path.rglob("*")) if _format(f.name)), 1)]
    form = next((form for name in names if (form := _format(name))), None)
    if form is None:
        raise SourceError(
            f"{target}: not a curated dataset (it has no {MANIFEST}), nor a source that can be told by its name: give "
            f"a file or folder of {', '.join(_SUFFIXES)}, a saved Hugging Face dataset, a recipe, or the word stdlib"
        )
    return FileSource.model_validate({"format": form, "path": target})


def _format(name: str) -> str | None:
    return _SUFFIXES.get(Path(name.removesuffix(".gz")).suffix)


def _shard_samples(folder: Path, manifest: Manifest, samples: int) -> list[dict[str, Any]]:
    wanted = _even(manifest.rows_out, samples)
    found: list[dict[str, Any]] = []
    start = 0
    for name in shard_names(manifest):
        for batch in shard_batches(folder / name):
            here = [row - start for row in wanted if start <= row < start + len(batch)]
            found += batch.take(pa.array(here, pa.int64())).to_pylist()
            start += len(batch)
    return found


def _even(rows: int, samples: int) -> list[int]:
    """Positions at even distances, from the first to the last."""
    if rows == 0 or samples < 1:
        return []
    return sorted(set(np.linspace(0, rows - 1, min(samples, rows)).astype(int).tolist()))


def _types(schema: pa.Schema) -> dict[str, str]:
    return {entry.name: str(entry.type) for entry in schema}
