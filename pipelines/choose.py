"""Decisions that need all rows at once. Each runs as one task, so that its arrays are not the driver's.

Memory: some 40 bytes a row in that task, nothing in the driver.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.errors import StepError
from curation.pipelines.blocks import save
from curation.pipelines.engine.workspace import Stage
from curation.recipe import Acquire, Dedup, MineB3, Step
from curation.sources.base import Block

HASHES_AT_A_TIME = 4_000_000


@dataclass(frozen=True)
class MarkBad:
    """Merge the bad rows of a stage into the reasons."""

    stage: Stage
    before: Path | None
    rows: int

    def __call__(self) -> None:
        reason = np.zeros(self.rows, np.int8) if self.before is None else np.load(self.before)
        bad = [_bad_positions(path) for path in sorted(self.stage.folder.glob("[0-9]*.jsonl"))]
        reason[np.concatenate([np.empty(0, np.int64), *bad])] = 1
        save(self.stage.folder / "reason.npy", reason)
        left = int(np.count_nonzero(reason == 0))
        if left == 0:
            raise StepError(f"no row is left: all {self.rows} are bad (see the first in the source)")
        self.stage.finish({"rows_out": left, "bad": sum(map(len, bad))})


@dataclass(frozen=True)
class DropDuplicates:
    """Keep the first of rows with one hash. Hashes are taken in ranges, so that memory is bounded."""

    stage: Stage
    before: Path
    code: int
    blocks: Sequence[Block]

    def __call__(self) -> None:
        reason = np.load(self.before)
        rows = len(reason)
        ranges = max(1, -(-rows // HASHES_AT_A_TIME))
        pairs = [np.empty((0, 2), np.int64)]
        for number in range(ranges):
            hashes, positions = self._in_range(reason == 0, number, ranges)
            order = np.lexsort((positions, hashes[:, 1], hashes[:, 0]))
            hashes, positions = hashes[order], positions[order]
            first = np.ones(len(positions), bool)
            first[1:] = np.any(hashes[1:] != hashes[:-1], axis=1)
            leaders = positions[first][np.cumsum(first) - 1] if len(positions) else positions
            pairs.append(np.stack([positions[~first], leaders[~first]], axis=1))
        duplicates = np.concatenate(pairs)
        duplicates = duplicates[np.argsort(duplicates[:, 0])]
        reason[duplicates[:, 0]] = self.code
        save(self.stage.folder / "duplicates.npy", duplicates)
        save(self.stage.folder / "reason.npy", reason)
        self.stage.finish({"rows_out": int(np.count_nonzero(reason == 0)), "details": {}})

    def _in_range(
        self, inside: npt.NDArray[np.bool_], number: int, ranges: int
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        hashes, positions = [], []
        for block in self.blocks:
            each = np.load(self.stage.piece(block.number), mmap_mode="r")
            wanted = inside[block.start : block.start + block.rows] & (each[:, 0] % np.uint64(ranges) == number)
            hashes.append(each[wanted])
            positions.append(block.start + np.flatnonzero(wanted))
        return np.concatenate(hashes), np.concatenate(positions)


@dataclass(frozen=True)
class Choose:
    """Apply an ``acquire`` step to the rows that are still in."""

    step: Acquire
    number: int
    seed: int
    stage: Stage
    score: str
    scores: Stage
    before: Path
    blocks: Sequence[Block]

    def __call__(self) -> None:
        reason = np.load(self.before)
        inside = np.flatnonzero(reason == 0)
        scores = self._scores(reason == 0)
        picks = inside[self._choose(scores)]
        if len(picks) == 0:
            raise StepError(f"step {self.number} (acquire) keeps none of {len(inside)} rows: {self._why(scores)}")
        reason[inside] = self.number + 1
        reason[picks] = 0
        dropped = scores[reason[inside] != 0]
        kept = scores[reason[inside] == 0]
        save(self.stage.folder / "pick.npy", picks)
        save(self.stage.folder / "reason.npy", reason)
        details = {
            "score": self.score,
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
        if step.per is not None:
            return select_per_group(
                method, scores, self._groups(), count=step.count, fraction=step.fraction, seed=(self.seed, self.number)
            ).indices
        count = step.count if step.fraction is None else count_of(step.fraction, len(scores))
        assert count is not None
        if count > len(scores):
            raise StepError(
                f"step {self.number} (acquire) asks for {count} rows, but only {len(scores)} are left: "
                "lower `count`, or give a `fraction`"
            )
        return method.select(scores, count, seed=(self.seed, self.number)).indices

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

    def _why(self, scores: npt.NDArray[np.float64]) -> str:
        return f"the scores run from {scores.min():.6g} to {scores.max():.6g}" if len(scores) else "none was left"


def _bad_positions(path: Path) -> npt.NDArray[np.int64]:
    with path.open(encoding="utf-8") as file:
        return np.array([json.loads(line)["index"] for line in file], np.int64)


def describe(step: Step, number: int) -> str:
    """The reason that stands in ``decisions.arrow`` for a row that this step dropped."""
    if isinstance(step, Dedup):
        return f"{number}. dedup: same {step.column} as an earlier row"
    if isinstance(step, MineB3):
        return f"{number}. b3: last, short batch"
    if isinstance(step, Acquire):
        why = {"threshold": "below the threshold", "top-k": "below the cut"}.get(step.kind, "not drawn")
        return f"{number}. acquire: {why}"
    return f"{number}. {step.step}"
