"""``b3``: rows grouped into batches of hard negatives."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from curation.arrow import is_text, is_vector
from curation.errors import RecipeError
from curation.pipelines.steps.base import ANYTHING, Kind, Outcome, Step, StepRun, require
from curation.recipe.model import Made
from curation.selectors.b3.ranks import Pair, check_ranks

VECTORS = Kind("vectors (lists of floats)", is_vector)
IDS = Kind("text or whole numbers", lambda kind: is_text(kind) or pa.types.is_integer(kind))


class MineB3(Step):
    """B3: group rows into batches of hard negatives. The last step: the shards are laid out in its order."""

    libraries: ClassVar[tuple[str, ...]] = (
        "numpy",
        "torch",
        "numba",
        "scikit-learn",
        "networkx",
        "kaminpar",
        "pymetis",
        "faiss-cpu",
        "faiss-gpu",
    )

    step: Literal["b3"] = "b3"
    queries: str = Field(default="query", description="A column that `embed` embedded, or one of vectors.")
    positives: str = Field(default="positive", description="A column that `embed` embedded, or one of vectors.")
    batch_size: int = Field(default=1024, ge=2)
    cluster_size: int = Field(default=32, ge=1)
    ranks: Pair | dict[str, Pair] = Field(
        default=(30, 130),
        description="First rank kept, and the one after the last: numbers or shares, for all rows or by data set.",
    )
    edges: Literal["mutual", "either"] = "mutual"
    partitioner: Literal["kaminpar", "metis", "louvain"] = "kaminpar"
    repulsion: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Weight of likely false negatives against edges."
    )
    negatives: int = Field(default=0, ge=0, description="Explicit hard negatives for each row (B3++).")
    similarity_ceiling: float | None = Field(default=None, allow_inf_nan=False)
    positive_margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    duplicates: Literal["apart", "by-column", "ignore"] = Field(
        default="apart",
        description="apart: rows that have a text in common, as query or as positive, never share a batch; "
        "by-column: a query that equals another row's positive may.",
    )
    groups: str | None = Field(default=None, description="Rows with one value of this column never share a batch.")
    labels: str | None = Field(
        default=None, description="Rows with one value of this column are no negatives; the loss must mask them."
    )
    datasets: str | None = Field(default=None, description="Batches stay within one value of this column.")
    last: Literal["keep", "drop"] = "keep"
    surplus: Literal["error", "drop", "allow"] = Field(
        default="drop",
        description="What becomes of rows that cannot be kept apart: left out, or allowed to meet; error: found before "
        "the search.",
    )
    metric: Literal["ip", "l2"] = "ip"
    engine: Literal[
        "auto",
        "torch-cuda",
        "torch-cpu",
        "faiss-gpu",
        "faiss-flat",
        "faiss-ivf",
        "faiss-hnsw",
        "faiss-gpu-ivf",
        "faiss-cagra",
    ] = "auto"
    part_rows: int = Field(default=500_000, ge=1, description="Rows of the database that one task searches.")
    cell_rows: int = Field(
        default=2_000_000,
        ge=1,
        description="With more rows the graph is cut within cells (k-means) of at most so many, one task a cell.",
    )

    @field_validator("ranks", mode="before")
    @classmethod
    def _names_are_texts(cls, ranks: Any) -> Any:
        return {str(name): pair for name, pair in ranks.items()} if isinstance(ranks, dict) else ranks

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size % self.cluster_size:
            raise ValueError(
                f"`batch_size` must be a multiple of `cluster_size`, not {self.batch_size} with {self.cluster_size}"
            )
        check_ranks(self.ranks)
        if isinstance(self.ranks, dict) and self.datasets is None:
            raise ValueError("`ranks` by data set need `datasets`, the column that names them")
        if self.positive_margin is not None and self.metric == "l2":
            raise ValueError("`positive_margin` needs metric: ip, as a share of a distance has no such meaning")
        if self.cell_rows < self.cluster_size:
            raise ValueError("`cell_rows` must be at least `cluster_size`")
        return self

    @property
    def reasons(self) -> tuple[str, ...]:
        return ("last, short batch", "surplus, cannot be kept apart", "alone, no row to share a batch with")

    @property
    def pairs(self) -> tuple[str, ...]:
        """The columns of queries and positives, each once."""
        return tuple(dict.fromkeys((self.queries, self.positives)))

    def reads(self, made: Made) -> Mapping[str, Kind]:
        vectors = {name: VECTORS for name in self.pairs if name not in made.vectors}
        return {**vectors, **{name: IDS for name in (self.groups, self.labels, self.datasets) if name is not None}}

    def follow(self, made: Made, number: int) -> None:
        super().follow(made, number)
        for name in self.pairs:
            made.unused.pop(name, None)
        made.last = self.step

    def did(self, made: Made) -> str:
        return f"grouped into batches of {self.batch_size:,} (B3)"

    def check(self, label: str, schema: pa.Schema, made: Made) -> None:
        for name in self.pairs:
            if name not in made.vectors:
                require(label, name, schema, ANYTHING)
                if is_text(schema.field(name).type):
                    raise RecipeError(
                        f"{label} reads column {name!r}, which is text that no step before it embeds: "
                        "put an `embed` step before it, or name a column of vectors"
                    )
        super().check(label, schema, made)

    def run(self, run: StepRun) -> Outcome:
        # Here, so that only recipes that need torch wait for it.
        from curation.pipelines.steps.b3.stages import run_stages

        return run_stages(self, run)
