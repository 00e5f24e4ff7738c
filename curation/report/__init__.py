"""Report: what was done to a dataset, drawn, as ``report.html``. One file, no network.

Counts, histograms and the rows shown are read off ``decisions.arrow`` in a few streaming passes. Text from data is
escaped, and a Content-Security-Policy allows only the page's own scripts, by their hashes.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from curation.dataset import Dataset
from curation.dataset.batches import look_at_batches
from curation.dataset.manifest import REPORT, Manifest
from curation.files import write_text
from curation.report import figures
from curation.report import sections as report_sections
from curation.report.facts import count_mix, pick_rows
from curation.report.markup import seconds
from curation.report.sections import Section

BINS = 60


def write_report(dataset: Dataset) -> None:
    """Write ``report.html`` into a folder that has its shards and ``decisions.arrow``.

    The bytes depend on the manifest, the dataset, the source and the installed plotly alone.

    Raises:
        SourceError: the shards or ``decisions.arrow`` cannot be read. A source that is gone is no error: the page
            then says what it cannot show.
        OutputError: the page cannot be written.
    """
    write_text(dataset.folder / REPORT, render(dataset))


def render(dataset: Dataset) -> str:
    """The page, as a string."""
    manifest, decisions = dataset.manifest, dataset.decisions
    cuts = decisions.cuts()
    sections = [
        report_sections.flow(manifest, decisions.counts()),
        report_sections.scores(decisions.histograms(BINS), cuts),
        report_sections.batches(look_at_batches(dataset)),
        report_sections.steps(manifest),
        report_sections.mix(count_mix(dataset)),
        report_sections.rows(pick_rows(dataset), cuts),
        report_sections.time(manifest),
        report_sections.inputs(manifest),
        report_sections.recipe(manifest),
        report_sections.files(dataset),
    ]
    return _page(manifest, [section for section in sections if section is not None])


def in_words(manifest: Manifest) -> str:
    """What was done, in one sentence."""
    did = [step.did or f"taken through {step.step}" for step in manifest.steps]
    return f"{manifest.rows_in:,} rows of {_origin(manifest)} were {', then '.join(did) or 'kept as they are'}."


def _origin(manifest: Manifest) -> str:
    if manifest.recipe["source"]["format"] == "stdlib":
        return "the Python standard library"
    if len(manifest.inputs) == 1:
        return Path(manifest.inputs[0].path).name
    return f"{len(manifest.inputs):,} files"


def _page(manifest: Manifest, sections: Sequence[Section]) -> str:
    from plotly.offline import get_plotlyjs

    plotly, script = get_plotlyjs(), _asset("report.js")
    headline = f"{manifest.rows_out:,} of {manifest.rows_in:,} rows kept"
    drawn: list[figures.Figure] = [figure for section in sections for figure in section.figures]
    return Template(_asset("report.html")).substitute(
        title=escape(f"{headline} – curation report"),
        headline=escape(headline),
        sentence=escape(in_words(manifest)),
        style=_asset("report.css"),
        tiles="\n".join(_tiles(manifest)),
        contents="\n".join(f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in sections),
        sections="\n".join(map(_section, sections)),
        version=escape(manifest.versions.get("curation", "")),
        created=f"{manifest.created:%Y-%m-%d %H:%M} UTC",
        figures=json.dumps(drawn, separators=(",", ":")).replace("<", "\\u003c"),
        plotly=plotly,
        script=script,
        script_hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script)),
    )


def _section(section: Section) -> str:
    name = section.name
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{escape(section.title)}</h2>\n'
        f"{section.body}\n</section>"
    )


def _tiles(manifest: Manifest) -> Iterator[str]:
    share = 100 * manifest.rows_out / manifest.rows_in if manifest.rows_in else 0
    dropped = manifest.rows_in - manifest.rows_out - manifest.bad_rows
    tiles = [
        ("kept", f"{manifest.rows_out:,}", ' class="main"'),
        ("of the candidates", f"{share:.1f} %" if share >= 1 else f"{share:.2g} %", ""),
        ("dropped", f"{dropped:,}", ""),
        ("bad rows", f"{manifest.bad_rows:,}", ""),
        ("in all", seconds(sum(manifest.seconds.values())), ""),
    ]
    for title, value, kind in tiles:
        yield f"<div{kind}><dt>{title}</dt><dd>{value}</dd></div>"


def _asset(name: str) -> str:
    return (files("curation.report") / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
