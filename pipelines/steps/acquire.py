"""``acquire``: the candidates with the highest scores, those above a threshold, or a stochastic draw.

One task draws from all rows that are still in: some 40 bytes a row there, nothing in the driver.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from curation.errors import StepError
from curation.files import atomic
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.steps.base import ANYTHING, Kind, Outcome, Step, StepRun
from curation.recipe.model import Made
from curation.sources.base import Block, Source


class Acquire(Step):
    """Choose candidates by a score: the highest, those above a threshold, or a stochastic draw."""

    libraries: ClassVar[tuple[str, ...]] = ("numpy", "torch", "numba")

    step: Literal["acquire"] = "acquire"
    score: str | None = Field(default=None, description="The score column. Default: the latest one made.")
    kind: Literal["top-k", "threshold", "power", "softmax", "soft-rank"] = "top-k"
    beta: float = Field(default=1.0, ge=0, description="Coldness of a stochastic draw: 0 uniform, inf top-k.")
    count: int | None = Field(default=None, ge=1)
    fraction: float | None = Field(default=None, gt=0, le=1)
    threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="Keep scores at or above it (kind: threshold)."
    )
    per: str | None = Field(default=None, description="Choose `count` or `fraction` in each value of this column.")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.kind == "threshold":
            if self.threshold is None or self.count is not None or self.fraction is not None:
                raise ValueError("kind: threshold takes `threshold`, and neither `count` nor `fraction`")
            if self.per is not None:
                raise ValueError("kind: threshold is the same in every group: leave out `per`")
        elif self.threshold is not None:
            raise ValueError(f"`threshold` goes with kind: threshold, not with kind: {self.kind}")
        elif (self.count is None) == (self.fraction is None):
            raise ValueError("give either `count` or `fraction`")
        return self

    @property
    def reasons(self) -> tuple[str, ...]:
        return ({"threshold": "below the threshold", "top-k": "below the cut"}.get(self.kind, "not drawn"),)

    def reads(self, made: Made) -> Mapping[str, Kind]:
        return {} if self.per is None else {self.per: ANYTHING}

    def follow(self, made: Made, number: int) -> None:
        super().follow(made, number)
        if not made.scores:
            raise ValueError("has no score to choose by: put an `align` or `score` step before it")
        if self.score is not None and self.score not in made.scores:
            raise ValueError(f"chooses by {self.score!r}, but the steps before it make only {', '.join(made.scores)}")

    def did(self, made: Made) -> str:
        size = f"{self.count:,}" if self.count is not None else f"{100 * (self.fraction or 0):g} %"
        where = f" in each {self.per}" if self.per else ""
        score = self.chosen_by(made.scores)
        if self.kind == "threshold":
            return f"cut to {score} of at least {self.threshold:g}"
        if self.kind == "top-k":
            return f"cut to the {size} with the highest {score}{where}"
        return f"cut to a draw of {size} by {score}{where} ({self.kind}, beta {self.beta:g})"

    def chosen_by(self, scores: Mapping[str, Any]) -> str:
        """The score it chooses by, of those that the steps before it made."""
        return self.score or next(reversed(list(scores)))

    def run(self, run: StepRun) -> Outcome:
        stage, score = run.stage(self.step), self.chosen_by(run.scores)
        draw = Draw(self, run.number, run.seed, stage, run.scores[score], run.reason, run.code, run.blocks)

        def groups() -> None:
            if self.per is not None:
                grouping = GroupBlock(run.source, stage, self.per)
                run.stages.each(run.label, stage, grouping, run.blocks, "arrow", resources=self.resources)

        done = run.stages.finish(run.label, stage, groups, draw)
        cut = {"score": score, "kind": self.kind, "per": self.per, "threshold": self.threshold, "beta": self.beta}
        return Outcome.of(
            stage,
            done,
            dropped={self.reasons[0]: run.rows_in - done["rows_out"]},
            details={**cut, **done["details"]},
            pick=stage.folder / "pick.npy",
        )


@dataclass(frozen=True)
class GroupBlock:
    """The values of a column in a block."""

    source: Source
    stage: Stage
    column: str

    def __call__(self, block: Block) -> None:
        table, _ = self.source.read(block, (self.column,))
        values = table.select([self.column])
        with atomic(self.stage.piece(block.number, "arrow")) as path, pa.ipc.new_file(str(path), values.schema) as file:
            file.write_table(values)


@dataclass(frozen=True)
class Draw:
    """Choose among the rows that are still in."""

    step: Acquire
    number: int
    seed: int
    stage: Stage
    scores: Stage
    before: Path
    code: int
    blocks: Sequence[Block]

    def __call__(self) -> None:
        reason = np.load(self.before)
        inside = np.flatnonzero(reason == 0)
        scores = self._scores(reason == 0)
        picks = inside[self._choose(scores)]
        if len(picks) == 0:
            raise StepError(f"step {self.number} (acquire) keeps none of {len(inside)} rows: {_range_of(scores)}")
        reason[inside] = self.code
        reason[picks] = 0
        dropped = scores[reason[inside] != 0]
        kept = scores[reason[inside] == 0]
        save(self.stage.folder / "pick.npy", picks)
        save(self.stage.folder / "reason.npy", reason)
        details = {
            "lowest_kept": float(kept.min()),
            "highest_dropped": float(dropped.max()) if len(dropped) else None,
            "mean_before": float(scores.mean()),
            "mean_after": float(kept.mean()),
        }
        self.stage.finish({"rows_out": len(picks), "details": details})

    def _scores(self, inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        scores = np.empty(int(np.count_nonzero(inside)))
        start = 0
        for block in self.blocks:
            wanted = inside[block.start : block.start + block.rows]
            count = int(np.count_nonzero(wanted))
            scores[start : start + count] = np.load(self.scores.piece(block.number))[wanted]
            start += count
        return scores

    def _choose(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        # Here, so that only the worker that draws loads torch.
        from curation.selectors.acquisition import StochasticAcquisition, count_of, select_per_group

        step = self.step
        if step.kind == "threshold":
            assert step.threshold is not None
            above = np.flatnonzero(scores >= step.threshold)
            return above[np.argsort(-scores[above], kind="stable")]
        method = (
            StochasticAcquisition(kind="softmax", beta=float("inf"))
            if step.kind == "top-k"
            else StochasticAcquisition(kind=step.kind, beta=step.beta)
        )
        seed = (self.seed, self.number)
        if step.per is not None:
            groups = self._groups()
            return select_per_group(method, scores, groups, count=step.count, fraction=step.fraction, seed=seed).indices
        count = step.count if step.fraction is None else count_of(step.fraction, len(scores))
        assert count is not None
        if count > len(scores):
            raise StepError(
                f"step {self.number} (acquire) asks for {count} rows, but only {len(scores)} are left: "
                "lower `count`, or give a `fraction`"
            )
        return method.select(scores, count, seed=seed).indices

    def _groups(self) -> npt.NDArray[np.int64]:
        inside = np.load(self.before) == 0
        tables = []
        for block in self.blocks:
            with pa.memory_map(str(self.stage.piece(block.number, "arrow"))) as file:
                wanted = pa.array(inside[block.start : block.start + block.rows])
                tables.append(pa.ipc.open_file(file).read_all().filter(wanted))
        column = pa.concat_tables(tables).column(0).combine_chunks()
        codes: npt.NDArray[np.int64] = column.dictionary_encode(null_encoding="encode").indices.to_numpy()
        return codes.astype(np.int64)


def _range_of(scores: npt.NDArray[np.float64]) -> str:
    return f"the scores run from {scores.min():.6g} to {scores.max():.6g}" if len(scores) else "none was left"
