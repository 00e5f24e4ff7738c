"""Rows of a finished dataset by position: from its shards where they were kept, else from the source."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.dataset.manifest import Manifest, sha256_of
from curation.dataset.shards import INDEX, WEIGHT, kept_rows
from curation.errors import CurationError
from curation.recipe import Recipe


@dataclass(frozen=True)
class Row:
    """A row's columns, and where it stands."""

    values: dict[str, Any]
    where: str


def find_rows(
    folder: Path, manifest: Manifest, indices: Sequence[int], *, trust: bool = False
) -> tuple[dict[int, Row], str | None]:
    """Read rows by position.

    Args:
        folder: the dataset.
        manifest: its manifest.
        indices: positions in the source.
        trust: do not hash the source's files again to see whether they are still the ones that were read.

    Returns:
        The rows that were found, and why others were not, or None.
    """
    own = {INDEX, WEIGHT, *manifest.scores}
    found = {
        index: Row({name: value for name, value in row.items() if name not in own}, where)
        for index, (row, where) in kept_rows(folder, manifest, indices).items()
    }
    rest = sorted(set(indices) - found.keys())
    if not rest:
        return found, None
    try:
        read, note = _from_source(manifest, rest, trust)
    except (CurationError, IndexError, ValueError) as error:
        return found, f"the source cannot be read any more: {error}"
    return found | read, note


def text_column(manifest: Manifest, schema: pa.Schema) -> str | None:
    """The column to show of a row: what the recipe aligns or deduplicates by, else the first that holds text."""
    named = [
        step.get("column") for kind in ("align", "dedup") for step in manifest.recipe["steps"] if step["step"] == kind
    ]
    strings = [field.name for field in schema if is_text(field.type)]
    return next((name for name in [*named, "text"] if name in strings), strings[0] if strings else None)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, dictionary-encoded or not."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _from_source(manifest: Manifest, indices: list[int], trust: bool) -> tuple[dict[int, Row], str | None]:
    from curation.sources import open_source

    recipe = Recipe.model_validate(manifest.recipe)
    source = open_source(recipe.source)
    blocks = source.blocks(recipe.block_rows)
    total = sum(block.rows for block in blocks)
    if total != manifest.rows_in:
        return {}, f"the source has {total:,} rows now and had {manifest.rows_in:,} when it was read"
    recorded = {record.path: record.fingerprint for record in manifest.inputs}
    found: dict[int, Row] = {}
    note = None
    for number in sorted({index // recipe.block_rows for index in indices}):
        block = blocks[number]
        table, _ = source.read(block)
        for index in indices:
            if index // recipe.block_rows != number:
                continue
            path, row = source.locate(index)
            if not trust and _changed(path, recorded.get(path)):
                note = f"{path} has changed since it was read"
                continue
            found[index] = Row(table.slice(index - block.start, 1).to_pylist()[0], f"{path}, row {row}")
    return found, note


def _changed(path: str, fingerprint: str | None) -> bool:
    if fingerprint is None or not fingerprint.startswith("sha256:") or not Path(path).is_file():
        return False
    return sha256_of(Path(path)) != fingerprint.removeprefix("sha256:")
