"""``align``: ZIP-FIT's score of each text, by how well it compresses together with the target texts."""

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import BeforeValidator, Field, PrivateAttr

from curation.errors import SourceError
from curation.pipelines.engine.fingerprints import packages
from curation.pipelines.steps.base import TEXT, Kind, StepRun
from curation.pipelines.steps.block import BlockStep, Verdict
from curation.recipe.model import FileSource, Made, Model, StdlibSource
from curation.sources import open_source

if TYPE_CHECKING:
    from curation.selectors.zipfit import ZipFit


class Texts(Model):
    """Texts as they stand in the recipe."""

    format: Literal["texts"]
    texts: list[str] = Field(min_length=1)


def _listed(value: Any) -> Any:
    return {"format": "texts", "texts": value} if isinstance(value, list | tuple) else value


Targets = Annotated[
    FileSource | StdlibSource | Texts,
    Field(discriminator="format"),
    BeforeValidator(_listed, json_schema_input_type=Any),
]


class Align(BlockStep):
    """ZIP-FIT: score each text by how well it compresses together with the target texts."""

    step: Literal["align"] = "align"
    targets: Targets = Field(description="A source, or a list of texts.")
    target_column: str = "text"
    column: str = "text"
    name: str = Field(default="alignment", description="The score column that the step makes.")
    codec: Literal["lz4", "gzip", "zstd"] = "lz4"
    level: int | None = None

    _zipfit: Any = PrivateAttr(default=None)

    @property
    def scores(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def draws(self) -> bool:
        return False

    @property
    def signed(self) -> tuple[str, ...]:
        # Text that does not compress gets longer where it is compressed with another.
        return (self.name,)

    def reads(self, made: Made) -> Mapping[str, Kind]:
        return {self.column: TEXT}

    def depends(self) -> dict[str, str]:
        """Also the version of the codec."""
        versions = {
            "lz4": packages("lz4"),
            "gzip": {"zlib": zlib.ZLIB_RUNTIME_VERSION},
            "zstd": packages("zstandard"),
        }
        return super().depends() | versions[self.codec]

    def did(self, made: Made) -> str:
        return f"scored by how well their {self.column} compresses with the targets (ZIP-FIT, {self.codec})"

    def prepare(self, run: StepRun) -> "Align":
        """Read the targets once, here, and send them to the workers."""
        from curation.selectors.zipfit import ZipFit

        ready = self.model_copy()
        threads = max(1, int(self.resources.cpus))
        texts = target_texts(self.targets, self.target_column, run.workspace.note)
        ready._zipfit = ZipFit(targets=texts, codec=self.codec, level=self.level, threads=threads)
        return ready

    def judge(self, rows: pa.Table) -> Verdict:
        zipfit: ZipFit = self._zipfit
        return Verdict({self.name: zipfit.score(rows[self.column])})


def target_texts(
    targets: FileSource | StdlibSource | Texts, column: str, note: Callable[[str], None] = lambda text: None
) -> list[str]:
    """All texts of a target set; ``note`` is told how they are read.

    Raises:
        SourceError: there is none, or one is null, empty or cannot be read.
    """
    if isinstance(targets, Texts):
        if not all(targets.texts):
            raise SourceError(f"target {targets.texts.index('')} is empty")
        return targets.texts
    source = open_source(targets)
    for line in source.notes:
        note(line)
    if column not in source.schema.names:
        raise SourceError(f"the targets have no column {column!r}; they have: {', '.join(source.schema.names)}")
    texts: list[str] = []
    for block in source.blocks(16_384):
        table, bad = source.read(block, (column,))
        if bad:
            raise SourceError(f"target row {bad[0].row} of {bad[0].file}: {bad[0].reason}")
        texts += table[column].to_pylist()
    empty = next((number for number, text in enumerate(texts) if not text), None)
    if empty is not None:
        file, row = source.locate(empty)
        raise SourceError(f"{file}, row {row}: the target's {column!r} is null or empty")
    if not texts:
        raise SourceError("the target source has no rows")
    return texts
