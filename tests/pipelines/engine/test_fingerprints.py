"""Fingerprints change with what they name, and with nothing else."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.errors import StepError
from curation.pipelines.engine import fingerprints
from curation.pipelines.engine.fingerprints import changes, code, contents, packages, paths
from curation.pipelines.engine.functions import expect, load_function
from curation.pipelines.steps.align import Align
from curation.pipelines.steps.embed import Embed
from curation.pipelines.steps.score import Score

MAIN = """
import json
import numpy
from . import words
from .deep.most import depth

def score(table):
    import scorer_lazy
    return [float(scorer_lazy.VALUE)]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``scorer`` and a module that it imports in a function, in a folder of their own."""
    (tmp_path / "scorer" / "deep").mkdir(parents=True)
    (tmp_path / "scorer" / "__init__.py").write_text("")
    (tmp_path / "scorer" / "main.py").write_text(MAIN)
    (tmp_path / "scorer" / "words.py").write_text("import pyarrow\n")
    (tmp_path / "scorer" / "other.py").write_text("")
    (tmp_path / "scorer" / "deep" / "__init__.py").write_text("from ..words import pyarrow\n")
    (tmp_path / "scorer" / "deep" / "most.py").write_text("depth = 1\n")
    (tmp_path / "scorer_lazy.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("scorer")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("scorer/main.py", True),
        ("scorer/__init__.py", True),
        ("scorer/words.py", True),
        ("scorer/deep/__init__.py", True),
        ("scorer/deep/most.py", True),
        ("scorer_lazy.py", True),
        ("scorer/other.py", False),
    ],
)
def test_code_is_all_that_a_function_imports(package: Path, file: str, counts: bool) -> None:
    before = code("scorer.main:score")
    assert before == code("scorer.main:score")
    with (package / file).open("a") as out:
        out.write("\n# edited\n")
    assert (code("scorer.main:score") != before) == counts


def test_installed_packages_count_by_version(package: Path) -> None:
    marks = code("scorer.main:score")
    assert {"numpy", "pyarrow"} <= marks.keys()
    assert marks["numpy"] == packages("numpy")["numpy"]
    assert set(code("json:dumps")) == {"python"}
    assert set(code("curation.selectors.zipfit:ZipFit")) == {"curation"}
    assert code("sklearn.metrics:f1_score")["scikit-learn"] == packages("scikit-learn")["scikit-learn"]


def test_an_edited_function_is_loaded_anew_and_never_in_the_middle_of_a_step(package: Path) -> None:
    name = "scorer_lazy:VALUE"
    assert load_function(name) == 1
    before = code(name)
    # As long as the first, in the same second: what Python's own bytecode cache cannot tell apart.
    (package / "scorer_lazy.py").write_text("VALUE = 2\n")
    assert load_function(name) == 2
    assert code(name) != before
    expect(before)
    try:
        with pytest.raises(StepError, match="scorer_lazy:VALUE was edited while the run used it"):
            load_function(name)
    finally:
        expect({})


def test_files_and_folders_by_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "weights.bin").write_bytes(b"a" * 100)
    (model / "1_Pooling" / "config.json").write_text("{}")
    first = contents(model)
    (model / ".cache").mkdir()
    (model / ".cache" / "lock").touch()
    (model / "weights.bin").touch()
    assert contents(model) == first
    assert paths({"model": "model", "words": ["model/weights.bin", "no such file", "x" * 5000], "n": 3}).keys() == {
        "model",
        "model/weights.bin",
    }
    (model / "weights.bin").rename(model / "other.bin")
    assert contents(model) != first


def test_what_steps_depend_on(tmp_path: Path, package: Path) -> None:
    target = tmp_path / "target.jsonl"
    target.write_text('{"text": "a"}\n')
    align = Align.model_validate({"targets": {"format": "jsonl", "path": str(target)}, "codec": "gzip"})
    before = align.depends()
    assert before.keys() == {str(target), "zlib"}
    target.write_text('{"text": "b"}\n')
    assert align.depends()[str(target)] != before[str(target)]
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert str(model) in Embed(teacher=f"sentence-transformers:{model}").depends()
    assert {"scorer.main:score", str(target)} <= Score(
        function="scorer.main:score", parameters={"list": str(target)}
    ).depends().keys()
    teacher = Embed(teacher="scorer.main:score")
    assert "scorer.main:score" in teacher.depends()
    assert not teacher.draws
    assert Embed().draws


class OwnScore(Score):
    """Somebody's step, made from one of ours."""


class OwnEmbed(Embed):
    """Likewise."""


def test_a_class_made_from_our_step_depends_on_its_own_code(package: Path) -> None:
    assert OwnScore(column="quality").functions == (f"{__name__}:OwnScore",)
    named = OwnScore(function="scorer.main:score")
    assert named.functions == (f"{__name__}:OwnScore", "scorer.main:score")
    assert set(named.functions) <= named.depends().keys()
    assert OwnEmbed().functions == (f"{__name__}:OwnEmbed",)
    assert OwnEmbed(teacher="scorer.main:score").functions == (f"{__name__}:OwnEmbed", "scorer.main:score")


def test_what_was_typed_into_a_notebook_is_never_taken_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    assert fingerprints.code("__main__:Typed") != fingerprints.code("__main__:Typed")


def test_changes_in_words() -> None:
    before = {"torch": "2.12", "a.json": "sha256:1", "count": 5, "same": 1, "targets": {"format": "texts"}}
    now = {"torch": "2.13", "a.json": "sha256:2", "count": 9, "same": 1, "targets": {"format": "jsonl"}}
    assert changes(before, now) == [
        "a.json changed",
        "count is 9, and was 5",
        "targets changed",
        "torch is 2.13, and was 2.12",
    ]
    assert changes(now, now) == []
