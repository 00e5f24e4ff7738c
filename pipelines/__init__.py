"""Pipelines: recipes as Ray jobs that write curated datasets.

::

    from curation.pipelines import Acquire, Align, Dedup, run

    steps = [Dedup(), Align(targets=["def add(a, b): return a + b"]), Acquire(fraction=0.1)]
    run(steps, source=table, out="out/")
"""

from typing import TYPE_CHECKING

from curation.lazy import face

if TYPE_CHECKING:
    from curation.pipelines.job import reselect as reselect
    from curation.pipelines.job import run as run
    from curation.pipelines.steps import STEPS as STEPS
    from curation.pipelines.steps.acquire import Acquire as Acquire
    from curation.pipelines.steps.align import Align as Align
    from curation.pipelines.steps.b3 import MineB3 as MineB3
    from curation.pipelines.steps.base import ANYTHING as ANYTHING
    from curation.pipelines.steps.base import NUMBER as NUMBER
    from curation.pipelines.steps.base import TEXT as TEXT
    from curation.pipelines.steps.base import Kind as Kind
    from curation.pipelines.steps.base import Outcome as Outcome
    from curation.pipelines.steps.base import Step as Step
    from curation.pipelines.steps.base import StepRun as StepRun
    from curation.pipelines.steps.block import BlockStep as BlockStep
    from curation.pipelines.steps.block import Verdict as Verdict
    from curation.pipelines.steps.dedup import Dedup as Dedup
    from curation.pipelines.steps.embed import Embed as Embed
    from curation.pipelines.steps.score import Score as Score
    from curation.recipe.model import FileSource as FileSource
    from curation.recipe.model import Output as Output
    from curation.recipe.model import Recipe as Recipe
    from curation.recipe.model import Resources as Resources
    from curation.recipe.model import StdlibSource as StdlibSource

__all__ = [
    "ANYTHING",
    "NUMBER",
    "STEPS",
    "TEXT",
    "Acquire",
    "Align",
    "BlockStep",
    "Dedup",
    "Embed",
    "FileSource",
    "Kind",
    "MineB3",
    "Outcome",
    "Output",
    "Recipe",
    "Resources",
    "Score",
    "StdlibSource",
    "Step",
    "StepRun",
    "Verdict",
    "reselect",
    "run",
]

__getattr__ = face(
    __name__,
    {
        "ANYTHING": "steps.base",
        "Acquire": "steps.acquire",
        "Align": "steps.align",
        "BlockStep": "steps.block",
        "Dedup": "steps.dedup",
        "Embed": "steps.embed",
        "FileSource": "curation.recipe.model",
        "Kind": "steps.base",
        "MineB3": "steps.b3",
        "NUMBER": "steps.base",
        "Outcome": "steps.base",
        "Output": "curation.recipe.model",
        "Recipe": "curation.recipe.model",
        "Resources": "curation.recipe.model",
        "STEPS": "steps",
        "Score": "steps.score",
        "StdlibSource": "curation.recipe.model",
        "Step": "steps.base",
        "StepRun": "steps.base",
        "TEXT": "steps.base",
        "Verdict": "steps.block",
        "reselect": "job",
        "run": "job",
    },
)
