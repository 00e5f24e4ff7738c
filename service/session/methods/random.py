"""Sessions in random order: every candidate once an epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation.service.session.epochs import Ordered
from curation.service.session.methods.base import MethodKind, Parameters, Stateless, check_parameters, layout_of
from curation.service.session.protocols import Indices, Method, State, Weights
from curation.service.session.spec import SessionSpec


class RandomParameters(Parameters):
    """None: every epoch is all candidates in a new order."""


@dataclass
class RandomMethod(Stateless):
    """Every candidate once an epoch, in a new order; no memory in N."""

    spec: SessionSpec
    size: int

    def epoch(self, number: int, state: State) -> Ordered:
        from curation.gpu.permutation import Permutation  # numba takes half a second to import

        order = Permutation(self.size, (self.spec.seed, number))

        def take(start: int, stop: int) -> tuple[Indices, Weights]:
            return order[start:stop], np.ones(stop - start, np.float32)

        return Ordered(layout_of(self.spec, self.size), take, find=lambda row: [order.position(row)])


def random(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method[Any]:
    """Random order over ``size`` candidates; raises ``Refusal`` where there are parameters."""
    check_parameters(RandomParameters, spec)
    return RandomMethod(spec, size)


KIND = MethodKind(make=random, parameters=RandomParameters)
