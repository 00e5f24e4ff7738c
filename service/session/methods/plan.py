"""Sessions of a plan: its batches, each exactly once an epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from curation.plan import BatchPlan
from curation.selectors.samplers.batch_split import BatchSplit, Remainder
from curation.selectors.samplers.plan_order import PlanOrder
from curation.service.errors import Refusal
from curation.service.session.epochs import Ordered
from curation.service.session.methods.base import MethodKind, Parameters, Stateless, check_parameters, without
from curation.service.session.protocols import Indices, Method, State, Weights
from curation.service.session.spec import SessionSpec

_BAD_PLAN = (ValueError, TypeError, KeyError, OverflowError, pa.ArrowException)


class PlanParameters(Parameters):
    """Where the plan is: in the request's Arrow body, in the named dataset, or ``batches``."""

    batches: list[list[int]] | None = Field(
        default=None, description="a small plan: a list of positions for each batch"
    )
    shuffle: bool = Field(default=True, description="draw the batches in a new order every epoch")


@dataclass
class PlanMethod(Stateless):
    """The batches of a plan, each exactly once an epoch; of last batches too small to share out a row may be handed to
    several ranks (:mod:`curation.selectors.samplers.split`)."""

    spec: SessionSpec
    batches: BatchPlan
    shuffle: bool

    @property
    def plan(self) -> BatchPlan:
        return self.batches

    def epoch(self, number: int, state: State) -> Ordered:
        order = PlanOrder.of(self.batches, seed=self.spec.seed, epoch=number, shuffle=self.shuffle)
        remainder: Remainder = "drop" if self.spec.drop_last else "share"
        layout = BatchSplit(order.offsets, self.spec.world_size, remainder)

        def take(start: int, stop: int) -> tuple[Indices, Weights]:
            return order.rows(start, stop), np.ones(stop - start, np.float32)

        return Ordered(layout, take, find=order.places, nbytes=order.nbytes)


def plan(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method[Any]:
    """The batches of a plan; raises ``Refusal`` where it is none, or is for other candidates."""
    parameters = check_parameters(PlanParameters, spec)
    try:
        if "plan" in tables:
            batches = BatchPlan.from_arrow(tables["plan"])
        elif parameters.batches is not None:
            batches = _plan_of(parameters.batches)
        else:
            raise Refusal(
                "bad-parameters",
                "method plan needs a plan: send it as an Arrow body, name a dataset that has batches.arrow, "
                "or give parameters.batches",
            )
    except _BAD_PLAN as error:
        raise Refusal("bad-parameters", f"the plan is not one: {error}") from error
    if len(batches) == 0:
        raise Refusal("bad-parameters", "the plan has no batches")
    if int(batches.indices.max()) >= size:
        raise Refusal("bad-parameters", f"the plan names row {batches.indices.max()}, but there are {size} candidates")
    return PlanMethod(spec, batches, parameters.shuffle)


def to_table(spec: SessionSpec) -> tuple[SessionSpec, pa.Table] | None:
    """The parameter ``batches`` as the table of a plan."""
    batches = check_parameters(PlanParameters, spec).batches
    try:
        return None if batches is None else (without(spec, "batches"), _plan_of(batches).to_arrow())
    except _BAD_PLAN as error:
        raise Refusal("bad-parameters", f"the plan is not one: {error}") from error


def _plan_of(batches: list[list[int]]) -> BatchPlan:
    lengths = [len(batch) for batch in batches]
    rows = np.fromiter((row for batch in batches for row in batch), np.int64, sum(lengths))
    return BatchPlan(indices=rows, offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


KIND = MethodKind(make=plan, parameters=PlanParameters, table="plan", to_table=to_table, plan_of_dataset=True)
