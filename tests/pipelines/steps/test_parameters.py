"""A parameter that a step shares with a method has the method's default and the method's choices."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

import pytest

from curation import B3, StochasticAcquisition, ZipFit
from curation.gpu.knn import ENGINES, METRICS
from curation.pipelines import Acquire, Align, MineB3, Step
from curation.pipelines.steps import STEPS, step_class
from curation.selectors.acquisition import KINDS
from curation.selectors.b3 import method as b3
from curation.selectors.b3.batches import LAST, SURPLUS
from curation.selectors.b3.partition import PARTITIONERS
from curation.selectors.zipfit.codecs import CODECS

# Step, method, the method's fields that a recipe does not have, and why.
PAIRS: list[tuple[type[Step], type[Any], dict[str, str]]] = [
    (
        Align,
        ZipFit,
        {
            "mode": "select's; a recipe scores every row",
            "shortlist_fraction": "the same",
            "threads": "resources.cpus",
        },
    ),
    (
        MineB3,
        B3,
        {
            "threads": "only one is deterministic, and a run must be",
            "precision": "float32: the ranks of parts are merged exactly",
            "memory_budget": "resources.memory_mib",
        },
    ),
    (Acquire, StochasticAcquisition, {}),
]
CHOICES = {
    (Align, "codec"): tuple(CODECS),
    (MineB3, "edges"): b3.EDGES,
    (MineB3, "partitioner"): tuple(PARTITIONERS),
    (MineB3, "engine"): ENGINES,
    (MineB3, "metric"): METRICS,
    (MineB3, "last"): LAST,
    (MineB3, "surplus"): SURPLUS,
    (Acquire, "kind"): ("top-k", "threshold", *KINDS),
}
# Where a recipe's default is its own.
OWN_DEFAULT = {(Acquire, "kind"): "top-k"}


@pytest.mark.parametrize(("step", "method", "left_out"), PAIRS, ids=lambda value: getattr(value, "__name__", ""))
def test_fields_and_defaults(step: type[Step], method: type[Any], left_out: dict[str, str]) -> None:
    fields = {field.name: field for field in dataclasses.fields(method)}
    assert set(fields) - set(step.model_fields) == set(left_out)
    shared = set(fields) & set(step.model_fields)
    assert shared
    for name in shared - {"targets"}:
        expected = OWN_DEFAULT.get((step, name), fields[name].default)
        assert step.model_fields[name].default == expected, name


@pytest.mark.parametrize(("step", "name"), CHOICES, ids=lambda value: getattr(value, "__name__", value))
def test_choices(step: type[Step], name: str) -> None:
    annotation = step.model_fields[name].annotation
    assert get_origin(annotation) is Literal
    assert set(get_args(annotation)) == set(CHOICES[step, name])


def test_every_choice_of_a_shared_field_is_compared() -> None:
    for step, method, _ in PAIRS:
        for field in dataclasses.fields(method):
            shared = step.model_fields.get(field.name)
            if shared is not None and get_origin(shared.annotation) is Literal:
                assert (step, field.name) in CHOICES


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_called_in_a_recipe_what_the_table_calls_it(name: str) -> None:
    assert step_class(name).model_fields["step"].default == name
