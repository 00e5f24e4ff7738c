"""Sessions of InfoBatch: epochs that leave out a random share of what is learned, by the losses reported."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from curation.gpu.pruning import BAND, DROPPED, KEPT
from curation.selectors.infobatch.rule import Fates, Rule
from curation.service.errors import Refusal
from curation.service.session.epochs import Ordered, places_in
from curation.service.session.methods.base import Defaults, MethodKind, Parameters, check_parameters, layout_of
from curation.service.session.protocols import Indices, Losses, Method, State, Weights
from curation.service.session.spec import SessionSpec

if TYPE_CHECKING:
    from curation.service.session.session import EpochRecord

Numbers = Annotated[tuple[Annotated[float, Field(strict=True)], ...], Field(strict=False)]
"""A list in JSON."""


class InfoBatchParameters(Parameters):
    """As in :class:`curation.InfoBatch`."""

    prune_ratio: float | Numbers = 0.5
    delta: float = 0.875
    quantiles: Numbers | None = None
    form: Literal["coins", "exact"] = "coins"


@dataclass
class InfoBatchMethod(Defaults):
    """Skips learned candidates, by the last losses reported. Resident: 5 bytes a candidate and epoch in memory."""

    spec: SessionSpec
    size: int
    parameters: InfoBatchParameters
    stateful = True

    def __post_init__(self) -> None:
        # Made once now so that bad parameters are refused when the session is created, not at its first step.
        self._rule()

    @property
    def whole_from(self) -> int:
        return self._rule().annealing_from

    def start(self) -> State:
        # Nothing is known of anything yet: one number stands for all, so that a session over 10^8 opens at once.
        return {"scores": np.broadcast_to(np.float32(np.nan), self.size)}

    def epoch(self, number: int, state: State) -> Ordered:
        rule, scores = self._rule(), state["scores"]
        if scores.strides == (0,) and np.isnan(scores[0]):
            fates = Fates(np.full(self.size, KEPT, np.uint8), rule.no_weights())
        else:
            fates = rule.decide(np.require(scores, requirements="W"), number)
        codes, weights = fates.codes, fates.weights
        order = rule.order(codes, number)

        def take(start: int, stop: int) -> tuple[Indices, Weights]:
            rows = order[start:stop].astype(np.int64)
            return rows, weights[codes[rows]]

        changes = weights != 1
        changes[DROPPED] = False
        reweighted = int(np.count_nonzero(changes[codes])) if changes[BAND:].any() else 0
        nbytes = order.nbytes + codes.nbytes
        find = partial(places_in, order)
        return Ordered(layout_of(self.spec, len(order)), take, find=find, nbytes=nbytes, reweighted=reweighted)

    def check_state(self, state: State, records: "Sequence[EpochRecord]") -> None:
        if np.isinf(state["scores"]).any():
            raise ValueError("a score is infinite")

    def fold(self, state: State, epoch: Ordered, reports: Iterable[tuple[Indices, Losses]]) -> State:
        scores = state["scores"].copy()
        for indices, losses in reports:
            scores[indices] = np.where(np.isfinite(losses), losses, np.float32(np.nan))
        return {"scores": scores}

    def _rule(self) -> Rule:
        """What :class:`curation.InfoBatch` decides by: pure, without its copies of what the store keeps, or torch."""
        parameters = self.parameters
        return Rule(
            size=self.size,
            epochs=self.spec.planned_epochs or self.spec.epochs,
            prune_ratio=tuple(float(ratio) for ratio in np.atleast_1d(parameters.prune_ratio)),
            delta=parameters.delta,
            quantiles=parameters.quantiles,
            form=parameters.form,
            seed=self.spec.seed,
        )


def infobatch(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method[Any]:
    """InfoBatch over ``size`` candidates; raises ``Refusal`` where its parameters are wrong."""
    try:
        return InfoBatchMethod(spec, size, check_parameters(InfoBatchParameters, spec))
    except ValueError as error:
        raise Refusal("bad-parameters", f"parameters: {error}") from error


KIND = MethodKind(make=infobatch, parameters=InfoBatchParameters, bytes_per_candidate=9)
