"""Steps that judge rows one block at a time: most steps, and the easiest to write."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.dataset.manifest import ReportTable
from curation.errors import CurationError, StepError
from curation.files import write_text
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.steps.base import Outcome, Step, StepRun, bad_positions, finish, write_bad_rows
from curation.sources.base import BadRow, Block, Source

NOT_FINITE = "the score is not a finite number"


@dataclass(frozen=True)
class Verdict:
    """What a step says of some rows.

    Args:
        scores: float64[rows] of each score column that the step adds.
        dropped: int[rows]: 0 stays, i goes for the i-th of the step's reasons; None: all stay.
        bad: why a row cannot be used, by its place among these rows.
        counts: what is worth counting; summed over all blocks, it stands in the manifest and the report.
    """

    scores: Mapping[str, npt.ArrayLike] = field(default_factory=dict)
    dropped: npt.ArrayLike | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


class BlockStep(Step):
    """A step that judges the rows of a block by themselves: it scores them, drops them, or finds them bad."""

    @property
    def title(self) -> str:
        """What errors call it."""
        return self.step

    def judge(self, rows: pa.Table) -> Verdict:
        """Judge some rows. Runs in a worker; the same rows must get the same verdict.

        Args:
            rows: those of a block that are still in, with the columns that :meth:`reads` names (all of the source's
                where it names none).
        """
        raise NotImplementedError(f"{type(self).__name__} lacks `judge`")

    def prepare(self, run: StepRun) -> "BlockStep":
        """What is sent to the workers: this step, or one that carries what was read once beforehand."""
        return self

    def run(self, run: StepRun) -> Outcome:
        """Judge all blocks, one task each, and merge the verdicts."""
        stage = run.stage(self.step)

        def work() -> None:
            scores, step = score_stages(self, run), self.prepare(run)
            columns = tuple(self.reads(run.made)) or None
            judge = JudgeBlock(run.source, stage, scores, run.reason, columns, step, run.quarantine)
            run.stages.each(run.label, stage, judge, run.blocks, "jsonl", resources=self.resources)

        return conclude(self, run, stage, work)

    def tables(self, outcome: Outcome) -> list[ReportTable]:
        """What was counted, where anything was."""
        counts = outcome.details.get("counts")
        if not counts:
            return []
        rows = [[name, count] for name, count in counts.items()]
        return [ReportTable(title=f"Counted by {self.step}", columns=["what", "#count"], rows=rows)]


def score_stages(step: Step, run: StepRun) -> dict[str, Stage]:
    """Where each score of a step is kept: the first in the step's own folder."""
    # By number, too: names may differ in nothing but what a folder's name leaves out.
    folders = [step.step, *(f"{step.step}-{number}-{name}" for number, name in enumerate(step.scores[1:], 2))]
    return {name: run.stage(folder) for name, folder in zip(step.scores, folders, strict=False)}


def conclude(step: Step, run: StepRun, stage: Stage, work: Any) -> Outcome:
    """Bring a stage of verdicts to its end."""
    merge = MergeVerdicts(stage, run.reason, run.blocks, run.code, len(step.reasons))
    done = run.stages.finish(run.label, stage, work, merge, step.resources)
    return Outcome.of(
        stage,
        done,
        dropped=dict(zip(step.reasons, done["dropped"], strict=True)),
        bad_rows=done["bad"],
        details={"counts": done["counts"]} if done["counts"] else {},
        bad=[stage],
        scores=score_stages(step, run),
    )


