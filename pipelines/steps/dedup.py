"""``dedup``: the first of rows whose text is the same.

Texts are hashed block by block (XXH3-128); one task compares the hashes, a range of them at a time, so that its memory
is bounded: some 40 bytes a row.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from curation.pipelines.engine.workspace import Stage, save
from curation.pipelines.steps.base import TEXT, Kind, Outcome, Step, StepRun, finish
from curation.recipe.model import Made
from curation.sources.base import Block, Source

HASHES_AT_A_TIME = 4_000_000


class Dedup(Step):
    """Keep the first of rows whose text is the same."""

    step: Literal["dedup"] = "dedup"
    column: str = "text"

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"same {self.column} as an earlier row",)

    @property
    def draws(self) -> bool:
        return False

    def reads(self, made: Made) -> Mapping[str, Kind]:
        return {self.column: TEXT}

    def did(self, made: Made) -> str:
        return f"freed of repeated {self.column}"

    def run(self, run: StepRun) -> Outcome:
        stage = run.stage(self.step)
        hashing = HashBlock(run.source, stage, self.column)
        done = run.stages.finish(
            run.label,
            stage,
            lambda: run.stages.each(run.label, stage, hashing, run.blocks, resources=self.resources),
            DropDuplicates(stage, run.reason, run.code, run.blocks),
            self.resources,
        )
        return Outcome.of(
            stage,
            done,
            dropped={self.reasons[0]: run.rows_in - done["rows_out"]},
            duplicates=stage.folder / "duplicates.npy",
        )


@dataclass(frozen=True)
class HashBlock:
    """XXH3-128 of each text of a block, as uint64[rows, 2]."""

    source: Source
    stage: Stage
    column: str

    def __call__(self, block: Block) -> None:
        table, _ = self.source.read(block, (self.column,))
        texts: Iterable[bytes | None] = table[self.column].cast(pa.large_binary()).to_pylist()
        digests = b"".join(xxhash.xxh3_128_digest(text or b"") for text in texts)
        save(self.stage.piece(block.number), np.frombuffer(digests, np.uint64).reshape(-1, 2))


@dataclass(frozen=True)
class DropDuplicates:
    """Keep the first of rows with one hash."""

    stage: Stage
    before: Path
    code: int
    blocks: Sequence[Block]

    def __call__(self) -> None:
        reason = np.load(self.before)
        ranges = max(1, -(-len(reason) // HASHES_AT_A_TIME))
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
        finish(self.stage, reason, {})

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
