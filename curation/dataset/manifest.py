"""Manifest, ``manifest.json``: what a finished dataset says of itself.

A curated dataset on disk (``OUT/``)::

    data-00000-of-00012.arrow    Arrow IPC stream; the source's columns, then `_index` int64 (position in the
                                 source), `_weight` float32, and a float64 column for each score
    dataset_info.json, state.json    what datasets.load_from_disk reads
    batches.arrow                BatchPlan over the shards' rows (0..M-1), where the recipe grouped
    decisions.arrow              Arrow IPC file, a row for each candidate in source order: see
                                 :func:`curation.dataset.writer.decisions_schema`
    quarantine.jsonl             bad rows, where there were any: index, file, row, reason, raw
    manifest.json, report.html
"""

import hashlib
import platform
import zlib
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from curation.errors import SourceError
from curation.sources.base import InputRecord

MANIFEST = "manifest.json"
DECISIONS = "decisions.arrow"
QUARANTINE = "quarantine.jsonl"
BATCHES = "batches.arrow"
REPORT = "report.html"

KEPT = "kept"
BAD_ROW = "bad row"

PACKAGES = (
    "curation",
    "numpy",
    "pyarrow",
    "datasets",
    "ray",
    "torch",
    "numba",
    "lz4",
    "zstandard",
    "xxhash",
    "scikit-learn",
    "kaminpar",
    "pymetis",
    "faiss-cpu",
    "faiss-gpu",
    "triton",
)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class ReportTable(_Record):
    """A table that the report shows of a step. A column titled ``#…`` holds numbers.

    Raises:
        ValidationError: there is no column, or a row has another number of cells than there are columns.
    """

    title: str
    columns: list[str] = Field(min_length=1)
    rows: list[list[str | int | float]]

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} of {self.title!r} has {len(row)} cells, not {len(self.columns)}")
        return self


class StepRecord(_Record):
    """What one step did.

    ``dropped`` counts rows by reason. ``did`` says in words what was done to the rows, such as ``"freed of repeated
    text"``. ``depends`` is what the result depends on besides parameters and rows: hashes of targets, code and models,
    versions of packages. ``scores`` are the score columns that the step made. ``details`` holds choices and statistics;
    with ``score`` and ``kind`` among them (and ``threshold``, ``per`` and ``beta`` where they apply) the step is a cut.
    ``tables`` are for the report.
    """

    number: int
    step: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = {}
    seconds: float
    did: str = ""
    depends: dict[str, str] = {}
    scores: list[str] = []
    details: dict[str, Any] = {}
    tables: list[ReportTable] = []


class FileRecord(_Record):
    """One file of the dataset."""

    bytes: int
    sha256: str
    rows: int | None = None


class Manifest(_Record):
    """The whole account. Everything but ``seconds`` and ``created`` is the same for the same recipe and input.

    ``notes`` say how the inputs were read: what was left out, filled in or converted.
    """

    format_version: int = 1
    recipe: dict[str, Any]
    recipe_sha256: str
    seed: int
    inputs: list[InputRecord]
    notes: list[str] = []
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
        made = [name for step in self.steps for name in step.scores]
        # Older manifests have them in the recipe alone.
        return made or [step["name"] for step in self.recipe["steps"] if step["step"] in ("align", "score")]

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


def versions() -> dict[str, str]:
    """Python's version, zlib's, and those of the installed packages that decide results; nothing is imported."""
    installed = {"python": platform.python_version(), "zlib": zlib.ZLIB_RUNTIME_VERSION}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
