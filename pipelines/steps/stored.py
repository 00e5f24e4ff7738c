"""Verdicts of an earlier run, read off its ``decisions.arrow`` instead of being made again."""

import json
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.dataset.manifest import BAD_ROW, QUARANTINE
from curation.errors import SourceError
from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.steps.base import Outcome, Step, StepRun, reason_in_full, write_bad_rows
from curation.pipelines.steps.block import NOT_FINITE, conclude, score_stages
from curation.recipe.model import Resources
from curation.sources.base import BadRow, Block, Source


def replay(step: Step, run: StepRun, decisions: Path) -> Outcome:
    """What a step said of all rows in an earlier run on the same blocks, for a step that adds scores."""
    # What judged them may have asked for a GPU.
    step = step.model_copy(update={"resources": Resources()})
    stage = run.stage(step.step)
    reasons = tuple(reason_in_full(run.number, step, words) for words in step.reasons)
    task = ReplayBlock(
        run.label, run.source, stage, score_stages(step, run), run.reason, decisions, reasons, run.quarantine
    )
    return conclude(
        step, run, stage, lambda: run.stages.each(run.label, stage, task, run.blocks, "jsonl", resources=step.resources)
    )


@dataclass(frozen=True)
class ReplayBlock:
    """The scores and reasons of a block, as the earlier run decided.

    Raises:
        SourceError: a row is here that the step did not get in the earlier run.
    """

    label: str
    source: Source
    stage: Stage
    scores: Mapping[str, Stage]
    reason: Path
    decisions: Path
    reasons: tuple[str, ...]
    quarantine: bool

    def __call__(self, block: Block) -> None:
        inside = np.load(self.reason, mmap_mode="r")[block.start : block.start + block.rows] == 0
        bad: dict[int, str] = {}
        with pa.memory_map(str(self.decisions)) as file:
            decided = _rows_of(pa.ipc.open_file(file), block)
            for name, stage in self.scores.items():
                scores = np.where(inside, decided[name].to_numpy(zero_copy_only=False), np.nan)
                for row in np.flatnonzero(inside & ~np.isfinite(scores)).tolist():
                    bad.setdefault(row, NOT_FINITE)
                save(stage.piece(block.number), scores)
            if self.reasons:
                codes = pc.index_in(decided["reason"].cast(pa.string()), pa.array(self.reasons)).fill_null(-1)
                save(self.stage.piece(block.number, "codes"), np.where(inside, codes.to_numpy() + 1, 0).astype(np.int8))
            why = decided["reason"].cast(pa.string()).to_numpy(zero_copy_only=False)
        if bad:
            self._check_known(block, [row for row in bad if why[row] != BAD_ROW])
            bad |= self._reasons_of(block, bad)
        listed = [BadRow(block.start + row, *self.source.locate(block.start + row), why) for row, why in bad.items()]
        write_bad_rows(self.stage, block, listed, quarantine=self.quarantine)

    def _check_known(self, block: Block, rows: Sequence[int]) -> None:
        if rows:
            file, row = self.source.locate(block.start + min(rows))
            raise SourceError(
                f"{file}, row {row}: has no stored score, as it did not reach {self.label}, and now it does: a step "
                "before that drops other rows than it did. Run the recipe again instead"
            )

    def _reasons_of(self, block: Block, bad: Collection[int]) -> dict[int, str]:
        """Why rows of a block were set aside, as the earlier run wrote it down."""
        path = self.decisions.with_name(QUARANTINE)
        reasons = _quarantined(path, path.stat().st_mtime_ns) if path.exists() else {}
        return {row: reasons[block.start + row] for row in bad if block.start + row in reasons}


def _rows_of(decisions: pa.RecordBatchFileReader, block: Block) -> pa.Table:
    """The rows of a block, however the earlier run had cut its own."""

    def start(number: int) -> int:
        first: int = decisions.get_batch(number)["index"][0].as_py()
        return first

    number = bisect_right(range(decisions.num_record_batches), block.start, key=start) - 1
    rows = [decisions.get_batch(number).slice(block.start - start(number))]
    while sum(map(len, rows)) < block.rows:
        number += 1
        rows.append(decisions.get_batch(number))
    return pa.Table.from_batches(rows).slice(0, block.rows)


@lru_cache(maxsize=1)
def _quarantined(path: Path, stamp: int) -> dict[int, str]:
    """Reasons by position; read once a worker while the file's ``stamp`` stays, and held there."""
    with path.open(encoding="utf-8") as file:
        return {entry["index"]: entry["reason"] for entry in map(json.loads, file)}
