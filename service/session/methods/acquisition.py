"""Sessions of stochastic acquisition: epochs drawn by scores, which are the losses reported."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from curation.service.errors import Refusal
from curation.service.session.epochs import Ordered, places_in
from curation.service.session.methods.base import Defaults, MethodKind, Parameters, check_parameters, layout_of, without
from curation.service.session.protocols import Indices, Losses, Method, State, Weights
from curation.service.session.spec import SessionSpec

if TYPE_CHECKING:
    from curation.selectors.acquisition import StochasticAcquisition
    from curation.service.session.session import EpochRecord


class AcquisitionParameters(Parameters):
    """As in :class:`curation.StochasticAcquisition`, and what each epoch draws."""

    kind: Literal["power", "softmax", "soft-rank"] = "power"
    beta: float = Field(default=1.0, ge=0)
    shift: float | Literal["lowest"] = Field(
        default=0.0, description="power: added to all scores; or lowest: less the lowest of those left"
    )
    k: int | None = Field(default=None, ge=1, description="candidates drawn for an epoch; None: all of them")
    once: bool = Field(default=False, description="a candidate drawn in one epoch is out of the later ones")
    scores: list[float] | None = Field(
        default=None, description="one for each candidate (or the column `scores` of an Arrow body); None: 1 for all"
    )


@dataclass
class AcquisitionMethod(Defaults):
    """Each epoch draws candidates by their scores; a report replaces the scores of its batch by its losses.

    A loss that is not finite leaves the score as it was. Resident: 8 bytes for each candidate drawn.
    """

    spec: SessionSpec
    scores: npt.NDArray[np.float32]
    selector: "StochasticAcquisition"
    k: int
    once: bool
    stateful = True

    @property
    def lowest_loss(self) -> float:
        if self.selector.kind != "power" or self.selector.shift == "lowest":
            return -math.inf
        return -float(self.selector.shift)

    def start(self) -> State:
        return {"scores": self.scores, "drawn": np.zeros(len(self.scores), np.uint8)}

    def epoch(self, number: int, state: State) -> Ordered:
        pool = np.flatnonzero(state["drawn"] == 0)
        scores = state["scores"] if len(pool) == len(self.scores) else state["scores"][pool]
        k = min(self.k, len(pool))
        order = pool[self.selector.select(scores, k, seed=(self.spec.seed, number)).indices]

        def take(start: int, stop: int) -> tuple[Indices, Weights]:
            return order[start:stop], np.ones(stop - start, np.float32)

        return Ordered(layout_of(self.spec, k), take, find=partial(places_in, order), nbytes=order.nbytes)

    def check_state(self, state: State, records: "Sequence[EpochRecord]") -> None:
        scores, drawn = state["scores"], state["drawn"]
        if not np.isfinite(scores).all() or scores.min() < self.lowest_loss:
            raise ValueError(f"a score is not finite, or lower than {self.lowest_loss:g}")
        if drawn.max() > 1 or int(drawn.sum()) != self.once * sum(record.layout.rows for record in records):
            raise ValueError("the candidates drawn are not as many as the epochs had rows")

    def fold(self, state: State, epoch: Ordered, reports: Iterable[tuple[Indices, Losses]]) -> State:
        scores, drawn = (_own(state[name]) for name in ("scores", "drawn"))
        for indices, losses in reports:
            scores[indices] = np.where(np.isfinite(losses), losses, scores[indices])
        if self.once:
            drawn[epoch.everything()] = 1
        return {"scores": scores, "drawn": drawn}


def _own(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself where it may be changed, else a copy."""
    return values if values.flags.writeable else values.copy()


def acquisition(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method[Any]:
    """Stochastic acquisition; raises ``Refusal`` where parameters or scores are wrong."""
    from curation.selectors.acquisition import StochasticAcquisition  # imports torch, which takes seconds

    parameters = check_parameters(AcquisitionParameters, spec)
    scores = np.ones(size, np.float32)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes an infinity is refused below
            if "scores" in tables:
                scores = tables["scores"]["scores"].to_numpy().astype(np.float32)
            elif parameters.scores is not None:
                scores = np.array(parameters.scores, np.float32)
        selector = StochasticAcquisition(kind=parameters.kind, beta=parameters.beta, shift=parameters.shift)
        if scores.shape != (size,):
            raise ValueError(f"scores has {len(scores)} entries, but there are {size} candidates")
        # Drawing none looks at every score, so that a bad one is refused now and not at the first step.
        selector.select(scores, 0, seed=spec.seed)
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite")
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise Refusal("bad-parameters", f"parameters: {error}") from error
    scores.flags.writeable = False  # the start of every epoch that is computed again
    k = size if parameters.k is None else parameters.k
    if k > size:
        raise Refusal("bad-parameters", f"parameters.k is {k}, but there are {size} candidates")
    return AcquisitionMethod(spec, scores, selector, k, parameters.once)


def to_table(spec: SessionSpec) -> tuple[SessionSpec, pa.Table] | None:
    """The parameter ``scores`` as the table of scores."""
    scores = check_parameters(AcquisitionParameters, spec).scores
    if scores is None:
        return None
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        return without(spec, "scores"), pa.table({"scores": np.array(scores, np.float64).astype(np.float32)})


KIND = MethodKind(
    make=acquisition, parameters=AcquisitionParameters, bytes_per_candidate=12, table="scores", to_table=to_table
)