@dataclass(frozen=True)
class JudgeBlock:
    """Judge the rows of a block that are still in.

    For each score a piece float64[rows], NaN for rows that were out before; the codes int8[rows] where the step has
    reasons; and last the bad rows, which say that the block is done.
    """

    source: Source
    stage: Stage
    scores: Mapping[str, Stage]
    reason: Path
    columns: tuple[str, ...] | None
    step: BlockStep
    quarantine: bool

    def __call__(self, block: Block) -> None:
        inside = np.load(self.reason, mmap_mode="r")[block.start : block.start + block.rows] == 0
        verdict = Verdict()
        if inside.any():
            table, _ = self.source.read(block, self.columns)
            verdict = self._judge(block, table.filter(pa.array(inside)))
        rows = np.flatnonzero(inside)
        bad = dict(verdict.bad)
        made: dict[str, npt.NDArray[np.float64]] = {}
        for name in self.scores:
            made[name] = scores = np.full(block.rows, np.nan)
            if len(rows):
                scores[rows] = _array(
                    verdict.scores.get(name), np.float64, len(rows), f"{self.step.title}: score {name!r}"
                )
            for row in np.flatnonzero(~np.isfinite(scores[rows])).tolist():
                bad.setdefault(row, NOT_FINITE)
        for name, stage in self.scores.items():
            # A bad row has no score: that is how a later cut of the same scores knows it (see `stored.py`).
            made[name][rows[list(bad)]] = np.nan
            save(stage.piece(block.number), made[name])
        if self.step.reasons:
            codes = np.zeros(block.rows, np.int8)
            if len(rows) and verdict.dropped is not None:
                codes[rows] = self._codes(verdict.dropped, len(rows))
            save(self.stage.piece(block.number, "codes"), codes)
        if verdict.counts:
            write_text(self.stage.piece(block.number, "counts"), json.dumps(dict(verdict.counts)))
        positions = {block.start + int(rows[row]): why for row, why in bad.items()}
        listed = [BadRow(position, *self.source.locate(position), why) for position, why in positions.items()]
        write_bad_rows(self.stage, block, listed, quarantine=self.quarantine)

    def _judge(self, block: Block, table: pa.Table) -> Verdict:
        try:
            verdict = self.step.judge(table)
        except CurationError:
            raise
        except Exception as error:
            raise StepError(
                f"{self.step.title} failed on rows {block.start} to {block.start + block.rows - 1}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(verdict, Verdict):
            raise StepError(f"{self.step.title}: judge returned {type(verdict).__name__}, not a Verdict")
        return verdict

    def _codes(self, dropped: npt.ArrayLike, rows: int) -> npt.NDArray[np.int8]:
        given = _array(dropped, None, rows, f"{self.step.title}: `dropped`")
        with np.errstate(invalid="ignore"):
            codes: npt.NDArray[np.int8] = given.astype(np.int8)
        # Against what was given: 257 and 0.5 are 1 and 0 as int8.
        wrong = given[(codes != given) | (codes < 0) | (codes > len(self.step.reasons))]
        if len(wrong):
            raise StepError(
                f"{self.step.title}: `dropped` holds {wrong.min()} to {wrong.max()}, but the step has "
                f"{len(self.step.reasons)} reasons: 0 stays, i goes for the i-th"
            )
        return codes


def _array(values: Any, kind: Any, rows: int, what: str) -> npt.NDArray[Any]:
    array = np.asarray(values, kind) if values is not None else np.empty(0, kind)
    if array.shape != (rows,):
        raise StepError(f"{what} has shape {array.shape} for {rows} rows: it must be one value a row")
    return array


@dataclass(frozen=True)
class MergeVerdicts:
    """Merge the verdicts on all blocks into the reasons. Two bytes a row."""

    stage: Stage
    before: Path
    blocks: Sequence[Block]
    code: int
    reasons: int

    def __call__(self) -> None:
        reason = np.load(self.before)
        bad = bad_positions(self.stage)
        reason[bad] = 1
        dropped = np.zeros(self.reasons + 1, np.int64)
        counts: dict[str, int] = {}
        for block in self.blocks:
            if self.reasons:
                part = reason[block.start : block.start + block.rows]
                codes = np.where(part == 0, np.load(self.stage.piece(block.number, "codes")), 0)
                part[codes > 0] = codes[codes > 0] + self.code - 1
                dropped += np.bincount(codes, minlength=self.reasons + 1)
            path = self.stage.piece(block.number, "counts")
            if path.exists():
                for name, count in json.loads(path.read_text(encoding="utf-8")).items():
                    counts[name] = counts.get(name, 0) + count
        finish(self.stage, reason, {"bad": len(bad), "dropped": dropped[1:].tolist(), "counts": counts})
