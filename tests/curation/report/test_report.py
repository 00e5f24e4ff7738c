"""The report: right numbers, nothing from data acts, nothing is fetched, same bytes for the same dataset."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from pydantic import ValidationError

from curation.dataset import Dataset
from curation.dataset.manifest import REPORT, ReportTable
from curation.recipe import Recipe
from curation.report import in_words, render, write_report

from ..conftest import Finished

HOSTILE = '</script><script>alert("owned")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Elements, the text of scripts and styles, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open.append(tag)
            if tag == "script":
                self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open == ["script"]:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif not self._open:
            self.text += data

    @property
    def figures(self) -> dict[str, Any]:
        found = json.loads(self.scripts[0][1])
        return {figure["id"]: figure for figure in found}


def test_it_says_what_was_done(finished: Finished) -> None:
    dataset = finished()
    page = Page(render(dataset))
    assert "60 of 400 rows kept" in page.text
    assert in_words(dataset.manifest) == (
        "400 rows of source.parquet were scored by value, then freed of repeated text, then cut to the 60 with the "
        "highest quality."
    )
    for reason in ("kept", "bad row", "2. dedup: same text as an earlier row", "3. acquire: below the cut"):
        assert reason in page.text
    assert dataset.manifest.recipe_sha256 in page.text
    assert dataset.manifest.inputs[0].path in page.text
    assert all(name in page.text for name in dataset.manifest.files)
    assert list(page.figures) == ["figure-flow", "figure-score-1", "figure-mix"]


def test_figures_add_up(finished: Finished) -> None:
    dataset = finished()
    figures = Page(render(dataset)).figures
    on, dropped = figures["figure-flow"]["data"]
    assert on["x"] == [399, 399, 360, 60]
    assert dropped["x"] == [1, 0, 39, 300]
    kept, others = figures["figure-score-1"]["data"]
    assert sum(kept["y"]) == 60
    assert sum(others["y"]) == 339
    cut = figures["figure-score-1"]["layout"]["shapes"][0]["x0"]
    edge = [left for left, width, rows in zip(kept["x"], kept["width"], kept["y"], strict=True) if rows]
    assert min(edge) - kept["width"][0] <= cut
    before, after = figures["figure-mix"]["data"]
    assert sum(before["x"]) == pytest.approx(100)
    assert sum(after["x"]) == pytest.approx(100)


def test_a_draw_has_no_line_for_a_cut(finished: Finished) -> None:
    dataset = finished(kind="softmax")
    page = Page(render(dataset))
    assert page.figures["figure-score-1"]["layout"]["shapes"] == []
    assert "has no single cut" in page.text
    assert "Lowest that passed" in page.text


def test_text_from_data_does_not_act(finished: Finished) -> None:
    dataset = finished(texts=dict.fromkeys((*range(0, 400, 3), *range(1, 400, 3)), HOSTILE))
    assert HOSTILE not in render(dataset)
    page = Page(render(dataset))
    assert HOSTILE in page.text
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert "img" not in [tag for tag, _ in page.elements]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_labels_from_data_do_not_act_in_figures(finished: Finished) -> None:
    dataset = finished(sources=("<b>bold</b>", "</script>", "plain"))
    page = Page(render(dataset))
    assert len(page.scripts) == 3
    assert "&lt;b&gt;bold&lt;/b&gt;" in page.figures["figure-mix"]["layout"]["yaxis"]["ticktext"]


def test_nothing_is_fetched_and_only_own_scripts_run(finished: Finished) -> None:
    dataset = finished()
    page = Page(render(dataset))
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    scripts = [text for attributes, text in page.scripts if "type" not in attributes]
    assert hashes == [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]


def test_every_table_has_a_caption_and_every_link_a_target(finished: Finished) -> None:
    dataset = finished()
    page = Page(render(dataset))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table") > 4
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {a["href"][1:] for tag, a in page.elements if tag == "a"} <= ids
    assert set(page.figures) <= ids


def test_the_same_dataset_gives_the_same_bytes(finished: Finished) -> None:
    dataset = finished()
    write_report(dataset)
    first = (dataset.folder / REPORT).read_bytes()
    write_report(dataset)
    assert (dataset.folder / REPORT).read_bytes() == first
    assert [path.name for path in dataset.folder.iterdir() if path.name.endswith(".tmp")] == []


def test_a_source_that_is_gone_leaves_a_report(finished: Finished) -> None:
    dataset = finished(keep=200)
    (dataset.folder.parent / "source.parquet").unlink()
    page = Page(render(dataset))
    assert "The source cannot be read any more" in page.text
    assert "the text cannot be shown" in page.text
    assert "figure-mix" not in page.figures


def test_many_values_are_folded(finished: Finished) -> None:
    dataset = finished(sources=tuple(f"site-{number:02d}" for number in range(30)))
    page = Page(render(dataset))
    labels = page.figures["figure-mix"]["layout"]["yaxis"]["ticktext"]
    assert len(labels) == 12
    assert "(other)" in page.text
    assert "The table has the 18 others in one row." in page.text


def test_a_dataset_without_a_column_to_mix_by(finished: Finished) -> None:
    dataset = finished(sources=None)
    assert "figure-mix" not in Page(render(dataset)).figures


def test_a_step_that_does_not_say_what_it_did_is_named(finished: Finished) -> None:
    manifest = finished().manifest
    steps = [manifest.steps[0].model_copy(update={"did": ""}), manifest.steps[1]]
    assert in_words(manifest.model_copy(update={"steps": steps})) == (
        "400 rows of source.parquet were taken through score, then freed of repeated text."
    )


def test_the_standard_library_and_many_files_in_words(finished: Finished) -> None:
    manifest = finished().manifest
    recipe = Recipe.model_validate({"source": {"format": "stdlib"}, "steps": [{"step": "dedup"}]})
    stdlib = manifest.model_copy(update={"recipe": recipe.model_dump(mode="json")})
    assert in_words(stdlib).startswith("400 rows of the Python standard library were scored by value, then")
    assert in_words(manifest.model_copy(update={"inputs": manifest.inputs * 2})).startswith("400 rows of 2 files were")


def test_tables_of_steps(finished: Finished) -> None:
    dataset = finished()
    assert "Steps" not in re.findall(r"<h2[^>]*>([^<]*)", render(dataset))
    table = ReportTable(title=HOSTILE, columns=[HOSTILE, "#rows", "#share"], rows=[[HOSTILE, 1234567, 0.123456]])
    empty = ReportTable(title="nothing", columns=["a"], rows=[])
    steps = [dataset.manifest.steps[0].model_copy(update={"tables": [table, empty]}), *dataset.manifest.steps[1:]]
    text = render(Dataset(dataset.folder, manifest=dataset.manifest.model_copy(update={"steps": steps})))
    assert HOSTILE not in text
    page = Page(text)
    assert "1. score" in page.text
    assert page.text.count(HOSTILE) == 3
    assert "1,234,567" in page.text
    assert "0.1235" in page.text
    assert [a.get("class") for tag, a in page.elements if tag == "td"].count("number") >= 2
    assert {tag for tag, a in page.elements if a.get("href") == "#steps"} == {"a"}


@pytest.mark.parametrize(("columns", "row"), [(["a", "b"], ["x"]), (["a"], ["x", 1]), ([], [])])
def test_a_table_has_a_cell_for_each_column(columns: list[str], row: list[str | int]) -> None:
    with pytest.raises(ValidationError):
        ReportTable(title="t", columns=columns, rows=[row])
