"""Sources of candidates: files of rows in several formats, and the standard library's functions."""

from collections.abc import Callable

from curation.errors import SourceError
from curation.recipe.model import FileSource, MemorySource, StdlibSource
from curation.sources.arrow import EXTENSIONS as ARROW
from curation.sources.arrow import arrow_reader, dataset_features, dataset_listing
from curation.sources.base import Source
from curation.sources.columnar import ColumnarSource
from curation.sources.jsonl import EXTENSIONS as JSONL
from curation.sources.jsonl import JsonlSource
from curation.sources.listing import expand
from curation.sources.parquet import EXTENSIONS as PARQUET
from curation.sources.parquet import ParquetReader
from curation.sources.stdlib import StdlibFunctions

__all__ = ["EXTENSIONS", "FORMATS", "format_of", "open_source"]

EXTENSIONS: dict[str, tuple[str, ...]] = {"parquet": PARQUET, "arrow": ARROW, "jsonl": JSONL}
"""What names of files of each format end in."""

FORMATS: dict[str, Callable[[FileSource], Source]] = {
    "parquet": lambda spec: ColumnarSource(expand(spec.path, PARQUET), ParquetReader, spec),
    "arrow": lambda spec: ColumnarSource(expand(spec.path, ARROW), arrow_reader, spec),
    "dataset": lambda spec: ColumnarSource(dataset_listing(spec.path), arrow_reader, spec, dataset_features),
    "jsonl": lambda spec: JsonlSource(expand(spec.path, JSONL), spec),
}


def format_of(name: str) -> str | None:
    """The format that a file's name tells, or None."""
    return next((form for form, endings in EXTENSIONS.items() if name.endswith(endings)), None)


def open_source(spec: FileSource | StdlibSource | MemorySource) -> Source:
    """Find the files that a recipe's source means, and read the columns and their types from all of them.

    A row is judged bad by the columns that are read, in Parquet and Arrow; by all of the source's columns in JSONL.

    Raises:
        SourceError: nothing is there, a file cannot be read, or a column is missing; says which.
    """
    if isinstance(spec, MemorySource):
        raise SourceError(f"it was a {spec.kind} in memory, which is gone with the program that handed it over")
    if isinstance(spec, StdlibSource):
        return StdlibFunctions(spec)
    return FORMATS[spec.format](spec)
