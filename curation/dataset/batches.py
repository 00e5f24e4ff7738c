"""The batches of a grouped dataset, to be looked at: how hard they are, and what stands in some of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.dataset.lookup import is_text, text_column
from curation.dataset.manifest import BATCHES, Manifest
from curation.dataset.shards import shard_batches, shard_names, shard_schema
from curation.errors import SourceError
from curation.plan import BatchPlan

_MEANINGS = {
    "similarity": "mean similarity of a query to the others' positives in its batch",
    "window_neighbours": "hard negatives in the batch of a row, on average",
    "false_negatives": "share of in-batch negatives that are among a row's nearest: likely false",
    "inside_edges": "share of the graph's edges inside communities",
}


@dataclass(frozen=True)
class ShownBatch:
    """One batch: its number, how many rows it has, and the first of them with their community and their texts."""

    number: int
    rows: int
    communities: list[int | None]
    texts: list[dict[str, str]]


@dataclass(frozen=True)
class Grouping:
    """What a ``b3`` step made.

    Args:
        step: the step's number, and ``details`` as the manifest has them.
        batches: how many there are; ``batch_sizes`` and ``cluster_sizes`` count them by size.
        quality: (what is measured, the plan's value, that of random batches), None where it was not measured.
        shown: some of the batches.
    """

    step: int
    details: dict[str, Any]
    batches: int
    batch_sizes: dict[str, int]
    cluster_sizes: dict[str, int]
    quality: list[tuple[str, float | None, float | None]]
    shown: list[ShownBatch]


def look_at_batches(folder: Path, manifest: Manifest, batches: int = 3, rows: int = 8) -> Grouping | None:
    """Look into the plan of a finished dataset; None where its recipe did not group.

    Args:
        folder: the dataset.
        manifest: its manifest.
        batches: how many to show, at even distances.
        rows: how many rows of each to show.

    Raises:
        SourceError: the plan or a shard cannot be read.
    """
    if not manifest.steps or manifest.steps[-1].step != "b3":
        return None
    plan = BatchPlan.load(folder / BATCHES)
    record = manifest.steps[-1]
    details = record.details
    plans, randoms = (details.get("quality", {}).get(name, {}) for name in ("plan", "random"))
    numbers = sorted(set(np.linspace(0, len(plan) - 1, min(batches, len(plan))).astype(int).tolist()))
    wanted = {number: plan[number][:rows].tolist() for number in numbers}
    texts = _texts(folder, manifest, [row for some in wanted.values() for row in some])
    shown = [
        ShownBatch(
            number=number,
            rows=len(plan[number]),
            communities=[None if plan.clusters is None else int(plan.clusters[row]) for row in some],
            texts=[texts[row] for row in some],
        )
        for number, some in wanted.items()
    ]
    return Grouping(
        step=record.number,
        details=details,
        batches=len(plan),
        batch_sizes=details.get("batch_sizes", {}),
        cluster_sizes=details.get("cluster_sizes", {}),
        quality=[(meaning, plans.get(name), randoms.get(name)) for name, meaning in _MEANINGS.items()],
        shown=shown,
    )


def _texts(folder: Path, manifest: Manifest, rows: Sequence[int]) -> dict[int, dict[str, str]]:
    """Columns of text by row of the dataset."""
    schema = shard_schema(folder, manifest)
    if schema is None:
        raise SourceError(f"{folder}: {BATCHES} is there, but there are no shards")
    step = manifest.recipe["steps"][-1]
    names = [
        name
        for name in dict.fromkeys((step["queries"], step["positives"]))
        if name in schema.names and is_text(schema.field(name).type)
    ]
    only = text_column(manifest, schema)
    names = names or ([] if only is None else [only])
    found: dict[int, dict[str, str]] = {}
    start = 0
    for shard in shard_names(manifest):
        for batch in shard_batches(folder / shard):
            here = [row for row in rows if start <= row < start + len(batch)]
            values = batch.select(names).take(pa.array([row - start for row in here], pa.int64())).to_pylist()
            found.update(zip(here, ({name: str(text) for name, text in row.items()} for row in values), strict=True))
            start += len(batch)
    return found
