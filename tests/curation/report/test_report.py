"""The report: right numbers, nothing from data acts, nothing is fetched, same bytes for the same dataset."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from curation.dataset.manifest import REPORT, Manifest
from curation.recipe import Recipe
from curation.report import in_words, render, write_report

Finished = Callable[..., tuple[Path, Manifest]]

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
    out, manifest = finished()
    page = Page(render(out, manifest))
    assert "60 of 400 rows kept" in page.text
    assert in_words(manifest) == (
        "400 rows of source.parquet were scored by value, then freed of repeated text, then cut to the 60 with the "
        "highest quality."
    )
    for reason in ("kept", "bad row", "2. dedup: duplicate", "3. acquire: below the cut"):
        assert reason in page.text
    assert manifest.recipe_sha256 in page.text
    assert manifest.inputs[0].path in page.text
    assert all(name in page.text for name in manifest.files)
    assert list(page.figures) == ["figure-flow", "figure-score-1", "figure-mix"]


def test_figures_add_up(finished: Finished) -> None:
    out, manifest = finished()
    figures = Page(render(out, manifest)).figures
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
    out, manifest = finished(kind="softmax")
    page = Page(render(out, manifest))
    assert page.figures["figure-score-1"]["layout"]["shapes"] == []
    assert "has no single cut" in page.text
    assert "Lowest that passed" in page.text


def test_text_from_data_does_not_act(finished: Finished) -> None:
    out, manifest = finished(texts=dict.fromkeys((*range(0, 400, 3), *range(1, 400, 3)), HOSTILE))
    assert HOSTILE not in render(out, manifest)
    page = Page(render(out, manifest))
    assert HOSTILE in page.text
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert "img" not in [tag for tag, _ in page.elements]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_labels_from_data_do_not_act_in_figures(finished: Finished) -> None:
    out, manifest = finished(sources=("<b>bold</b>", "</script>", "plain"))
    page = Page(render(out, manifest))
    assert len(page.scripts) == 3
    assert "&lt;b&gt;bold&lt;/b&gt;" in page.figures["figure-mix"]["layout"]["yaxis"]["ticktext"]


def test_nothing_is_fetched_and_only_own_scripts_run(finished: Finished) -> None:
    out, manifest = finished()
    page = Page(render(out, manifest))
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
    out, manifest = finished()
    page = Page(render(out, manifest))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table") > 4
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {a["href"][1:] for tag, a in page.elements if tag == "a"} <= ids
    assert set(page.figures) <= ids


def test_the_same_dataset_gives_the_same_bytes(finished: Finished) -> None:
    out, manifest = finished()
    write_report(out, manifest)
    first = (out / REPORT).read_bytes()
    write_report(out, manifest)
    assert (out / REPORT).read_bytes() == first
    assert [path.name for path in out.iterdir() if path.name.endswith(".tmp")] == []


def test_a_source_that_is_gone_leaves_a_report(finished: Finished) -> None:
    out, manifest = finished(keep=200)
    (out.parent / "source.parquet").unlink()
    page = Page(render(out, manifest))
    assert "The source cannot be read any more" in page.text
    assert "the text cannot be shown" in page.text
    assert "figure-mix" not in page.figures


def test_many_values_are_folded(finished: Finished) -> None:
    out, manifest = finished(sources=tuple(f"site-{number:02d}" for number in range(30)))
    page = Page(render(out, manifest))
    labels = page.figures["figure-mix"]["layout"]["yaxis"]["ticktext"]
    assert len(labels) == 12
    assert "(other)" in page.text
    assert "The table has the 18 others in one row." in page.text


def test_a_dataset_without_a_column_to_mix_by(finished: Finished) -> None:
    out, manifest = finished(sources=None)
    assert "figure-mix" not in Page(render(out, manifest)).figures


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"step": "acquire", "kind": "threshold", "threshold": 0.5}, "cut to s of at least 0.5"),
        ({"step": "acquire", "fraction": 0.1, "per": "source"}, "cut to the 10 % with the highest s in each source"),
        ({"step": "acquire", "kind": "power", "count": 9, "beta": 2}, "cut to a draw of 9 by s (power, beta 2)"),
        ({"step": "dedup", "column": "code"}, "freed of repeated code"),
    ],
)
def test_steps_in_words(finished: Finished, step: dict[str, Any], words: str) -> None:
    _, manifest = finished()
    align = {"step": "align", "name": "s", "targets": {"format": "stdlib", "packages": ["json"]}}
    recipe = Recipe.model_validate({"source": {"format": "stdlib"}, "steps": [align, step]})
    told = in_words(manifest.model_copy(update={"recipe": recipe.model_dump(mode="json")}))
    assert told == (
        "400 rows of the Python standard library were scored by how well their text compresses with the targets "
        f"(ZIP-FIT, lz4), then {words}."
    )


def test_a_grouping_recipe_in_words(finished: Finished) -> None:
    _, manifest = finished()
    source = {"format": "stdlib", "content": "pair"}
    steps = [{"step": "embed"}, {"step": "b3", "batch_size": 64, "cluster_size": 8}]
    recipe = Recipe.model_validate({"source": source, "steps": steps}).model_dump(mode="json")
    assert in_words(manifest.model_copy(update={"recipe": recipe})) == (
        "400 rows of the Python standard library were embedded by tfidf, then grouped into batches of 64 (B3)."
    )
