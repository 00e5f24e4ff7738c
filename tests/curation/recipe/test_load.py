"""The recipe: what is refused, at which line, and what its hash is made of."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from curation.errors import RecipeError
from curation.pipelines import Align
from curation.recipe import FileSource, Recipe, StdlibSource, StepOrderError, check_order, load_recipe, recipe_sha256

GOOD = """\
source:
  format: parquet
  path: a.parquet
steps:
  - step: score
    column: x
  - step: acquire
    count: 3
"""


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


BAD = {
    "unknown key": (GOOD + "sead: 1\n", 9, "sead: unknown key"),
    "unknown key in the source": (changed("path: a", "columms: {}\n  path: a"), 3, "source.columms: unknown key"),
    "unknown key in a step": (changed("count: 3", "cuont: 3"), 8, "steps.2.cuont: unknown key"),
    "unknown key of a resource": (
        changed("column: x", "column: x\n    resources:\n      cpus: 2\n      gpu: 1"),
        9,
        "steps.1.resources.gpu: unknown key",
    ),
    "key of another source": (changed("path: a.parquet", "path: a\n  content: pair"), 4, "source.content: unknown key"),
    "repeated key": (GOOD + "seed: 1\nseed: 2\n", 10, "the key 'seed' stands here twice"),
    "repeated key in a step": (changed("count: 3", "count: 3\n    count: 4"), 9, "the key 'count' stands here twice"),
    "key that is a list": (GOOD + "? [a]\n: 3\n", 9, "a key must be text"),
    "not YAML": (GOOD + "seed: [\n", 10, "expected the node content"),
    "tab": (GOOD + "\tseed: 1\n", 9, "found character '\\t'"),
    "wrong type": (changed("count: 3", "count: many"), 8, "steps.2.count: Input should be a valid integer"),
    "list for a mapping": (
        changed("parquet\n  path: a.parquet", "parquet\n  path: a\n  columns: [a]"),
        4,
        "source.columns",
    ),
    "mapping for a list": (
        GOOD[: GOOD.index("steps")] + "steps:\n  step: dedup\n",
        4,
        "steps: Input should be a valid list",
    ),
    "text for a step": (changed("count: 3", "count: 3\n  - dedup"), 9, "steps.3: "),
    "count of zero": (changed("count: 3", "count: 0"), 8, "steps.2.count: Input should be greater than or equal to 1"),
    "fraction above 1": (changed("count: 3", "fraction: 1.5"), 8, "steps.2.fraction: Input should be less than or"),
    "beta below 0": (changed("count: 3", "count: 3\n    beta: -1"), 9, "steps.2.beta"),
    "beta not a number": (changed("count: 3", "count: 3\n    beta: .nan"), 9, "steps.2.beta"),
    "threshold not a number": (changed("count: 3", "kind: threshold\n    threshold: .nan"), 9, "steps.2.threshold"),
    "negative seed": (GOOD + "seed: -1\n", 9, "seed: Input should be greater than or equal to 0"),
    "shards of nothing": (GOOD + "output:\n  rows_per_shard: 0\n", 10, "output.rows_per_shard"),
    "blocks of nothing": (GOOD + "block_rows: 0\n", 9, "block_rows"),
    "unknown choice": (GOOD + "on_bad_row: skip\n", 9, "on_bad_row: Input should be 'stop' or 'quarantine'"),
    "unknown kind": (changed("count: 3", "count: 3\n    kind: best"), 9, "steps.2.kind"),
    "unknown step": (
        changed("step: acquire", "step: aquire"),
        7,
        "steps.2.step: there is no 'aquire', only 'acquire', 'align'",
    ),
    "unknown format": (
        changed("format: parquet", "format: csv"),
        2,
        "source.format: there is no 'csv', only 'parquet'",
    ),
    "step without its name": (changed("step: score", "name: score"), 5, "steps.1: lacks the key 'step'"),
    "source without format": (changed("format: parquet", "columns: {a: b}"), 1, "source: lacks the key 'format'"),
    "source without path": (changed("\n  path: a.parquet", ""), 1, "source.path: this key must be there"),
    "no source": (GOOD[GOOD.index("steps") :], 1, "source: this key must be there"),
    "no steps": (GOOD[: GOOD.index("steps")], 1, "steps: this key must be there"),
    "empty steps": (GOOD[: GOOD.index("steps")] + "steps: []\n", 4, "steps: List should have at least 1 item"),
    "steps of nothing": (GOOD[: GOOD.index("steps")] + "steps:\n", 4, "steps: Input should be a valid list"),
    "no path": (changed("a.parquet", "[]"), 3, "source.path"),
    "empty path": (changed("a.parquet", "''"), 3, "source.path"),
    "no columns": (changed("a.parquet", "a\n  columns: {}"), 4, "source.columns"),
    "column of nothing": (changed("a.parquet", "a\n  columns:\n    b:"), 5, "source.columns.b"),
    "column and function": (changed("column: x", "column: x\n    function: a:b"), 5, "steps.1: give either `column`"),
    "neither": (changed("column: x", "name: x"), 5, "steps.1: give either `column` or `function`"),
    "not a function": (changed("column: x", "function: nonsense"), 6, "steps.1.function"),
    "parameters of a column": (changed("column: x", "column: x\n    parameters: {a: 1}"), 5, "`parameters` go with"),
    "count and fraction": (changed("count: 3", "count: 3\n    fraction: 0.5"), 7, "either `count` or `fraction`"),
    "neither count nor fraction": (changed("count: 3", "kind: power"), 7, "either `count` or `fraction`"),
    "threshold with a count": (changed("count: 3", "kind: threshold\n    count: 3"), 7, "takes `threshold`"),
    "threshold in groups": (
        changed("count: 3", "kind: threshold\n    threshold: 1\n    per: x"),
        7,
        "the same in every group",
    ),
    "threshold of a draw": (changed("count: 3", "count: 3\n    threshold: 1"), 7, "goes with kind: threshold"),
    "acquire without a score": (
        changed("  - step: score\n    column: x\n", "  - step: dedup\n"),
        6,
        "steps.2: step 2 (acquire) has no score to choose by: put an `align` or `score` step before it",
    ),
    "acquire by an unknown score": (
        changed("count: 3", "count: 3\n    score: y"),
        7,
        "steps.2: step 2 (acquire) chooses by 'y', but the steps before it make only score",
    ),
    "acquire before its score": (
        changed("count: 3", "score: y\n    count: 3") + "  - step: score\n    column: z\n    name: y\n",
        7,
        "chooses by 'y'",
    ),
    "a score made twice": (
        GOOD + "  - step: align\n    name: score\n    targets: {format: stdlib}\n",
        9,
        "step 3 (align) makes the score 'score', which an earlier step has made",
    ),
    "targets of an unknown format": (
        GOOD + "  - step: align\n    targets:\n      path: x\n      format: txt\n",
        12,
        "steps.3.targets.format: there is no 'txt'",
    ),
    "key of the targets": (
        GOOD + "  - step: align\n    targets:\n      format: jsonl\n      path: x\n      column: x\n",
        13,
        "steps.3.targets.column: unknown key",
    ),
    "number for a key": (GOOD + "1: 2\n", 9, "a key must be text: put numbers"),
    "word that YAML reads as true": (GOOD + "yes: 2\n", 9, "a key must be text"),
}


@pytest.mark.parametrize(("text", "line", "message"), BAD.values(), ids=BAD)
def test_a_bad_recipe_is_refused_with_file_line_and_key(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    lines = str(caught.value).splitlines()
    assert any(one.startswith(f"{tmp_path / 'recipe.yaml'}:{line}: ") and message in one for one in lines), lines


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n", "null\n"])
def test_a_recipe_is_a_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe.yaml: a recipe is a mapping with the keys source, steps"):
        load(tmp_path, text)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, changed("count: 3", "cuont: 3").replace("column: x", "colunm: x") + "seed: x\n")
    places = [
        line.removeprefix(f"{tmp_path / 'recipe.yaml'}:").split(":")[0] for line in str(caught.value).splitlines()
    ]
    assert set(places) >= {"6", "8", "9"}


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone.yaml: cannot be read: .*No such file"):
        load_recipe(tmp_path / "gone.yaml")
    with pytest.raises(RecipeError, match="cannot be read: .*Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("seed: é".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin.yaml: cannot be read: .*can't decode"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "control.yaml").write_bytes(b"seed: \x07")
    with pytest.raises(RecipeError, match=r"control.yaml: not YAML: "):
        load_recipe(tmp_path / "control.yaml")


def test_relative_paths_are_the_recipes_folder_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir("/")
    text = changed("a.parquet", "[a.parquet, ../b/*.parquet, /c, ~/d, s3://bucket/e]").replace(
        "step: score\n    column: x", "step: align\n    targets: {format: jsonl, path: t.jsonl}"
    )
    (tmp_path / "deep").mkdir()
    recipe = load(tmp_path / "deep", text)
    assert isinstance(recipe.source, FileSource)
    folder = tmp_path / "deep"
    assert recipe.source.path == [
        f"{folder}/a.parquet",
        f"{folder}/../b/*.parquet",
        "/c",
        "/home/someone/d",
        "s3://bucket/e",
    ]
    (align, _) = recipe.steps
    assert isinstance(align, Align)
    assert isinstance(align.targets, FileSource)
    assert align.targets.path == [f"{folder}/t.jsonl"]


def test_defaults_and_the_standard_library(tmp_path: Path) -> None:
    recipe = load(tmp_path, changed("  format: parquet\n  path: a.parquet", "  format: stdlib\n  packages: [json]"))
    assert recipe.source == StdlibSource(format="stdlib", packages=["json"])
    assert (recipe.seed, recipe.on_bad_row, recipe.block_rows) == (0, "stop", 16_384)
    assert recipe.output.rows_per_shard == 50_000
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_yaml_anchors_and_merges(tmp_path: Path) -> None:
    text = """\
