"""Sessions of JEST: a step hands out a super-batch, and what the ranks send of it decides which part they train on.

Every rank embeds its rows of the super-batch; together they are the B pairs of Evans et al. 2024 (algorithm 1), of
which :class:`curation.JEST` takes b. The choice at a step is a pure function of (seed, epoch, position) and of what
was sent, and equals that of :class:`curation.selectors.samplers.JESTBatchSampler`. O(b·B·D) work, B·D floats a side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from curation.pair import Pair
from curation.service.errors import Refusal
from curation.service.session.choice import SIDES, Choice, RankPart
from curation.service.session.methods.base import Limits, MethodKind, Parameters, check_parameters
from curation.service.session.methods.random import RandomMethod
from curation.service.session.protocols import ChoosingEpoch, Method
from curation.service.session.segments import Layout
from curation.service.session.spec import SessionSpec
from curation.service.session.super_batches import SuperBatches, SuperSplit

if TYPE_CHECKING:
    from curation.selectors.jest import JEST

MAX_STEPS = 1 << 31


class JestParameters(Parameters):
    """As in :class:`curation.JEST`. The super-batch has batch_size rows for each rank."""

    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    filter_ratio: float = Field(default=0.8, ge=0, lt=1)
    chunks: int = Field(default=16, ge=1)
    criterion: Literal["learnability", "hard", "easy"] = "learnability"
    joint: bool = True
    own_positive: bool = False


@dataclass
class JestMethod(RandomMethod):
    """Super-batches in random order, each row in one of them an epoch; no memory in N."""

    jest: "JEST"

    def epoch(self, number: int, state: Mapping[str, npt.NDArray[Any]]) -> SuperBatches:
        return SuperBatches(super().epoch(number, state), Layout(self.layout, 0), self.jest.chosen)

    @property
    def choosing(self) -> "JestMethod":
        return self

    @cached_property
    def layout(self) -> SuperSplit:
        """How an epoch is split: too short a last super-batch joins the one before."""
        spec = self.spec
        split = SuperSplit(self.size, spec.batch_size, 1, spec.drop_last, smallest=self.jest.smallest)
        return split.over(spec.world_size)

    def check(self, part: RankPart, rows: int) -> None:
        """Refuse what a rank sent unless it fits its rows and the criterion.

        Raises:
            Refusal: says what is missing, of another length, or not finite.
        """
        needed = {"learnability": SIDES, "hard": SIDES[:2], "easy": SIDES[2:]}[self.jest.criterion]
        if self.jest.joint and part.scores is not None:
            raise Refusal("bad-report", 'scores are each row\'s own: only sessions with "joint": false take them')
        sent = set(part.sides)
        if part.scores is not None:
            needed = ()
        if sent != set(needed):
            names = ", ".join(needed) or "scores alone"
            raise Refusal(
                "bad-report",
                f"criterion {self.jest.criterion!r} needs {names}; sent were {', '.join(sorted(sent)) or 'none'}",
            )
        arrays: dict[str, npt.NDArray[Any]] = {**part.sides, **({} if part.scores is None else {"scores": part.scores})}
        for name, values in arrays.items():
            if len(values) != rows:
                raise Refusal("bad-report", f"{name} has {len(values)} rows, but this rank's part has {rows}")
            finite = np.isfinite(values.reshape(rows, -1)).all(axis=1)
            if not finite.all():
                raise Refusal("bad-report", f"{name}: row {int(np.argmin(finite))} is not finite")
        for model in ("learner", "reference"):
            widths = {matrix.shape[1] for name, matrix in part.sides.items() if name.startswith(model)}
            if len(widths) > 1 or 0 in widths:
                raise Refusal("bad-report", f"{model}_a and {model}_b must be of one width D ≥ 1, not {sorted(widths)}")

    def choose(self, parts: Sequence[RankPart], seed: tuple[int, int, int]) -> Choice:
        """Which rows of a super-batch to train on, from what each rank sent of it.

        Raises:
            Refusal: the ranks do not agree, or the losses overflow.
        """
        for rank, part in enumerate(parts):
            if part.kind != parts[0].kind:
                raise Refusal(
                    "bad-report",
                    f"rank {rank} sent (widths, embeddings, factors) {part.kind}, but rank 0 {parts[0].kind}: "
                    "all ranks must send alike. Nothing of this step is kept: all send again",
                )
        generator = np.random.default_rng(seed)
        digests = [part.digest for part in parts]
        if parts[0].scores is not None:
            logits = np.concatenate([part.scores for part in parts if part.scores is not None])
            keys = logits - np.log(generator.standard_exponential(len(logits)))
            picks = np.argsort(-keys, kind="stable")[: self.jest.chosen(len(logits))]
            return Choice(picks.astype(np.int32), logits[picks].astype(np.float32), digests)
        try:
            pairs = [_pair(parts, model) for model in ("learner", "reference")]
            selection = self.jest.select(*pairs, generator=generator)
        except ValueError as error:
            raise Refusal("bad-report", f"{error}. Nothing of this step is kept: all ranks send again") from error
        assert selection.scores is not None
        return Choice(selection.indices.astype(np.int32), selection.scores.astype(np.float32), digests)

    def check_choice(self, choice: Choice, epoch: ChoosingEpoch, step: int) -> None:
        """Refuse a choice out of a checkpoint that cannot be one of this session's."""
        start, stop = epoch.bounds(step)
        chosen = self.jest.chosen(stop - start)
        positions = choice.positions
        if positions.shape != (chosen,) or len(np.unique(positions)) != chosen or positions.min() < 0:
            raise ValueError(f"the choice of step {step} is not {chosen} positions")
        if positions.max() >= stop - start or choice.scores.shape != (chosen,):
            raise ValueError(f"the choice of step {step} lies outside its super-batch")
        if not np.isfinite(choice.scores).all():
            raise ValueError(f"a score of the choice of step {step} is not finite")


