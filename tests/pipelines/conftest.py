"""A corpus with every kind of row, and a recipe that uses every step."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.recipe import Recipe

ROWS = 1000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """See :func:`make_corpus`."""
    return make_corpus(tmp_path / "corpus")


def make_corpus(folder: Path) -> Path:
    """Three JSONL files, one of them compressed: texts, of which a tenth repeat, a quality, and a group."""
    folder.mkdir()
    for name, data in _files().items():
        (folder / name).write_bytes(data)
    return folder


@cache
def _files() -> dict[str, bytes]:
    rng = np.random.default_rng(7)
    words = ["merge", "sort", "list", "parse", "json", "open", "file", "token", "yield", "value"]
    rows: list[dict[str, Any]] = []
    for number in range(ROWS):
        text = f"def f{number}(): return " + " + ".join(rng.choice(words, 12))
        if number % 10 == 9:
            text = rows[number - 5]["text"]
        rows.append({"text": text, "quality": round(float(rng.gamma(2.0)), 6), "group": f"g{number % 7}"})
    lines = [(json.dumps(row) + "\n").encode() for row in rows]
    first, second, third = (b"".join(lines[i] for i in part) for part in np.array_split(np.arange(ROWS), 3))
    target = json.dumps({"text": "def g(): return merge + sort + list"}) + "\n"
    return {"a.jsonl": first, "b.jsonl.gz": gzip.compress(second), "c.jsonl": third, "target.json": target.encode()}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The corpus's rows in source order."""
    lines = [
        *(folder / "a.jsonl").read_text().splitlines(),
        *gzip.decompress((folder / "b.jsonl.gz").read_bytes()).decode().splitlines(),
        *(folder / "c.jsonl").read_text().splitlines(),
    ]
    return [json.loads(line) for line in lines]


def recipe(folder: Path, *steps: dict[str, Any], **others: Any) -> Recipe:
    """A recipe over the corpus in small blocks and shards."""
    return Recipe.model_validate(
        {
            "source": {"format": "jsonl", "path": [str(folder / "*.jsonl"), str(folder / "*.jsonl.gz")]},
            "steps": list(steps),
            "output": {"rows_per_shard": 130},
            "block_rows": 180,
            **others,
        }
    )


def align(folder: Path) -> dict[str, Any]:
    """An ``align`` step against the target file."""
    return {"step": "align", "targets": {"format": "jsonl", "path": str(folder / "target.json")}}
