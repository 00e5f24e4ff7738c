"""Parameters over HTTP beside the methods' own: equal names, defaults and choices; what is left out is listed.

The bodies and the sessions' parameters are written out, because made from the methods they would import torch, which
takes seconds and which most servers do without.
"""

import inspect
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from curation.gpu.graph import EDGES
from curation.gpu.knn import METRICS
from curation.gpu.learnability import LOSSES
from curation.selectors.acquisition import KINDS, StochasticAcquisition
from curation.selectors.b3 import B3
from curation.selectors.infobatch import InfoBatch
from curation.selectors.jest import JEST
from curation.selectors.jest.method import Criterion
from curation.selectors.zipfit import ZipFit
from curation.selectors.zipfit.codecs import CODECS
from curation.selectors.zipfit.method import MODES
from curation.service.http.selections import AcquireBody, B3Body, JestBody, ZipFitBody
from curation.service.session.methods.acquisition import AcquisitionParameters
from curation.service.session.methods.infobatch import InfoBatchParameters
from curation.service.session.methods.jest import JestParameters

HARDWARE = "how its processors, GPU and memory are used is the server's to say"
SEARCH = "the server searches exactly, in float32, with what suits its hardware"
SESSION = "the session has it"
PAIRS = tuple(f"{model}_{name}" for model in ("learner", "reference") for name in ("a", "b", "scale", "bias"))


class Case(NamedTuple):
    """A model, the method that it stands for, and how they may differ."""

    model: type[BaseModel]
    method: type[Any]
    left_out: Mapping[str, str]
    """Parameters of the method that are not offered over HTTP, each with the reason."""
    added: Collection[str]
    """Fields that are no parameters of the method: its inputs, what its calls take, what sessions do with it."""
    choices: Mapping[str, Collection[str]]


JEST_CHOICES = {"loss": LOSSES, "criterion": get_args(Criterion)}
CASES = [
    Case(
        ZipFitBody,
        ZipFit,
        {"threads": HARDWARE},
        {"texts", "k"},
        {"codec": CODECS, "mode": MODES},
    ),
    Case(AcquireBody, StochasticAcquisition, {}, {"scores", "k", "seed"}, {"kind": KINDS}),
    Case(JestBody, JEST, {"backend": HARDWARE, "tile_bytes": HARDWARE}, {*PAIRS, "seed"}, JEST_CHOICES),
    Case(
        B3Body,
        B3,
        {
            "partitioner": "metis may not be installed, and louvain takes small graphs only",
            "threads": "only one thread is deterministic",
            "surplus": "the body names no rows to keep apart",
            "engine": SEARCH,
            "precision": SEARCH,
            "memory_budget": HARDWARE,
        },
        {"queries", "positives", "seed"},
        {"edges": EDGES, "last": ("keep", "drop"), "metric": METRICS},
    ),
    Case(
        InfoBatchParameters,
        InfoBatch,
        {
            "size": SESSION,
            "epochs": SESSION,
            "seed": SESSION,
            "sync": "ranks report to the service, not to each other",
            "group": "ranks report to the service, not to each other",
            "device": HARDWARE,
        },
        set(),
        {"form": ("coins", "exact")},
    ),
    Case(AcquisitionParameters, StochasticAcquisition, {}, {"k", "once", "scores"}, {"kind": KINDS}),
    Case(JestParameters, JEST, {"backend": HARDWARE, "tile_bytes": HARDWARE}, set(), JEST_CHOICES),
]

BAD = [
    (StochasticAcquisition, {"beta": -1.0}),
    (JEST, {"filter_ratio": 1.0}),
    (JEST, {"filter_ratio": -0.1}),
    (JEST, {"chunks": 0}),
    (B3, {"batch_size": 0}),
    (B3, {"cluster_size": 0}),
    (B3, {"negatives": -1}),
    (B3, {"similarity_ceiling": np.inf}),
    (ZipFit, {"targets": []}),
    (ZipFit, {"targets": ["a"], "shortlist_fraction": 0.0}),
    (ZipFit, {"targets": ["a"], "shortlist_fraction": 1.1}),
]


@pytest.fixture(params=CASES, ids=lambda case: case.model.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def parameters_of(method: type[Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(method).parameters)


def test_names_are_the_methods(case: Case) -> None:
    fields, parameters = set(case.model.model_fields), set(parameters_of(case.method))
    assert fields - parameters == set(case.added)
    assert parameters - fields == set(case.left_out)
    assert all(case.left_out.values())


def test_defaults_are_the_methods(case: Case) -> None:
    for name, parameter in parameters_of(case.method).items():
        if name in case.model.model_fields:
            default = case.model.model_fields[name].default
            required = default is PydanticUndefined
            assert required == (parameter.default is inspect.Parameter.empty), name
            assert required or default == parameter.default, name


def test_choices_are_the_methods(case: Case) -> None:
    literals = {
        name: get_args(field.annotation)
        for name, field in case.model.model_fields.items()
        if get_origin(field.annotation) is Literal
    }
    assert {name: set(choices) for name, choices in literals.items()} == {
        name: set(choices) for name, choices in case.choices.items()
    }
    texts = {name for name, field in case.model.model_fields.items() if field.annotation is str}
    assert not texts, f"say which texts {texts} may be"


@pytest.mark.parametrize(("method", "parameters"), BAD)
def test_what_the_method_refuses_the_models_refuse(method: type[Any], parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        method(**parameters)
    for case in CASES:
        if case.method is method:
            given = {name: value for name, value in parameters.items() if name in case.model.model_fields}
            with pytest.raises(ValidationError) as refused:
                case.model.model_validate(given)
            assert {error["loc"][0] for error in refused.value.errors() if error["type"] != "missing"}
