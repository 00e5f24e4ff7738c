"""A small true finished dataset, written with pyarrow from what ``curation.dataset.manifest`` documents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.dataset.manifest import (
    BAD_ROW,
    DECISIONS,
    KEPT,
    MANIFEST,
    QUARANTINE,
    FileRecord,
    Manifest,
    StepRecord,
    decisions_schema,
    now,
    sha256_of,
)
from curation.dataset.versions import versions
from curation.plan import BatchPlan
from curation.recipe import Recipe
from curation.sources.base import InputRecord

Finished = Callable[..., tuple[Path, Manifest]]

SCORE = "quality"
DUPLICATE = "2. dedup: duplicate"
BELOW = "3. acquire: below the cut"


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    """:func:`write_finished` in this test's folder."""

    def write(name: str = "made", **options: Any) -> tuple[Path, Manifest]:
        return write_finished(tmp_path / name, **options)

    return write


def write_finished(
    home: Path,
    *,
    rows: int = 400,
    keep: int = 60,
    shards: int = 3,
    texts: dict[int, str] | None = None,
    kind: str = "top-k",
    bad: int | None = 7,
    plan: bool = False,
    decision_batches: int = 4,
    sources: tuple[str, ...] | None = ("web", "books", "code"),
) -> tuple[Path, Manifest]:
    """Write ``home/source.parquet`` and the dataset ``home/out`` that a score, dedup, acquire recipe makes of it.

    Scores are random with some ties; every tenth row repeats the text of the row before it; low scores come from
    all ``sources``, high ones from the last; ``texts`` replaces texts by position; row ``bad`` has none. A draw of
    another ``kind`` than top-k keeps random rows.
    """
    rng = np.random.default_rng(0)
    score = np.round(rng.beta(2, 5, rows), 3)
    text = [f"def function_{i if i % 10 else i - 1}(): return {i if i % 10 else i - 1}" for i in range(rows)]
    for index, own in (texts or {}).items():
        text[index] = own
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

    reasons = [KEPT, BAD_ROW, DUPLICATE, BELOW]
    code = np.select([kept, ~good, ~unique], [0, 1, 2], 3).astype(np.int8)
    decisions = pa.table(
        [
            pa.array(np.arange(rows)),
            pa.array(score, mask=~good),
            pa.array(kept),
            pa.DictionaryArray.from_arrays(pa.array(code), pa.array(reasons)),
            pa.array(kept.astype(np.float32)),
            pa.array(pick, mask=~kept),
            pa.array(original, mask=code != 2),
        ],
        schema=decisions_schema([SCORE]),
    )
    out = home / "out"
    out.mkdir()
    with pa.OSFile(str(out / DECISIONS), "wb") as sink, pa.ipc.new_file(sink, decisions.schema) as writer:
        writer.write_table(decisions, max_chunksize=-(-rows // decision_batches))

    chosen = np.flatnonzero(kept)
    table = pa.table({**columns, "_index": np.arange(rows), "_weight": kept.astype(np.float32), SCORE: score})
    names = [f"data-{n:05d}-of-{shards:05d}.arrow" for n in range(shards)]
    shard_rows = {}
    for name, part in zip(names, np.array_split(chosen, shards), strict=True):
        shard = table.take(pa.array(part))
        with pa.OSFile(str(out / name), "wb") as sink, pa.ipc.new_stream(sink, shard.schema) as writer:
            writer.write_table(shard, max_chunksize=16)
        shard_rows[name] = len(shard)
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (out / "state.json").write_text(json.dumps(state))
    (out / "dataset_info.json").write_text(json.dumps({"citation": "", "description": ""}))
    if bad is not None:
        line = {"index": bad, "file": str(source), "row": bad, "reason": "text is null", "raw": None}
        (out / QUARANTINE).write_text(json.dumps(line) + "\n")
    if plan:
        BatchPlan.of_size(np.arange(len(chosen)), 16).save(out / "batches.arrow")

    count = int(good.sum())
    steps = [
        StepRecord(number=1, step="score", rows_in=count, rows_out=count, seconds=0.5),
        StepRecord(
            number=2,
            step="dedup",
            rows_in=count,
            rows_out=len(pool),
            dropped={DUPLICATE: count - len(pool)},
            seconds=0.25,
        ),
        StepRecord(
            number=3,
            step="acquire",
            rows_in=len(pool),
            rows_out=len(chosen),
            dropped={BELOW: len(pool) - len(chosen)},
            seconds=0.125,
        ),
    ]
    manifest = Manifest(
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256(),
        seed=recipe.seed,
        inputs=[
            InputRecord(
                path=str(source), bytes=source.stat().st_size, rows=rows, fingerprint=f"sha256:{sha256_of(source)}"
            )
        ],
        rows_in=rows,
        rows_out=len(chosen),
        bad_rows=rows - count,
        steps=steps,
        files={
            path.name: FileRecord(
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
                rows=rows if path.name == DECISIONS else shard_rows.get(path.name),
            )
            for path in sorted(out.iterdir())
            if path.name != MANIFEST
        },
        versions=versions(),
        seconds={"read": 0.1, "steps": 0.9, "write": 0.3},
        created=now(),
    )
    manifest.save(out)
    return out, manifest
