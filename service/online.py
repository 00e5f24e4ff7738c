"""Sessions whose epochs depend on what was reported: InfoBatch and stochastic acquisition."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from curation.selectors.acquisition import KINDS, StochasticAcquisition
from curation.selectors.infobatch import InfoBatch
from curation.service.methods import Ordered, Parameters, check_parameters, layout_of
from curation.service.sessions import Epoch, Indices, Losses, Method, Refusal, SessionSpec, State, Weights


class InfoBatchParameters(Parameters):
    """As in :class:`curation.InfoBatch`."""

    prune_ratio: float | tuple[float, ...] = 0.5
    delta: float = 0.875
    quantiles: tuple[float, ...] | None = None
    form: Literal["coins", "exact"] = "coins"


@dataclass
class InfoBatchMethod:
    """Skips learned candidates, by the last losses reported. Resident: 5 bytes a candidate and epoch in memory."""

    spec: SessionSpec
    size: int
    parameters: InfoBatchParameters
    stateful = True
    nonnegative = False

    def __post_init__(self) -> None:
        # Made once here so that bad parameters are refused when the session is created, not at its first step.
        self._make(1)

    def start(self) -> State:
        return {"scores": np.full(self.size, np.nan, np.float32)}

    def epoch(self, number: int, state: State) -> Ordered:
        info = self._make(self.size)
        held = info.state_dict()
        held["scores"] = np.require(state["scores"], requirements="W")
        info.load_state_dict(held)
        order = info.order(number)
        held = info.state_dict()
        codes, weights = held["codes"].numpy(), held["weights"].numpy()

        def take(start: int, stop: int) -> tuple[Indices, Weights]:
            rows = order[start:stop].astype(np.int64)
            return rows, weights[codes[rows]]

        counts = np.bincount(codes, minlength=len(weights))
        changed = int(counts[(weights != 1) & (np.arange(len(weights)) > 0)].sum())
        return Ordered(layout_of(self.spec, len(order)), take, nbytes=order.nbytes + codes.nbytes, reweighted=changed)

    def fold(self, state: State, epoch: Epoch, reports: Iterable[tuple[Indices, Losses]]) -> State:
        scores = state["scores"].copy()
        for indices, losses in reports:
            scores[indices] = np.where(np.isfinite(losses), losses, np.float32(np.nan))
        return {"scores": scores}

    def _make(self, size: int) -> InfoBatch:
        return InfoBatch(
            size=size, epochs=self.spec.epochs, seed=self.spec.seed, sync="step", **self.parameters.model_dump()
        )


class AcquisitionParameters(Parameters):
    """As in :class:`curation.StochasticAcquisition`, and what each epoch draws."""

    kind: str = Field(default="power", description=", ".join(KINDS))
    beta: float = 1.0
    k: int | None = Field(default=None, ge=1, description="candidates drawn for an epoch; None: all of them")
    once: bool = Field(default=False, description="a candidate drawn in one epoch is out of the later ones")
    scores: list[float] | None = Field(
        default=None, description="one for each candidate (or the column `scores` of an Arrow body); None: 1 for all"
    )


@dataclass
class AcquisitionMethod:
    """Each epoch draws candidates by their scores; a report replaces the scores of its batch by its losses.

    A loss that is not finite leaves the score as it was. Resident: 8 bytes for each candidate drawn.
    """

    spec: SessionSpec
    scores: npt.NDArray[np.float32]
    selector: StochasticAcquisition
    k: int
    once: bool
    stateful = True

    @property
    def nonnegative(self) -> bool:
        return self.selector.kind == "power"

    def start(self) -> State:
        return {"scores": self.scores, "drawn": np.zeros(len(self.scores), np.uint8)}

    def epoch(self, number: int, state: State) -> Ordered:
        pool = np.flatnonzero(state["drawn"] == 0)
        scores = state["scores"] if len(pool) == len(self.scores) else state["scores"][pool]
        k = min(self.k, len(pool))
        order = pool[self.selector.select(scores, k, seed=(self.spec.seed, number)).indices]

        def take(start: int, stop: int) -> tuple[Indices, Weights]:
            return order[start:stop], np.ones(stop - start, np.float32)

        return Ordered(layout_of(self.spec, k), take, nbytes=order.nbytes)

    def fold(self, state: State, epoch: Epoch, reports: Iterable[tuple[Indices, Losses]]) -> State:
        scores, drawn = state["scores"].copy(), state["drawn"]
        for indices, losses in reports:
            scores[indices] = np.where(np.isfinite(losses), losses, scores[indices])
        if self.once and isinstance(epoch, Ordered):
            drawn = drawn.copy()
            drawn[epoch.everything()] = 1
        return {"scores": scores, "drawn": drawn}


def infobatch(spec: SessionSpec, size: int) -> Method:
    """InfoBatch over ``size`` candidates; raises ``Refusal`` where its parameters are wrong."""
    try:
        return InfoBatchMethod(spec, size, check_parameters(InfoBatchParameters, spec))
    except ValueError as error:
        raise Refusal("bad-parameters", f"parameters: {error}") from error


def acquisition(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method:
    """Stochastic acquisition; raises ``Refusal`` where parameters or scores are wrong."""
    parameters = check_parameters(AcquisitionParameters, spec)
    scores = np.ones(size, np.float32)
    try:
        if "scores" in tables:
            scores = tables["scores"]["scores"].to_numpy().astype(np.float32)
        elif parameters.scores is not None:
            scores = np.array(parameters.scores, np.float32)
        selector = StochasticAcquisition(kind=parameters.kind, beta=parameters.beta)
        if scores.shape != (size,):
            raise ValueError(f"scores has {len(scores)} entries, but there are {size} candidates")
        # Drawing none looks at every score, so that a bad one is refused now and not at the first step.
        selector.select(scores, 0, seed=spec.seed)
        if not np.isfinite(scores).all() or (selector.kind == "power" and (scores < 0).any()):
            raise ValueError("scores must be finite, and with power not negative")
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise Refusal("bad-parameters", f"parameters: {error}") from error
    k = size if parameters.k is None else parameters.k
    if k > size:
        raise Refusal("bad-parameters", f"parameters.k is {k}, but there are {size} candidates")
    return AcquisitionMethod(spec, scores, selector, k, parameters.once)
