"""From a method's name to how a session of it makes its epochs: :data:`METHODS`.

To add one, write a class with the four members of :class:`curation.service.sessions.Method` and name it there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.plan import BatchPlan
from curation.service.epochs import Batches, Ordered
from curation.service.sessions import Epoch, Indices, Layout, Losses, Method, Refusal, SessionSpec, State, Weights

P = TypeVar("P", bound=BaseModel)


class Parameters(BaseModel):
    """Base of the methods' own parameters: an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Stateless:
    stateful = False
    nonnegative = False

    def start(self) -> State:
        return {}

    def fold(self, state: State, epoch: Epoch, reports: Iterable[tuple[Indices, Losses]]) -> State:
        return state


class RandomParameters(Parameters):
    """None: every epoch is all candidates in a new order."""


@dataclass
class RandomMethod(_Stateless):
    """Every candidate once an epoch, in a new order; no memory in N."""

    spec: SessionSpec
    size: int

    def epoch(self, number: int, state: State) -> Ordered:
        from curation.service.permutation import Permutation  # numba takes half a second to import

        order = Permutation(self.size, (self.spec.seed, number))

        def take(start: int, stop: int) -> tuple[Indices, Weights]:
            return order[start:stop], np.ones(stop - start, np.float32)

        return Ordered(layout_of(self.spec, self.size), take)


class PlanParameters(Parameters):
    """Where the plan is: in the request's Arrow body, in the named dataset, or here."""

    batches: list[list[int]] | None = Field(
        default=None, description="a small plan: a list of positions for each batch"
    )
    shuffle: bool = Field(default=True, description="draw the batches in a new order every epoch")


@dataclass
class PlanMethod(_Stateless):
    """The batches of a plan, each exactly once an epoch."""

    spec: SessionSpec
    plan: BatchPlan
    shuffle: bool

    def epoch(self, number: int, state: State) -> Batches:
        order = np.arange(len(self.plan))
        if self.shuffle:
            order = np.random.default_rng((self.spec.seed, number)).permutation(len(self.plan))
        return Batches(self.plan, order, self.spec)


def _random(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method:
    check_parameters(RandomParameters, spec)
    return RandomMethod(spec, size)


def _plan(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method:
    parameters = check_parameters(PlanParameters, spec)
    try:
        if "plan" in tables:
            plan = BatchPlan.from_arrow(tables["plan"])
        elif parameters.batches is not None:
            lengths = [len(batch) for batch in parameters.batches]
            rows = np.fromiter((row for batch in parameters.batches for row in batch), np.int64, sum(lengths))
            plan = BatchPlan(indices=rows, offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
        else:
            raise Refusal(
                "bad-parameters",
                "method plan needs a plan: send it as an Arrow body, name a dataset that has batches.arrow, "
                "or give parameters.batches",
            )
    except (ValueError, TypeError, KeyError, OverflowError, pa.ArrowException) as error:
        raise Refusal("bad-parameters", f"the plan is not one: {error}") from error
    if len(plan) == 0:
        raise Refusal("bad-parameters", "the plan has no batches")
    if int(plan.indices.max()) >= size:
        raise Refusal("bad-parameters", f"the plan names row {plan.indices.max()}, but there are {size} candidates")
    return PlanMethod(spec, plan, parameters.shuffle)


def _infobatch(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method:
    from curation.service.infobatch import infobatch  # numba, as above

    return infobatch(spec, size)


def _acquisition(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method:
    # torch takes seconds to import: a server that hands out no such sessions does without it.
    from curation.service.acquisition import acquisition

    return acquisition(spec, size, tables)


def _jest(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method:
    from curation.service.jest import jest

    return jest(spec, size)


class Maker(Protocol):
    """Makes a method from a spec, the number of candidates, and the tables that came with the session.

    Raises:
        Refusal: the parameters are wrong.
    """

    def __call__(self, spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method: ...


METHODS: Mapping[str, Maker] = {
    "acquisition": _acquisition,
    "infobatch": _infobatch,
    "jest": _jest,
    "plan": _plan,
    "random": _random,
}


RESIDENT: Mapping[str, int] = {"acquisition": 12, "infobatch": 9}
"""Bytes in memory for each candidate, of the methods that keep any."""


def check_size(spec: SessionSpec, size: int, resident_bytes: int) -> None:
    """Refuse a session whose epochs would not fit in what the server keeps in memory.

    Raises:
        Refusal: says what it would need.
    """
    needed = RESIDENT.get(spec.method, 0) * size
    if needed > resident_bytes:
        raise Refusal(
            "bad-parameters",
            f"method {spec.method} over {size} candidates takes {needed} bytes of memory, and this server's limit "
            f"(resident_bytes) is {resident_bytes}",
        )


def make_method(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method:
    """The method that a spec names.

    Raises:
        Refusal: no such method, or its parameters are wrong.
    """
    if spec.method not in METHODS:
        raise Refusal("bad-parameters", f"method {spec.method!r} is unknown: choose one of {', '.join(METHODS)}")
    return METHODS[spec.method](spec, size, tables)


def check_parameters(model: type[P], spec: SessionSpec) -> P:
    """A spec's parameters as a method's own model.

    Raises:
        Refusal: names the first that is wrong.
    """
    try:
        return model.model_validate(spec.parameters)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("parameters", *first["loc"])))
        known = ", ".join(model.model_fields) or "none"
        raise Refusal("bad-parameters", f"{where}: {first['msg']} (parameters of {spec.method}: {known})") from error


def layout_of(spec: SessionSpec, rows: int) -> Layout:
    """How a spec cuts so many rows."""
    return Layout(rows, spec.batch_size, spec.world_size, spec.drop_last)
