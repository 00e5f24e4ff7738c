"""``acquire``: the candidates with the highest scores, those above a threshold, or a stochastic draw.

One task draws from all rows that are still in: some 40 bytes a row there (120 with `per`), nothing in the driver.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AllowInfNan, Field, model_validator

from curation.errors import RecipeError, StepError
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.steps.base import Kind, Outcome, Step, StepRun, write_bad_rows
from curation.pipelines.steps.groups import VALUES, GroupBlock, groups_of
from curation.recipe.model import Made
from curation.sources.base import BadRow, Block, Source

if TYPE_CHECKING:
    from curation.selectors.acquisition import StochasticAcquisition

_FEWER = "lower `count`, or give a `fraction`"


class Acquire(Step):
    """Choose candidates by a score: the highest, those above a threshold, or a stochastic draw."""

    libraries: ClassVar[tuple[str, ...]] = ("numpy", "torch", "numba")

    step: Literal["acquire"] = "acquire"
    score: str | None = Field(default=None, description="The score column. Default: the latest one made.")
    kind: Literal["top-k", "threshold", "power", "softmax", "soft-rank"] = "top-k"
    beta: float = Field(default=1.0, ge=0, description="Coldness of a stochastic draw: 0 uniform, inf top-k.")
    count: int | None = Field(default=None, ge=1)
    fraction: float | None = Field(default=None, gt=0, le=1)
    shift: Annotated[float, AllowInfNan(False)] | Literal["lowest"] = Field(
        default=0.0,
        description="kind: power: added to all scores, which must be 0 or more then; or lowest: less the lowest score "
        "of the rows that are left.",
    )
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
        if self.shift != 0 and self.kind != "power":
            raise ValueError(f"`shift` goes with kind: power, not with kind: {self.kind}")
        return self

    @property
    def reasons(self) -> tuple[str, ...]:
        return ({"threshold": "below the threshold", "top-k": "below the cut"}.get(self.kind, "not drawn"),)

    def reads(self, made: Made) -> Mapping[str, Kind]:
        return {} if self.per is None else {self.per: VALUES}

    def follow(self, made: Made, number: int) -> None:
        super().follow(made, number)
        if not made.scores:
            raise ValueError("has no score to choose by: put an `align` or `score` step before it")
        if self.score is not None and self.score not in made.scores:
            raise ValueError(f"chooses by {self.score!r}, but the steps before it make only {', '.join(made.scores)}")
        if self.threshold is not None and self.threshold >= 0:
            made.signed.discard(self.chosen_by(made.scores))

    def check(self, label: str, schema: pa.Schema, made: Made) -> None:
        super().check(label, schema, made)
        score = self.chosen_by(made.scores)
        if self.kind == "power" and self.shift == 0 and made.stops and score in made.signed:
            raise RecipeError(
                f"{label} draws by power, which needs scores of 0 or more, and {score} may be negative, as it is of "
                "text that does not compress: give it `shift: lowest` or a number, or take kind: soft-rank"
            )

    def check_rows(self, label: str, rows: int) -> None:
        if self.per is None and self.count is not None and self.count > rows:
            raise StepError(f"{label} asks for {self.count} rows, but only {rows} are in the source: {_FEWER}")

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
        draw = Draw(
            self,
            run.number,
            run.seed,
            stage,
            score,
            run.scores[score],
            run.reason,
            run.code,
            run.blocks,
            run.source,
            run.quarantine,
        )

        def groups() -> None:
            if self.per is not None:
                grouping = GroupBlock(run.source, stage, self.per)
                run.stages.each(run.label, stage, grouping, run.blocks, resources=self.resources)

        done = run.stages.finish(run.label, stage, groups, draw, self.resources)
        cut = {"score": score, "kind": self.kind, "per": self.per, "threshold": self.threshold, "beta": self.beta}
        return Outcome.of(
            stage,
            done,
            dropped={self.reasons[0]: run.rows_in - done["bad"] - done["rows_out"]},
            bad_rows=done["bad"],
            bad=[stage],
            details={**cut, **done["details"]},
            pick=stage.folder / "pick.npy",
        )


@dataclass(frozen=True)
class Draw:
    """Choose among the rows that are still in."""

    step: Acquire
    number: int
    seed: int
    stage: Stage
    name: str
    scores: Stage
    before: Path
    code: int
    blocks: Sequence[Block]
    source: Source
    quarantine: bool

    def __call__(self) -> None:
        reason = np.load(self.before)
        inside, scores = np.flatnonzero(reason == 0), self._scores(reason == 0)
        method = self._method(scores)
        usable = np.ones(len(scores), bool) if method is None else ~method.refused(scores)
        bad = inside[~usable]
        if method is not None:
            self._set_aside(bad, scores[~usable], 0.0 - float(method.shift))
        reason[bad] = 1
        inside, scores = inside[usable], scores[usable]
        picks = inside[self._choose(scores, method, usable)]
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
        if self.step.kind == "power":
            assert method is not None
            details["shift"] = float(method.shift)
        self.stage.finish({"rows_out": len(picks), "bad": len(bad), "details": details})

    def _method(self, scores: npt.NDArray[np.float64]) -> "StochasticAcquisition | None":
        """How it draws, the shift a number; None for a threshold."""
        step = self.step
        if step.kind == "threshold":
            return None
        # Here, so that only the worker that draws loads torch.
        from curation.selectors.acquisition import StochasticAcquisition

        if step.kind == "top-k":
            return StochasticAcquisition(kind="softmax", beta=float("inf"))
        return StochasticAcquisition(kind=step.kind, beta=step.beta, shift=step.shift).settled(scores)

    def _set_aside(self, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], least: float) -> None:
        """Write down the rows whose scores are below the least that can be drawn by, or stop at the first of them."""
        needs = f"step {self.number} (acquire) draws by power, which needs {least:g} or more"
        for block in self.blocks:
            low, high = np.searchsorted(rows, [block.start, block.start + block.rows])
            why = [
                f"its {self.name} is {score:.6g}, and {needs}: give the step a higher `shift`, or `shift: lowest`"
                for score in scores[low:high].tolist()
            ]
            listed = [
                BadRow(row, *self.source.locate(row), reason)
                for row, reason in zip(rows[low:high].tolist(), why, strict=True)
            ]
            if listed:
                write_bad_rows(self.stage, block, listed, quarantine=self.quarantine)

    def _scores(self, inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        scores = np.empty(int(np.count_nonzero(inside)))
        start = 0
        for block in self.blocks:
            wanted = inside[block.start : block.start + block.rows]
            count = int(np.count_nonzero(wanted))
            scores[start : start + count] = np.load(self.scores.piece(block.number))[wanted]
            start += count
        return scores

    def _choose(
        self,
        scores: npt.NDArray[np.float64],
        method: "StochasticAcquisition | None",
        usable: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.int64]:
        step = self.step
        if method is None:
            assert step.threshold is not None
            above = np.flatnonzero(scores >= step.threshold)
            return above[np.argsort(-scores[above], kind="stable")]
        from curation.selectors.acquisition import count_of, select_per_group

        seed = (self.seed, self.number)
        if step.per is not None:
            groups = groups_of(self.stage, self.blocks, np.load(self.before) == 0)[usable]
            return select_per_group(method, scores, groups, count=step.count, fraction=step.fraction, seed=seed).indices
        count = step.count if step.fraction is None else count_of(step.fraction, len(scores))
        assert count is not None
        if count > len(scores):
            raise StepError(
                f"step {self.number} (acquire) asks for {count} rows, but only {len(scores)} are left: {_FEWER}"
            )
        return method.select(scores, count, seed=seed).indices


def _range_of(scores: npt.NDArray[np.float64]) -> str:
    return f"the scores run from {scores.min():.6g} to {scores.max():.6g}" if len(scores) else "none was left"
