"""The error tree."""

import inspect
import pickle

import pytest

from curation import errors

TREE = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, errors.CurationError) and value is not errors.CurationError
]


def test_every_error_has_an_exit_code_that_the_tree_shows() -> None:
    assert errors.__doc__ is not None
    shown = {}
    for line in errors.__doc__.splitlines():
        if "exit code" in line:
            words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
            shown[words[0]] = int(words[-1])
    assert shown == {error.__name__: error.exit_code for error in TREE}
    assert {error.exit_code for error in TREE}.isdisjoint({0, 2, 130})
    own = [error.exit_code for error in TREE if error is not errors.BadRowError]
    assert len(set(own)) == len(own)


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_errors_travel_between_processes(error: type[errors.CurationError]) -> None:
    made = error("a.jsonl", 3, "text is empty") if error is errors.BadRowError else error("what, where, what to do")
    back = pickle.loads(pickle.dumps(made))
    assert type(back) is error
    assert str(back) == str(made)
    assert vars(back) == vars(made)


def test_a_bad_row_says_where_why_and_what_to_do() -> None:
    error = errors.BadRowError("a.jsonl", 3, "text is empty")
    assert str(error) == (
        "a.jsonl, row 3: text is empty. "
        "Fix the row, or set `on_bad_row: quarantine` in the recipe to set such rows aside."
    )
    assert isinstance(error, errors.SourceError)
    assert issubclass(errors.RecipeError, ValueError)
