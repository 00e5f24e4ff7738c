"""A small true finished dataset, decided by a few lines of numpy and written by ``curation.dataset.writer``."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.dataset import Dataset
from curation.dataset.manifest import BAD_ROW, BATCHES, DECISIONS, KEPT, QUARANTINE, Manifest, StepRecord, now, versions
from curation.dataset.writer import (
    decisions_batch,
    file_record,
    kept_table,
    shard_name,
    shard_schema,
    write_dataset_files,
    write_decisions,
    write_manifest,
    write_shard,
)
from curation.plan import BatchPlan
from curation.recipe import Recipe
from curation.sources.base import BadRow, InputRecord

Finished = Callable[..., Dataset]

SCORE = "quality"
DUPLICATE = "2. dedup: same text as an earlier row"
BELOW = "3. acquire: below the cut"


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    """:func:`write_finished` in this test's folder."""

    def write(name: str = "made", **options: Any) -> Dataset:
        return write_finished(tmp_path / name, **options)

    return write


def write_finished(
    home: Path,
    *,
    rows: int = 400,
    keep: int = 60,
    shards: int = 3,
    batch_rows: int = 16,
    texts: dict[int, str] | None = None,
    kind: str = "top-k",
    bad: int | None = 7,
    plan: bool = False,
    decision_batches: int = 4,
    sources: tuple[str, ...] | None = ("web", "books", "code"),
) -> Dataset:
    """Write ``home/source.parquet`` and the dataset ``home/out`` that a score, dedup, acquire recipe makes of it.

    Scores are random with some ties; every tenth row repeats the text of the row before it; low scores come from
    all ``sources``, high ones from the last; ``texts`` replaces texts by position; row ``bad`` has none. A draw of
    another ``kind`` than top-k keeps random rows.
    """
    rng = np.random.default_rng(0)
    score = np.round(rng.beta(2, 5, rows), 3)
    text = [f"def function_{i if i % 10 else i - 1}(): return {i if i % 10 else i - 1}" for i in range(rows)]
    for index, other in (texts or {}).items():
        text[index] = other
    columns = {
        "text": pa.array([None if i == bad else t for i, t in enumerate(text)], pa.string()),
        "source": pa.array([sources[i % len(sources) if score[i] < 0.3 else -1] for i in range(rows)])
        if sources
        else None,
        "value": score,
    }
    columns = {name: column for name, column in columns.items() if column is not None}
    home.mkdir(parents=True, exist_ok=True)
    source = home / "source.parquet"
    pq.write_table(pa.table(columns), source, row_group_size=100)

    recipe = Recipe.model_validate(
        {
            "source": {"format": "parquet", "path": str(source)},
            "steps": [
                {"step": "score", "name": SCORE, "column": "value"},
                {"step": "dedup", "column": "text"},
                {"step": "acquire", "kind": kind, "count": keep}
                if kind != "threshold"
                else {"step": "acquire", "kind": kind, "threshold": 0.5},
            ],
            "seed": 3,
            "on_bad_row": "quarantine",
            "block_rows": 64,
        }
    )
    good = np.arange(rows) != (-1 if bad is None else bad)
    first: dict[str, int] = {}
    original = np.array([first.setdefault(t, i) for i, t in enumerate(text)])
    unique = good & (original == np.arange(rows))
    pool = np.flatnonzero(unique)
    if kind == "top-k":
        picked = pool[np.lexsort((pool, -score[pool]))][:keep]
    elif kind == "threshold":
        picked = pool[score[pool] >= 0.5]
    else:
        picked = rng.permutation(pool)[:keep]
    kept = np.zeros(rows, bool)
    kept[picked] = True
    pick = np.full(rows, -1)
    pick[picked] = np.arange(len(picked))

    code = np.select([kept, ~good, ~unique], [0, 1, 2], 3).astype(np.int8)
    out = home / "out"
    out.mkdir()

    def decided(part: np.ndarray) -> pa.RecordBatch:
        return decisions_batch(
            int(part[0]),
            code[part],
            [KEPT, BAD_ROW, DUPLICATE, BELOW],
            {SCORE: np.where(good, score, np.nan)[part]},
            pa.array(pick[part], mask=~kept[part]),
            pa.array(original[part], mask=code[part] != 2),
        )

    write_decisions(out / DECISIONS, [SCORE], map(decided, np.array_split(np.arange(rows), decision_batches)))

    chosen = np.flatnonzero(kept)
    table = pq.read_table(source)
    schema = shard_schema(table.schema, [SCORE])
    files = {}
    for number, part in enumerate(np.array_split(chosen, shards)):
        name = shard_name(number, shards)
        shard = kept_table(table.take(pa.array(part)), part, {SCORE: score[part]})
        write_shard(out / name, schema, [shard], batch_rows)
        files[name] = file_record(out / name, len(shard))
    write_dataset_files(out, schema, list(files), "0123456789abcdef")
    if bad is not None:
        line = BadRow(bad, str(source), bad, "text is null")
        (out / QUARANTINE).write_text(json.dumps(asdict(line)) + "\n")
    if plan:
        BatchPlan.of_size(np.arange(len(chosen)), 16).save(out / BATCHES)

    count = int(good.sum())
    cut = recipe.model_dump(mode="json")["steps"][2]
    did = f"cut to the {keep} with the highest {SCORE}"
    steps = [
        StepRecord(
            number=1, step="score", rows_in=count, rows_out=count, seconds=0.5, did="scored by value", scores=[SCORE]
        ),
        StepRecord(
            number=2,
            step="dedup",
            rows_in=count,
            rows_out=len(pool),
            dropped={DUPLICATE: count - len(pool)},
            seconds=0.25,
            did="freed of repeated text",
        ),
        StepRecord(
            number=3,
            step="acquire",
            rows_in=len(pool),
            rows_out=len(chosen),
            dropped={BELOW: len(pool) - len(chosen)},
            seconds=0.125,
            did=did,
            details={**{name: cut[name] for name in ("kind", "threshold", "per", "beta")}, "score": SCORE},
        ),
    ]
    fingerprint = f"sha256:{file_record(source).sha256}"
    manifest = Manifest(
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256(),
        seed=recipe.seed,
        inputs=[InputRecord(path=str(source), bytes=source.stat().st_size, rows=rows, fingerprint=fingerprint)],
        rows_in=rows,
        rows_out=len(chosen),
        bad_rows=rows - count,
        steps=steps,
        files=files,
        versions=versions(),
        seconds={"read": 0.1, "steps": 0.9, "write": 0.3},
        created=now(),
    )
    write_manifest(out, manifest, {DECISIONS: rows, QUARANTINE: rows - count})
    return Dataset(out)
