"""Verification: is a finished dataset still what its manifest says?

Every file is hashed again and every row counted again. All that is wrong is listed, not only the first thing.
Costs one read of all files; memory of two bytes for each candidate.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from curation.dataset.decisions import as_bools, as_floats
from curation.dataset.manifest import (
    BAD_ROW,
    BATCHES,
    DECISIONS,
    KEPT,
    MANIFEST,
    QUARANTINE,
    FileRecord,
    Manifest,
    sha256_of,
)
from curation.dataset.writer import INDEX, WEIGHT, decisions_schema
from curation.errors import CurationError, SourceError, VerificationError
from curation.plan import BatchPlan
from curation.progress import Progress, Silent
from curation.recipe.model import Recipe, recipe_sha256

if TYPE_CHECKING:
    from curation.dataset.reader import Dataset

Bools = npt.NDArray[np.bool_]

_SILENT = Silent()


def verify(dataset: "Dataset", progress: Progress = _SILENT) -> None:
    """Check a finished dataset.

    Raises:
        VerificationError: something differs; the message lists all of it, a line each.
    """
    lines = findings(dataset, progress)
    if lines:
        things = "1 thing differs" if len(lines) == 1 else f"{len(lines)} things differ"
        title = f"{dataset.folder}: {things} from the manifest"
        raise VerificationError("\n".join([title, *(f"  {line}" for line in lines)]))


def findings(dataset: "Dataset", progress: Progress = _SILENT) -> list[str]:
    """All that differs from the manifest, a sentence each; empty where nothing does."""
    lines = list(_files(dataset, progress))
    lines.extend(_recipe(dataset.manifest))
    lines.extend(_arithmetic(dataset.manifest))
    try:
        lines.extend(_rows(dataset, progress))
    except SourceError as error:
        lines.append(f"rows could not be counted: {error}")
    lines.extend(_plan(dataset))
    lines.extend(_quarantine(dataset))
    return lines


def _files(dataset: "Dataset", progress: Progress) -> Iterator[str]:
    folder, files = dataset.folder, dataset.manifest.files
    progress.begin("hash files", sum(record.rows or 0 for record in files.values()))
    root = folder.resolve()
    for name, record in sorted(files.items()):
        wrong = _file(folder / name, record, root)
        if wrong is not None:
            yield f"{name}: {wrong}"
        progress.advance(record.rows or 0)
    progress.end()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in files and name != MANIFEST:
            yield f"{name}: not in the manifest"


def _file(path: Path, record: FileRecord, root: Path) -> str | None:
    try:
        if not path.resolve().is_relative_to(root):
            return "leads out of the folder"
        if not path.is_file():
            return "missing"
        if path.stat().st_size != record.bytes:
            return f"{path.stat().st_size:,} bytes, not {record.bytes:,}"
        if sha256_of(path) != record.sha256:
            return "its contents changed (sha256 differs)"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None


def _recipe(manifest: Manifest) -> Iterator[str]:
    # As it was written, because a version that knows more parameters hashes their defaults, too; and as it is read,
    # because JSON has no infinite number.
    digests = []
    try:
        digests.append(Recipe.model_validate(manifest.recipe).sha256())
    except ValidationError as error:
        # A step from elsewhere whose package is not here leaves the rest of the recipe as it was.
        if any(issue["type"] != "unknown_step" for issue in error.errors()):
            yield f"{MANIFEST}: its recipe is not one that this version reads: {error.error_count()} errors"
            return
    if manifest.recipe_sha256 not in (*digests, recipe_sha256(manifest.recipe)):
        yield f"{MANIFEST}: recipe_sha256 is not the hash of the recipe"
    seed = manifest.recipe.get("seed", 0)
    if seed != manifest.seed:
        yield f"{MANIFEST}: seed {manifest.seed} is not the recipe's, {seed}"


def _arithmetic(manifest: Manifest) -> Iterator[str]:
    for step in manifest.steps:
        dropped = sum(step.dropped.values())
        if step.rows_in - dropped != step.rows_out:
            yield (
                f"{MANIFEST}: step {step.number} ({step.step}): {step.rows_in:,} in, {dropped:,} dropped, "
                f"but {step.rows_out:,} out"
            )
    for before, after in zip(manifest.steps, manifest.steps[1:], strict=False):
        if before.rows_out != after.rows_in:
            yield (
                f"{MANIFEST}: step {before.number} let {before.rows_out:,} rows through, "
                f"but step {after.number} got {after.rows_in:,}"
            )
    rows = sum(record.rows for record in manifest.inputs)
    if manifest.inputs and rows != manifest.rows_in:
        yield f"{MANIFEST}: the inputs have {rows:,} rows, rows_in is {manifest.rows_in:,}"
    dropped = sum(_dropped(manifest).values())
    if manifest.rows_in - manifest.bad_rows - dropped != manifest.rows_out:
        yield (
            f"{MANIFEST}: {manifest.rows_in:,} rows in, {manifest.bad_rows:,} bad, {dropped:,} dropped, "
            f"but {manifest.rows_out:,} out"
        )


def _rows(dataset: "Dataset", progress: Progress) -> Iterator[str]:
    manifest, decisions = dataset.manifest, dataset.decisions
    schema = decisions_schema(manifest.scores)
    if not decisions.schema.remove_metadata().equals(schema):
        yield f"{DECISIONS}: columns are {_columns(decisions.schema)}, not {_columns(schema)}"
        return
    rows = int(decisions.starts[-1])
    kept = np.zeros(rows, bool)
    start = 0
    for batch in decisions.batches():
        stop = start + len(batch)
        if not np.array_equal(batch.column("index").to_numpy(), np.arange(start, stop)):
            yield f"{DECISIONS}: positions {start:,} to {stop - 1:,} are not in source order"
        kept[start:stop] = as_bools(batch.column("kept"))
        start = stop
    if rows != manifest.rows_in:
        yield f"{DECISIONS}: {rows:,} rows, rows_in is {manifest.rows_in:,}"
    if kept.sum() != manifest.rows_out:
        yield f"{DECISIONS}: {kept.sum():,} rows kept, rows_out is {manifest.rows_out:,}"
    yield from _reasons(decisions.counts(), manifest)
    yield from _shards(dataset, kept, progress)


def _reasons(counted: dict[str, int], manifest: Manifest) -> Iterator[str]:
    expected = {KEPT: manifest.rows_out, BAD_ROW: manifest.bad_rows, **_dropped(manifest)}
    for reason in sorted(expected.keys() | counted.keys()):
        rows, recorded = counted.get(reason, 0), expected.get(reason, 0)
        if rows != recorded:
            yield f"{DECISIONS}: {rows:,} rows with the reason {reason!r}, the manifest counts {recorded:,}"


def _shards(dataset: "Dataset", kept: Bools, progress: Progress) -> Iterator[str]:
    manifest = dataset.manifest
    seen = np.zeros(len(kept), bool)
    total = 0
    progress.begin("count rows", manifest.rows_out)
    for name in dataset.shards:
        rows = 0
        try:
            for batch in dataset.batches(shards=[name]):
                yield from (f"{name}: {line}" for line in _batch(batch, dataset, kept, seen))
                rows += len(batch)
                progress.advance(len(batch))
        except SourceError as error:
            yield str(error)
        if manifest.files[name].rows != rows:
            yield f"{name}: {rows:,} rows, the manifest says {manifest.files[name].rows}"
        total += rows
    progress.end()
    if total != manifest.rows_out:
        yield f"{total:,} rows in {len(dataset.shards)} shards, rows_out is {manifest.rows_out:,}"
    lost = np.flatnonzero(kept & ~seen)
    if len(lost):
        yield f"{len(lost):,} rows are marked as kept but stand in no shard, the first at position {lost[0]:,}"
    yield from _state(dataset)


def _batch(batch: pa.RecordBatch, dataset: "Dataset", kept: Bools, seen: Bools) -> Iterator[str]:
    """Compare rows of a shard with the decisions on them; marks them in ``seen``."""
    columns = [*dataset.score_names, WEIGHT]
    missing = [name for name in (INDEX, *columns) if name not in batch.schema.names]
    if missing:
        yield f"has no column {', '.join(missing)}"
        return
    index = as_floats(batch.column(INDEX)).astype(np.int64)
    if len(index) == 0:
        return
    if index.min() < 0 or index.max() >= len(kept):
        yield f"{INDEX} is outside 0..{len(kept) - 1:,}"
        return
    if not kept[index].all():
        yield f"row of position {index[~kept[index]][0]:,} stands here but is not marked as kept"
    if seen[index].any() or len(np.unique(index)) != len(index):
        yield "a row stands in the shards twice"
    seen[index] = True
    decided = dataset.decisions.at(index, [*columns[:-1], "weight"])
    for name, expected in zip(columns, decided.values(), strict=True):
        values = as_floats(batch.column(name))
        differs = ~((values == expected) | (np.isnan(values) & np.isnan(expected)))
        if differs.any():
            yield f"{name} of position {index[differs][0]:,} differs from {DECISIONS}"


def _state(dataset: "Dataset") -> Iterator[str]:
    try:
        state = json.loads(dataset.file("state.json").read_text(encoding="utf-8"))
        listed = [entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"state.json: datasets.load_from_disk cannot use it: {error}"
        return
    if listed != dataset.shards:
        yield f"state.json: lists {len(listed)} shards, the manifest {len(dataset.shards)}"


def _plan(dataset: "Dataset") -> Iterator[str]:
    if BATCHES not in dataset.manifest.files:
        return
    try:
        plan = BatchPlan.load(dataset.file(BATCHES))
    except (CurationError, ValueError) as error:
        yield f"{BATCHES}: {error}"
        return
    if not np.array_equal(np.sort(plan.indices), np.arange(len(dataset))):
        yield f"{BATCHES}: its {len(plan.indices):,} indices are not each of 0..{len(dataset) - 1:,} once"


def _quarantine(dataset: "Dataset") -> Iterator[str]:
    lines, path = 0, dataset.file(QUARANTINE)
    if QUARANTINE in dataset.manifest.files and path.is_file():
        with path.open("rb") as file:
            lines = sum(1 for _ in file)
    if lines != dataset.manifest.bad_rows:
        yield f"{QUARANTINE}: {lines:,} rows, bad_rows is {dataset.manifest.bad_rows:,}"


def _dropped(manifest: Manifest) -> dict[str, int]:
    """Rows dropped by reason; bad rows that a step found are among ``bad_rows`` already."""
    return {why: rows for step in manifest.steps for why, rows in step.dropped.items() if why != BAD_ROW}


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
