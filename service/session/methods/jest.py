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
from curation.selectors.samplers.split import ElasticSplit, RowSplit, Split, share
from curation.service.errors import Refusal
from curation.service.session.choice import SIDES, Choice, RankPart
from curation.service.session.epochs import Ordered
from curation.service.session.methods.base import Limits, MethodKind, Parameters, check_parameters, layout_of
from curation.service.session.methods.random import RandomMethod
from curation.service.session.protocols import ChoosingEpoch, Indices, Method
from curation.service.session.spec import SessionSpec

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


class SuperBatches(Ordered):
    """An epoch of super-batches. A report of losses is about what was chosen, so its length is the share's."""

    def __init__(self, layout: ElasticSplit, whole: Ordered, jest: "JEST") -> None:
        super().__init__(layout, whole.take, find=whole.find, nbytes=whole.nbytes)
        self._jest = jest

    def length(self, rank: int, step: int) -> int:
        start, stop = self.share(rank, step)
        return stop - start

    def part(self, rank: int, step: int) -> int:
        """How many rows of a step's super-batch are this rank's to embed."""
        start, stop = self.layout.span(rank, step)
        return stop - start

    def share(self, rank: int, step: int) -> tuple[int, int]:
        """Which of the rows chosen at a step are this rank's, in pick order."""
        start, stop = self.bounds(step)
        return share(0, self._jest.chosen(stop - start), rank, self.layout.world_size)

    def bounds(self, step: int) -> tuple[int, int]:
        """Where a step's super-batch starts and stops in the epoch's order; it stops at the position of its seed."""
        return _bounds(self.layout, step)

    def super_batch(self, step: int) -> Indices:
        """int64[B]: the rows of all ranks."""
        return self.take(*self.bounds(step))[0]


@dataclass
class JestMethod(RandomMethod):
    """Super-batches in random order, each row in one of them an epoch; no memory in N."""

    jest: "JEST"

    def epoch(self, number: int, state: Mapping[str, npt.NDArray[Any]]) -> SuperBatches:
        return SuperBatches(self.layout, super().epoch(number, state), self.jest)

    @property
    def choosing(self) -> "JestMethod":
        return self

    @cached_property
    def layout(self) -> RowSplit:
        """How an epoch is split: too short a last super-batch joins the one before."""
        return layout_of(self.spec, self.size).at_least(self.jest.smallest(self.spec.world_size))

    @property
    def trained(self) -> int:
        """Rows of an epoch that are trained on."""
        return (self.layout.steps - 1) * self.chosen(0) + self.chosen(self.layout.steps - 1)

    def chosen(self, step: int) -> int:
        """How many rows of a step's super-batch are chosen."""
        start, stop = _bounds(self.layout, step)
        return self.jest.chosen(stop - start)

    def check(self, part: RankPart, rows: int, max_rows: int) -> None:
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
        # The last super-batch is larger by the rows that were too few for one of their own, and shares are rounded up.
        if rows * self.spec.world_size > max_rows + max(self.layout.least, self.spec.world_size) + self.spec.world_size:
            raise Refusal("too-large", f"a super-batch has more than {max_rows} rows, this server's limit (max_pairs)")

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
        if len(choice.digests) != self.spec.world_size or any(len(digest) != 16 for digest in choice.digests):
            raise ValueError(f"the choice of step {step} is not of {self.spec.world_size} ranks")


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
    if method.chosen(0) < spec.world_size:
        raise Refusal(
            "bad-parameters",
            f"of a super-batch {method.chosen(0)} rows are chosen for {spec.world_size} ranks: make batch_size larger "
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


def _bounds(layout: Split, step: int) -> tuple[int, int]:
    return layout.span(0, step)[0], layout.span(layout.world_size - 1, step)[1]


def _pair(parts: Sequence[RankPart], model: str) -> Pair | None:
    if f"{model}_a" not in parts[0].sides:
        return None
    import torch

    a, b = (torch.from_numpy(np.concatenate([part.sides[f"{model}_{side}"] for part in parts])) for side in "ab")
    return Pair(a, b, parts[0].factors[f"{model}_scale"], parts[0].factors[f"{model}_bias"])
