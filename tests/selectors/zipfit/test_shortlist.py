"""The shortlist: what it estimates from, what it finds, and that it says so honestly."""

import ast
import importlib
import inspect

import numpy as np
import pyarrow as pa
import pytest

from curation import ZipFit
from curation.selectors.zipfit import shortlist

MODULES = [
    "argparse",
    "configparser",
    "decimal",
    "doctest",
    "email.message",
    "ftplib",
    "imaplib",
    "inspect",
    "mailbox",
    "pdb",
    "pickle",
    "random",
    "smtplib",
    "subprocess",
    "tarfile",
    "typing",
    "unittest.case",
    "urllib.request",
    "zipfile",
]


def functions_and_docstrings() -> tuple[list[str], list[str]]:
    functions, docstrings = [], []
    for name in MODULES:
        source = inspect.getsource(importlib.import_module(name))
        lines = source.splitlines(keepends=True)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                functions.append("".join(lines[node.lineno - 1 : node.end_lineno]))
                docstrings.append(ast.get_docstring(node) or "")
    return functions, [text for text in docstrings if len(text) > 80][::8]


def test_recall_on_real_text() -> None:
    functions, docstrings = functions_and_docstrings()
    assert len(functions) > 1_200
    assert len(docstrings) > 50
    selector = ZipFit(targets=docstrings, mode="shortlist", shortlist_fraction=0.05)
    k = len(functions) // 100
    assert selector.recall(functions, k) >= 0.95
    shortlist, exact = selector.select(functions, k), ZipFit(targets=docstrings).score(functions)
    np.testing.assert_array_equal(shortlist.scores, exact[shortlist.indices])
    assert np.all(np.diff(shortlist.scores) <= 0)
    assert shortlist.size == len(functions)


def test_recall_of_a_fraction_that_holds_everything_is_one() -> None:
    texts = [f"value {i} is {i * i % 97}, which is {i % 7}" for i in range(200)]
    selector = ZipFit(targets=texts[:30], mode="shortlist", shortlist_fraction=1.0)
    assert selector.recall(texts, 40) == 1


def test_recall_counts_what_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"value {i} is {i * i % 97}, which is {i % 7}" for i in range(200)]
    selector = ZipFit(targets=texts[:30], mode="shortlist", shortlist_fraction=0.01)
    monkeypatch.setattr(shortlist, "highest", lambda scores, count: np.arange(count))
    exact = ZipFit(targets=texts[:30]).select(texts, 5)
    assert selector.recall(texts, 5) == np.isin(exact.indices, np.arange(10)).mean() < 1


def test_columns_give_the_mean() -> None:
    random = np.random.default_rng(3)
    factors = random.normal(size=(400, 3))
    distances = 0.8 + factors @ random.normal(size=(3, 50)) * 0.05
    columns, weights = shortlist.pick_columns(distances, 5)
    assert len(set(columns.tolist())) == len(columns) == len(weights)
    other = 0.8 + random.normal(size=(100, 3)) @ np.linalg.lstsq(factors, distances - 0.8)[0]
    error = other[:, columns] @ weights - other.mean(axis=1)
    assert error.std() < 1e-9


def test_columns_of_a_degenerate_matrix() -> None:
    columns, weights = shortlist.pick_columns(np.ones((4, 3)), 24)
    assert sorted(columns.tolist()) == [0, 1, 2]
    assert np.isfinite(weights).all()


def test_highest_breaks_ties_by_position() -> None:
    assert shortlist.highest(np.array([1.0, 3, 3, 0, 3]), 2).tolist() == [1, 2]


def test_a_stream_is_read_again_from_disk() -> None:
    texts = [f"text {i}: π" for i in range(3_000)]
    with shortlist.rereadable(text for text in texts) as column:
        assert isinstance(column, pa.ChunkedArray)
        assert column.to_pylist() == texts
        assert column.take(np.array([5, 2_999])).to_pylist() == [texts[5], texts[2_999]]
