"""Sessions of InfoBatch: epochs that leave out a random share of what is learned, by the losses reported."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from curation.gpu.pruning import DROPPED, KEPT
from curation.gpu.pruning.cpu import Codes
from curation.selectors.infobatch.rule import Fates, Rule
from curation.service.errors import Refusal
from curation.service.session.epochs import Ordered
from curation.service.session.methods.base import Defaults, MethodKind, Parameters, check_parameters, layout_of
from curation.service.session.protocols import Indices, Keep, Losses, Method, Sliced, State, Weights
from curation.service.session.spec import SessionSpec

if TYPE_CHECKING:
    from curation.service.session.session import EpochRecord

Numbers = Annotated[tuple[Annotated[float, Field(strict=True)], ...], Field(strict=False)]
"""A list in JSON."""
_PIECE = 1 << 20


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
        order = _Order(rule, fates, number)
        return Ordered(
            layout_of(self.spec, order.kept),
            order.take,
            find=order.find,
            nbytes=order.nbytes,
            reweighted=order.reweighted,
            prepare=order.prepare,
            move=order.move,
        )

    def check_state(self, state: State, records: "Sequence[EpochRecord]") -> None:
        if np.isinf(state["scores"]).any():
            raise ValueError("a score is infinite")

    def fold(self, state: State, epoch: Ordered, reports: Iterable[tuple[Indices, Losses]]) -> State:
        scores = state["scores"] if state["scores"].flags.writeable else state["scores"].copy()
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


class _Order:
    """The order of an epoch's rows, made at its first batch: by then the scores that decided their fates can be gone.

    Resident: 4 bytes a row (8 above 2^31 candidates), and 1 a candidate where weights differ.
    """

    def __init__(self, rule: Rule, fates: Fates, number: int) -> None:
        self._rule, self._number, self._weights = rule, number, fates.weights
        self._codes: Codes | None = fates.codes
        self._positions: Sliced | None = None
        self._moved_codes: Sliced | None = None
        sizes = _sizes_of(fates.codes, len(fates.weights))
        self.kept = len(fates.codes) - int(sizes[DROPPED])
        changes = fates.weights != 1
        changes[DROPPED] = False
        self.reweighted = int(sizes[changes].sum())
        self.nbytes = self.kept * (4 if len(fates.codes) < 2**31 else 8) + (
            fates.codes.nbytes if self.reweighted else 0
        )

    def prepare(self) -> None:
        codes = self._codes
        if self._positions is None:
            assert codes is not None
            self._positions = self._rule.order(codes, self._number)
            if not self.reweighted:
                self._codes = None

    def take(self, start: int, stop: int) -> tuple[Indices, Weights]:
        if self._positions is None:
            self.prepare()
        assert self._positions is not None
        rows = self._positions[start:stop].astype(np.int64)
        codes = self._codes
        if codes is not None:
            return rows, self._weights[codes[rows]]
        if self._moved_codes is not None:
            return rows, self._weights[self._moved_codes[start:stop]]
        return rows, np.ones(len(rows), np.float32)

    def find(self, row: int) -> list[int]:
        """Where in the order a row stands, which is looked through."""
        self.prepare()
        assert self._positions is not None
        positions = self._positions
        pieces = ((start, positions[start : min(start + _PIECE, self.kept)]) for start in range(0, self.kept, _PIECE))
        return [start + int(place) for start, piece in pieces for place in np.flatnonzero(piece == row)]

    def move(self, keep: Keep) -> None:
        self.prepare()
        positions, codes = self._positions, self._codes
        assert positions is not None
        spans = [slice(start, min(start + _PIECE, self.kept)) for start in range(0, self.kept, _PIECE)]
        moved = keep(positions[span] for span in spans)
        if codes is not None:
            self._moved_codes = keep(codes[positions[span]] for span in spans)
        self._positions, self._codes = moved, None


def _sizes_of(codes: Codes, kinds: int) -> npt.NDArray[np.int64]:
    """int64[kinds]: how many candidates have each code; a piece at a time, because numpy counts in int64."""
    sizes = np.zeros(kinds, np.int64)
    for start in range(0, len(codes), _PIECE):
        sizes += np.bincount(codes[start : start + _PIECE], minlength=kinds)
    return sizes


def infobatch(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method[Any]:
    """InfoBatch over ``size`` candidates; raises ``Refusal`` where its parameters are wrong."""
    try:
        return InfoBatchMethod(spec, size, check_parameters(InfoBatchParameters, spec))
    except ValueError as error:
        raise Refusal("bad-parameters", f"parameters: {error}") from error


KIND = MethodKind(make=infobatch, parameters=InfoBatchParameters, bytes_per_candidate=9)
