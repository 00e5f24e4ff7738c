"""Parts that the methods of sessions share: what each declares of itself, its parameters, and default answers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from curation.plan import BatchPlan
from curation.selectors.samplers.split import RowSplit
from curation.service.errors import Refusal
from curation.service.session.protocols import Choosing, Indices, Losses, Method, State
from curation.service.session.spec import SessionSpec

if TYPE_CHECKING:
    from curation.service.session.session import EpochRecord

P = TypeVar("P", bound=BaseModel)


class Limits(Protocol):
    """What a server allows its sessions; its settings, as the methods see them."""

    @property
    def resident_bytes(self) -> int:
        """Memory for the epochs of open sessions."""

    @property
    def max_pairs(self) -> int:
        """Rows of a super-batch."""


class Maker(Protocol):
    """Makes a method from a spec, the number of candidates, and the tables that came with the session.

    Raises:
        Refusal: the parameters are wrong.
    """

    def __call__(self, spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method[Any]: ...


class Parameters(BaseModel):
    """Base of the methods' own parameters: an unknown name is an error, and so is true in place of a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True, kw_only=True)
class MethodKind:
    """All that the service has to know of a method before it makes one.

    Args:
        make: makes the method of one session.
        parameters: the model of its own parameters, which ``GET /v1/capabilities`` and OpenAPI show.
        bytes_per_candidate: resident memory for each of N candidates; a session that would take more than the
            server's ``resident_bytes`` is refused.
        table: the name under which a table that came with the session is stored and handed to ``make``; None where
            the method takes none.
        to_table: that table out of the parameters, where JSON has it there, and the spec without it: so it is stored
            once, in binary, and no look at the session carries it; None where the parameters have none.
        plan_of_dataset: the table may be left out where the session names a dataset: it is then that dataset's plan.
        check_limits: raises ``Refusal`` where a session is more than the server's limits allow.
    """

    make: Maker
    parameters: type[Parameters] = Parameters
    bytes_per_candidate: int = 0
    table: str | None = None
    to_table: Callable[[SessionSpec], tuple[SessionSpec, pa.Table] | None] = lambda spec: None
    plan_of_dataset: bool = False
    check_limits: Callable[[SessionSpec, Limits], None] | None = None


class Defaults:
    """What a method answers unless it says otherwise: it takes any loss, and hands out whole batches of an order."""

    @property
    def lowest_loss(self) -> float:
        return -math.inf

    @property
    def choosing(self) -> Choosing | None:
        return None

    @property
    def plan(self) -> BatchPlan | None:
        return None

    def check_state(self, state: State, records: "Sequence[EpochRecord]") -> None:
        """Any values do."""

    @property
    def whole_from(self) -> int | None:
        return None


class Stateless(Defaults):
    """A method whose epochs depend on no report."""

    stateful = False

    def start(self) -> State:
        return {}

    def fold(self, state: State, epoch: Any, reports: Iterable[tuple[Indices, Losses]]) -> State:
        return state


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


def without(spec: SessionSpec, parameter: str) -> SessionSpec:
    """A spec that does not give one of its parameters."""
    return spec.model_copy(
        update={"parameters": {name: value for name, value in spec.parameters.items() if name != parameter}}
    )


def layout_of(spec: SessionSpec, rows: int) -> RowSplit:
    """How a spec splits so many rows."""
    return RowSplit(rows, spec.batch_size, spec.world_size, spec.drop_last)
