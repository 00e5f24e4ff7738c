"""What a finished dataset says of itself: ``manifest.json``.

A curated dataset on disk (``OUT/``)::

    data-00000-of-00012.arrow    Arrow IPC stream; the source's columns, then `_index` int64 (position in the
                                 source), `_weight` float32, and a float64 column for each score
    dataset_info.json, state.json    what datasets.load_from_disk reads
    batches.arrow                BatchPlan over the shards' rows (0..M-1), where the recipe grouped
    decisions.arrow              Arrow IPC file, a row for each candidate in source order: DECISIONS
    quarantine.jsonl             bad rows, where there were any: index, file, row, reason, raw
    manifest.json, report.html
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from curation.errors import SourceError
from curation.sources.base import InputRecord

MANIFEST = "manifest.json"
DECISIONS = "decisions.arrow"
QUARANTINE = "quarantine.jsonl"
BATCHES = "batches.arrow"
REPORT = "report.html"

KEPT = "kept"
BAD_ROW = "bad row"


def decisions_schema(scores: list[str]) -> pa.Schema:
    """Columns of ``decisions.arrow``.

    ``reason`` is ``"kept"``, ``"bad row"``, or ``"<number>. <step>: <why>"`` such as ``"2. acquire: below the
    cut"``. Scores are null for rows that never reached the step. ``duplicate_of`` is the position of the row
    that was kept in its place, or null. ``pick`` counts from 0 in the order of the last draw; null if not kept.
    """
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            *(pa.field(name, pa.float64()) for name in scores),
            pa.field("kept", pa.bool_(), nullable=False),
            pa.field("reason", pa.dictionary(pa.int8(), pa.string()), nullable=False),
            pa.field("weight", pa.float32(), nullable=False),
            pa.field("pick", pa.int64()),
            pa.field("duplicate_of", pa.int64()),
        ]
    )


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class ReportTable(_Record):
    """A table that the report shows of a step. A column titled ``#…`` holds numbers."""

    title: str
    columns: list[str]
    rows: list[list[str | int | float]]


class StepRecord(_Record):
    """What one step did.

    ``dropped`` counts by reason; ``details`` holds choices and statistics of the step; ``did`` is what it did to the
    rows in a few words; ``scores`` are the score columns that it made; ``tables`` are for the report.
    """

    number: int
    step: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = {}
    seconds: float
    details: dict[str, Any] = {}
    did: str = ""
    scores: list[str] = []
    tables: list[ReportTable] = []


class FileRecord(_Record):
    """One file of the dataset."""

    bytes: int
    sha256: str
    rows: int | None = None


class Manifest(_Record):
    """The whole account. Everything but ``seconds`` and ``created`` is the same for the same recipe and input."""

    format_version: int = 1
    recipe: dict[str, Any]
    recipe_sha256: str
    seed: int
    inputs: list[InputRecord]
    rows_in: int
    rows_out: int
    bad_rows: int = 0
    steps: list[StepRecord]
    files: dict[str, FileRecord]
    versions: dict[str, str]
    seconds: dict[str, float]
    created: datetime

    @property
    def scores(self) -> list[str]:
        """Names of the score columns, in the order they were made."""
        return [step["name"] for step in self.recipe["steps"] if step["step"] in ("align", "score")]

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``; it names every other file, so it is written last."""
        (folder / MANIFEST).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read a finished dataset's manifest.

        Raises:
            SourceError: the folder is no curated dataset.
        """
        try:
            return cls.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SourceError(f"{folder}: no {MANIFEST} here, so this is not a finished curated dataset") from error
        except (OSError, ValidationError) as error:
            raise SourceError(f"{folder / MANIFEST}: not a manifest: {error}") from error


def now() -> datetime:
    """This moment, UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def sha256_of(path: Path) -> str:
    """Hash a file in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
