"""Parts that the methods of sessions share: their parameters, and what a method without a state does."""

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from curation.service.errors import Refusal
from curation.service.session.session import Epoch, Indices, Layout, Losses, Method, State
from curation.service.session.spec import SessionSpec

P = TypeVar("P", bound=BaseModel)


class Parameters(BaseModel):
    """Base of the methods' own parameters: an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stateless:
    """A method whose epochs depend on no report."""

    stateful = False
    nonnegative = False

    def start(self) -> State:
        return {}

    def fold(self, state: State, epoch: Epoch, reports: Iterable[tuple[Indices, Losses]]) -> State:
        return state


class Maker(Protocol):
    """Makes a method from a spec, the number of candidates, and the tables that came with the session.

    Raises:
        Refusal: the parameters are wrong.
    """

    def __call__(self, spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method: ...


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
