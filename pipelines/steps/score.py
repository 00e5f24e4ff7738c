"""``score``: a score from a column of the source, or from a function of a block of rows."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from curation.errors import StepError
from curation.pipelines.engine.fingerprints import paths
from curation.pipelines.engine.functions import import_path, load_function
from curation.pipelines.steps.base import NUMBER, Kind
from curation.pipelines.steps.block import BlockStep, Verdict
from curation.recipe.model import Made


class Score(BlockStep):
    """A score from a column of the source, or from a function of a block of rows."""

    step: Literal["score"] = "score"
    name: str = Field(default="score", description="The score column that the step makes.")
    column: str | None = Field(default=None, description="A numeric column of the source.")
    function: str | None = Field(
        default=None,
        description="module:function, called with a pyarrow.Table of a block's rows (and `parameters`); returns "
        "one float for each row.",
        pattern=r"^[\w.]+:[\w.]+$",
    )
    parameters: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.column is None) == (self.function is None):
            raise ValueError("give either `column` or `function`")
        if self.parameters and self.function is None:
            raise ValueError("`parameters` go with `function`")
        return self

    @property
    def scores(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def functions(self) -> tuple[str, ...]:
        return super().functions + (() if self.function is None else (self.function,))

    def depends(self) -> dict[str, str]:
        """Also the files and folders that a parameter of the function names."""
        return super().depends() | paths(self.parameters)

    @property
    def title(self) -> str:
        return f"score: {self.function}" if self.function else "score"

    @property
    def draws(self) -> bool:
        return False

    def reads(self, made: Made) -> Mapping[str, Kind]:
        return {} if self.column is None else {self.column: NUMBER}

    def did(self, made: Made) -> str:
        return f"scored by {self.column or self.function}"

    def check(self, label: str, schema: pa.Schema, made: Made) -> None:
        super().check(label, schema, made)
        if self.function is not None:
            load_function(self.function, import_path())

    def judge(self, rows: pa.Table) -> Verdict:
        if self.column is not None:
            return Verdict({self.name: rows[self.column].cast(pa.float64(), safe=False).to_numpy()})
        assert self.function is not None
        scores = np.asarray(load_function(self.function)(rows, **self.parameters), np.float64)
        if scores.shape != (len(rows),):
            raise StepError(
                f"score: {self.function} returned shape {scores.shape} for {len(rows)} rows: it must return one "
                "float for each row"
            )
        return Verdict({self.name: scores})