source: &files {format: jsonl, path: /a}
steps:
  - &first {step: align, targets: *files}
  - {<<: *first, name: again}
  - {step: acquire, count: 1, beta: .inf}
"""
    recipe = load(tmp_path, text)
    assert [getattr(step, "name", None) for step in recipe.steps] == ["alignment", "again", None]


def recipe_of(**changes: Any) -> Recipe:
    return Recipe.model_validate(yaml.safe_load(GOOD) | changes)


def test_the_hash_is_made_of_what_decides_the_result() -> None:
    plain = recipe_of()
    steps = yaml.safe_load(GOOD)["steps"]
    slower = [step | {"resources": {"cpus": 4, "gpus": 1, "memory_mib": 512}} for step in steps]
    assert recipe_of(steps=slower).sha256() == plain.sha256()
    assert recipe_of(seed=0, on_bad_row="stop").sha256() == plain.sha256()
    assert recipe_of(resources={"cpus": 2}, output={"resources": {"memory_mib": 4096}}).sha256() == plain.sha256()
    before = plain.model_dump(mode="json", exclude={"block_bytes": True, "resources": True, "output": {"resources"}})
    assert recipe_sha256(before) == plain.sha256()
    # As every release has hashed what stands in a manifest: a parameter that is null counts, too.
    steps = [{key: value for key, value in step.items() if key != "resources"} for step in before["steps"]]
    assert any(value is None for step in steps for value in step.values())
    written = json.dumps({**before, "steps": steps}, sort_keys=True)
    assert recipe_sha256(before) == hashlib.sha256(written.encode()).hexdigest()
    others = [
        recipe_of(seed=1),
        recipe_of(block_rows=8),
        recipe_of(block_bytes=8),
        recipe_of(on_bad_row="quarantine"),
        recipe_of(output={"rows_per_shard": 8}),
        recipe_of(source={"format": "parquet", "path": "b.parquet"}),
        recipe_of(steps=steps[:1]),
        recipe_of(steps=[steps[0], steps[1] | {"beta": 2}]),
        recipe_of(steps=[steps[0], steps[1] | {"beta": float("inf")}]),
    ]
    assert len({recipe.sha256() for recipe in [plain, *others]}) == len(others) + 1


def test_a_recipe_survives_json() -> None:
    steps = yaml.safe_load(GOOD)["steps"]
    recipe = recipe_of(steps=[steps[0], steps[1] | {"beta": float("inf")}])
    again = Recipe.model_validate_json(recipe.model_dump_json())
    assert again == recipe
    assert again.sha256() == recipe.sha256()


def test_the_order_of_steps_can_be_checked_alone() -> None:
    recipe = recipe_of()
    check_order(recipe.steps)
    with pytest.raises(StepOrderError, match=r"step 1 \(acquire\)") as caught:
        check_order(recipe.steps[1:])
    assert caught.value.number == 1
