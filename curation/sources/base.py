"""Source of candidates: what it offers to the pipelines.

Positions 0..N-1 name the rows in the order of the sorted files. A block is a fixed run of positions; it is read
by one task. A bad row keeps its position: it comes back with nulls and stands in the list of bad rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

RAW_BYTES = 4096


class InputRecord(BaseModel):
    """One file (or module tree) of the source. ``fingerprint`` is ``sha256:…`` or what the file system offers."""

    model_config = ConfigDict(extra="forbid")

    path: str
    bytes: int
    rows: int
    fingerprint: str


@dataclass(frozen=True)
class Part:
    """A run of rows of one file. ``offset`` is the byte where row ``row`` starts, for formats that seek by it."""

    file: int
    row: int
    rows: int
    offset: int = 0


@dataclass(frozen=True)
class Block:
    """Positions ``start .. start + rows - 1``: the unit of work, of resuming and of randomness."""

    number: int
    start: int
    rows: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its position, file, row in the file, the reason, and what stood there."""

    index: int
    file: str
    row: int
    reason: str
    raw: str | None = None


def raw_text(raw: bytes) -> str:
    """The start of a bad row, fit to be shown."""
    return raw[:RAW_BYTES].decode("utf-8", "replace")


class Source(Protocol):
    """Rows in fixed blocks. Small and picklable: it travels to every task and opens files there."""

    @property
    def schema(self) -> pa.Schema:
        """The columns."""

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know of how it is read: what is left out, filled in or converted. A sentence each."""

    def inputs(self) -> list[InputRecord]:
        """The files, with row counts and fingerprints.

        Raises:
            SourceError: a file is gone, or has changed since the source was opened.
        """

    def blocks(self, rows: int, size: int = ...) -> list[Block]:
        """Cut all positions into blocks of ``rows`` rows, or of fewer where these have about ``size`` bytes in memory
        (see :mod:`curation.sources.blocks`); the last may be shorter. Equal files are cut alike."""

    def read(self, block: Block, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[BadRow]]:
        """Read a block: exactly ``block.rows`` rows, and which of them are bad.

        Raises:
            SourceError: a file is gone, damaged, or has changed since the source was opened.
            ValueError: the source has no such column.
        """

    def locate(self, index: int) -> tuple[str, int]:
        """File and row in it of one position."""