def jest(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method[Any]:
    """JEST over ``size`` candidates; raises ``Refusal`` where its parameters are wrong."""
    from curation.selectors.jest import JEST  # torch takes seconds to import, and other sessions do without

    parameters = check_parameters(JestParameters, spec)
    try:
        method = JestMethod(spec, size, JEST(**parameters.model_dump()))
    except ValueError as error:
        raise Refusal("bad-parameters", str(error)) from error
    if method.layout.steps * spec.epochs >= MAX_STEPS:
        raise Refusal("bad-parameters", "a session of jest has fewer than 2^31 steps: make the super-batch larger")
    start, stop = method.layout.step_span(0)
    chosen = method.jest.chosen(stop - start)
    if chosen < spec.world_size:
        raise Refusal(
            "bad-parameters",
            f"of a super-batch {chosen} rows are chosen for {spec.world_size} ranks: make batch_size larger "
            "or filter_ratio smaller",
        )
    return method


def check_super_batch(spec: SessionSpec, limits: Limits) -> None:
    """Refuse a session whose super-batches have more rows than the server takes."""
    if spec.batch_size * spec.world_size > limits.max_pairs:
        raise Refusal(
            "bad-parameters",
            f"a super-batch of {spec.world_size} × {spec.batch_size} rows is more than this server takes, "
            f"{limits.max_pairs} (max_pairs)",
        )


KIND = MethodKind(make=jest, parameters=JestParameters, check_limits=check_super_batch)


def _pair(parts: Sequence[RankPart], model: str) -> Pair | None:
    if f"{model}_a" not in parts[0].sides:
        return None
    import torch

    a, b = (torch.from_numpy(np.concatenate([part.sides[f"{model}_{side}"] for part in parts])) for side in "ab")
    return Pair(a, b, parts[0].factors[f"{model}_scale"], parts[0].factors[f"{model}_bias"])
