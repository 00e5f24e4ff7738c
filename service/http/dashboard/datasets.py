"""Datasets as the dashboard shows them: a page of rows by position in the shards, and a plan in numbers."""

import numpy as np
from pydantic import BaseModel, Field

from curation.dataset.manifest import BATCHES, Manifest
from curation.plan import BatchPlan
from curation.service.datasets import Datasets
from curation.service.errors import Refusal
from curation.service.http.dashboard.sessions import sizes_of
from curation.service.http.rows import Cell, read_rows


class ShownRow(BaseModel):
    """One row. ``position`` counts over the shards."""

    position: int
    cells: list[Cell]


class Page(BaseModel):
    """Some rows of a batch, or of the whole dataset where none is named."""

    columns: list[str]
    text: str | None = Field(description="the column that says most to a reader")
    images: list[str] = Field(description="columns of pictures, which .../rows/{position}/image shows")
    rows: list[ShownRow]
    start: int
    total: int = Field(description="rows of the batch, or of the dataset")


class PlanFacts(BaseModel):
    """A batch plan in numbers."""

    batches: int
    rows: int
    sizes: dict[str, int] = Field(description="batches by their size, the commonest first")
    communities_per_batch: float | None
    negatives: int = Field(description="explicit hard negatives of each row")
    metadata: dict[str, str]
    hardness: dict[str, dict[str, float | None]] = Field(
        description="by measure: of the plan, and of the same rows in random batches; empty where nobody measured"
    )


def plan_facts(plan: BatchPlan, manifest: Manifest | None) -> PlanFacts:
    """A plan in numbers, with what its dataset's manifest says of its hardness."""
    communities = None
    if plan.clusters is not None and len(plan):
        batch = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
        order = np.lexsort((plan.clusters, batch))
        new = (np.diff(batch[order]) != 0) | (np.diff(plan.clusters[order]) != 0)
        communities = (1 + int(np.count_nonzero(new))) / len(plan)
    return PlanFacts(
        batches=len(plan),
        rows=len(plan.indices),
        sizes=sizes_of(np.diff(plan.offsets)),
        communities_per_batch=communities,
        negatives=0 if plan.negatives is None else plan.negatives.shape[1],
        metadata=dict(plan.metadata),
        hardness={} if manifest is None else _hardness(manifest),
    )


def read_page(datasets: Datasets, name: str, batch: int | None, start: int, limit: int) -> Page:
    """Rows ``start .. start + limit - 1`` of a batch, or of the dataset.

    Raises:
        Refusal: there is no such dataset or batch, or its files cannot be read.
    """
    total = len(datasets.open(name))
    positions = np.arange(min(start, total), min(start + limit, total))
    if batch is not None:
        plan = datasets.plan(name)
        if batch >= len(plan):
            raise Refusal("bad-dataset", f"dataset {name!r} has batches 0 to {len(plan) - 1}, not {batch}")
        total = len(plan[batch])
        positions = plan[batch][start : start + limit]
    rows = read_rows(datasets, name, positions)
    return Page(
        columns=rows.columns,
        text=rows.text,
        images=rows.images,
        rows=[
            ShownRow(position=position, cells=cells)
            for position, cells in zip(positions.tolist(), rows.cells, strict=True)
        ],
        start=start,
        total=total,
    )


def has_plan(datasets: Datasets, name: str) -> bool:
    """Whether a dataset has batches."""
    try:
        datasets.file(name, BATCHES)
    except Refusal:
        return False
    return True


def _hardness(manifest: Manifest) -> dict[str, dict[str, float | None]]:
    for step in reversed(manifest.steps):
        quality = step.details.get("quality")
        if isinstance(quality, dict) and isinstance(quality.get("plan"), dict):
            random = quality.get("random") or {}
            return {str(name): {"plan": value, "random": random.get(name)} for name, value in quality["plan"].items()}
    return {}
