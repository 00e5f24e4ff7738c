"""Stages of a run: each is brought to its end once, and what stands on disk is not done again."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from curation.pipelines.engine.pool import Piece
from curation.pipelines.engine.ray import run_one, run_pieces
from curation.pipelines.engine.workspace import Stage
from curation.progress import Progress
from curation.recipe.model import Resources


class Stages:
    """Runs pieces and merges of a run, and keeps the seconds of each stage by its label."""

    def __init__(self, progress: Progress, workers: int | None) -> None:
        self.progress = progress
        self.workers = workers
        self.seconds: dict[str, float] = {}
        self._held = ""

    def finish(
        self,
        label: str,
        stage: Stage,
        each: Callable[[], None],
        merge: Callable[[], None] | None = None,
        resources: Resources | None = None,
    ) -> dict[str, Any]:
        """Bring a stage to its end, unless an earlier run did; returns what it says of itself.

        Args:
            label: names the stage in progress, errors and the manifest.
            stage: its folder.
            each: does its pieces.
            merge: the task that ends it and says so in the folder; without one it is then finished.
            resources: what that task asks of Ray; it is given no GPU.
        """
        start = time.perf_counter()
        if stage.done is not None:
            self._held = label
        else:
            if self._held:
                self.progress.note(f"goes on after {self._held}, which an interrupted run has finished")
                self._held = ""
            each()
            if merge is None:
                stage.finish({})
            else:
                run_one(merge, resources=None if resources is None else resources.model_copy(update={"gpus": 0.0}))
        done = stage.done
        assert done is not None
        if "seconds" not in done:
            done["seconds"] = round(time.perf_counter() - start, 3)
            stage.finish(done)
        self.seconds[label] = done["seconds"]
        return done

    def each(
        self,
        label: str,
        stage: Stage,
        task: Callable[[Any], None],
        pieces: Sequence[Piece],
        suffix: str = "npy",
        *,
        resources: Resources | None = None,
        actors: bool = False,
    ) -> None:
        """Run a task on the pieces that have no file of this suffix in the stage yet."""
        finished = stage.finished(suffix)
        remaining = [piece for piece in pieces if piece.number not in finished]
        rows = sum(piece.rows for piece in pieces)
        self.progress.begin(label, rows, rows - sum(piece.rows for piece in remaining))
        run_pieces(
            task,
            remaining,
            label=label,
            progress=self.progress,
            resources=resources,
            workers=self.workers,
            actors=actors,
        )
        self.progress.end()
