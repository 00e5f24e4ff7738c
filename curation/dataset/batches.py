"""Batches of a grouped dataset, to be looked at: how hard they are, and what stands in some of them."""

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curation.arrow import is_text
from curation.dataset.manifest import BATCHES
from curation.errors import SourceError

if TYPE_CHECKING:
    from curation.dataset.reader import Dataset

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


def look_at_batches(dataset: "Dataset", batches: int = 3, rows: int = 8) -> Grouping | None:
    """Look into the plan of a finished dataset; None where its recipe did not group.

    Args:
        dataset: what was grouped.
        batches: how many to show, at even distances.
        rows: how many rows of each to show.

    Raises:
        SourceError: the plan or a shard cannot be read.
    """
    steps = dataset.manifest.steps
    if not steps or steps[-1].step != "b3":
        return None
    plan = dataset.plan
    if plan is None:
        raise SourceError(f"{dataset.folder}: has no {BATCHES}, though its recipe groups")
    details = steps[-1].details
    plans, randoms = (details.get("quality", {}).get(name, {}) for name in ("plan", "random"))
    numbers = sorted(set(np.linspace(0, len(plan) - 1, min(batches, len(plan))).astype(int).tolist()))
    positions = {number: plan[number][:rows] for number in numbers}
    texts = iter(_texts(dataset, np.concatenate([*positions.values(), np.empty(0, np.int64)])))
    shown = [
        ShownBatch(
            number=number,
            rows=len(plan[number]),
            communities=[None if plan.clusters is None else int(plan.clusters[row]) for row in some.tolist()],
            texts=list(islice(texts, len(some))),
        )
        for number, some in positions.items()
    ]
    return Grouping(
        step=steps[-1].number,
        details=details,
        batches=len(plan),
        batch_sizes=details.get("batch_sizes", {}),
        cluster_sizes=details.get("cluster_sizes", {}),
        quality=[(meaning, plans.get(name), randoms.get(name)) for name, meaning in _MEANINGS.items()],
        shown=shown,
    )


def _texts(dataset: "Dataset", positions: npt.NDArray[np.int64]) -> list[dict[str, str]]:
    """Columns of text of some rows."""
    schema, step = dataset.schema, dataset.manifest.recipe["steps"][-1]
    named = [
        name
        for name in dict.fromkeys((step["queries"], step["positives"]))
        if name in schema.names and is_text(schema.field(name).type)
    ]
    shown = named or ([] if dataset.text_column is None else [dataset.text_column])
    rows = dataset.rows(positions, shown).to_pylist() if shown else [{} for _ in positions]
    return [{name: str(text) for name, text in row.items()} for row in rows]
