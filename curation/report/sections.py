"""Sections of the report: facts in, HTML and figures out."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import yaml

from curation.dataset import Dataset
from curation.dataset.batches import Grouping, ShownBatch
from curation.dataset.decisions import Cut, Histogram
from curation.dataset.explain import describe_cut
from curation.dataset.manifest import KEPT, MANIFEST, REPORT, Manifest, ReportTable
from curation.report import figures
from curation.report.facts import Mix, Shown
from curation.report.figures import Figure
from curation.report.markup import bar, figure, paragraph, path, seconds, table

SHOWN_VALUES = 12
SHOWN_INPUTS = 50
SHOWN_FILES = 200
TEXT = 4000
PREVIEW = 160
OTHER = "(other)"


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its title, its HTML, and the figures that stand in it."""

    name: str
    title: str
    body: str
    figures: tuple[Figure, ...] = ()


def flow(manifest: Manifest, counts: dict[str, int]) -> Section:
    """How many rows each step let through, and every candidate by reason."""
    first = manifest.steps[0].rows_in if manifest.steps else manifest.rows_out
    stages = [("source", first, manifest.rows_in - first)]
    stages += [(f"{step.number}. {step.step}", step.rows_out, step.rows_in - step.rows_out) for step in manifest.steps]
    total = max(1, sum(counts.values()))
    lines = [
        [escape(reason), f"{rows:,}", f"{100 * rows / total:.1f} %", bar(rows / total, accent=reason == KEPT)]
        for reason, rows in counts.items()
    ]
    caption = "Rows through the steps, from the source down; the table below has the numbers."
    body = figure("figure-flow", caption, "goes on", "dropped here")
    body += table("Every candidate, by reason", ["reason", "#rows", "#share", ""], lines)
    return Section("flow", "Where the rows went", body, (figures.funnel("figure-flow", stages),))


def scores(histograms: Sequence[Histogram], cuts: Sequence[Cut]) -> Section | None:
    """A histogram of each score, with the cut."""
    if not histograms:
        return None
    body, drawn = "", []
    for number, histogram in enumerate(histograms, 1):
        of_score = [cut for cut in cuts if cut.score == histogram.name]
        name = f"figure-score-{number}"
        caption = f"{histogram.rows:,} rows have this score, from {histogram.low:.4g} to {histogram.high:.4g}."
        if histogram.beyond:
            caption += f" {histogram.beyond:,} beyond the ends are counted in the end bars."
        caption += "".join(f" Step {cut.number}: {describe_cut(cut)}." for cut in of_score)
        body += f"<h3>{escape(histogram.name)}</h3>" + figure(name, caption, "kept", "dropped, here or later")
        drawn.append(figures.histogram(histogram, of_score, name))
    return Section("scores", "Scores", body, tuple(drawn))


def batches(grouping: Grouping | None) -> Section | None:
    """How hard the batches are beside random ones, how large, and the first rows of some; None without any."""
    if grouping is None:
        return None
    details = grouping.details
    search = f"{details['engine']}, {'exact' if details['exact'] == 'true' else 'approximate'}"
    if "recall" in details:
        search += f", recall {float(details['recall']):.1%} on a sample"
    body = paragraph(
        f"{grouping.batches:,} batches, in the order of the shards. Search: {search}. The graph has "
        f"{int(details['graph_edges']):,} edges and was cut into {int(details['communities']):,} communities by "
        f"{details['partitioner']}."
    )
    measured = [[escape(meaning), _measure(plan), _measure(random)] for meaning, plan, random in grouping.quality]
    body += table("Against random batches of the same sizes", ["measure", "#these", "#random"], measured)
    sizes = [["batches", size, f"{many:,}"] for size, many in grouping.batch_sizes.items()]
    sizes += [["communities", size, f"{many:,}"] for size, many in grouping.cluster_sizes.items()]
    body += table("Sizes", ["of", "#rows", "#how many"], sizes)
    body += "".join(map(_batch, grouping.shown))
    return Section("batches", "Batches", body)


def steps(manifest: Manifest) -> Section | None:
    """What the steps have to show; None where none has anything."""
    shown = [step for step in manifest.steps if step.tables]
    if not shown:
        return None
    body = "".join(
        f"<h3>{step.number}. {escape(step.step)}</h3>\n" + "".join(map(_step_table, step.tables)) for step in shown
    )
    return Section("steps", "Steps", body)


def mix(counted: Mix | None) -> Section | None:
    """Shares of each value of a column, before and after."""
    if counted is None:
        return None
    counts = counted.after if counted.before is None else counted.before
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    others = max(0, len(ranked) - SHOWN_VALUES)
    names = ranked[:SHOWN_VALUES]
    after = _folded(counted.after, names, others > 0)
    before = None if counted.before is None else _folded(counted.before, names, others > 0)
    title = f"Mix by {counted.column}"
    has = {value: _share(after, value) for value in after}
    if before is None:
        lines = [[escape(value), f"{rows:,}", f"{has[value]:.1f} %"] for value, rows in after.items()]
        body = paragraph(counted.note or "") + table("Kept rows", [counted.column, "#rows", "#share"], lines)
        return Section("mix", title, body)
    had = {value: _share(before, value) for value in before}
    lines = [
        [
            escape(value),
            f"{rows:,}",
            f"{had[value]:.1f} %",
            f"{after[value]:,}",
            f"{has[value]:.1f} %",
            f"{100 * after[value] / rows:.1f} %" if rows else "–",
        ]
        for value, rows in before.items()
    ]
    caption = f"Share of each {counted.column} in the source and in what was kept."
    if others:
        caption += f" The table has the {others:,} others in one row."
    body = figure("figure-mix", caption, "kept rows", "candidates")
    columns = [counted.column, "#before", "#share", "#after", "#share", "#of it kept"]
    body += table("The same in numbers", columns, lines)
    shares = [(value, had[value], has[value]) for value in ranked[:SHOWN_VALUES]]
    return Section("mix", title, body, (figures.mix(shares, "figure-mix"),))


def rows(shown: Shown | None, cuts: Sequence[Cut]) -> Section | None:
    """The best, borderline and worst rows, each to be opened."""
    if shown is None:
        return None
    cut = next((cut for cut in cuts if cut.number == shown.number), None)
    sharp = cut is not None and cut.sharp
    groups = {
        "best": ("Best", "The highest scores among the rows that were kept."),
        "just in": ("Borderline, kept" if sharp else "Lowest that passed", "The lowest scores that passed the cut."),
        "just out": ("Borderline, dropped" if sharp else "Highest that did not", "The highest scores that did not."),
        "worst": ("Worst", "The lowest scores of all."),
    }
    body = paragraph(f"By {shown.score}. Open a row to read all of it.")
    if shown.note:
        body += paragraph(f"Some texts are missing: {shown.note}.")
    for group, indices in shown.groups.items():
        if indices:
            title, about = groups[group]
            body += f'<h3>{title}</h3><p class="note">{about}</p>\n' + "\n".join(
                _row(shown, index) for index in indices
            )
    return Section("rows", "Best, borderline and worst rows", body)


def time(manifest: Manifest) -> Section:
    """Seconds of each stage, and for steps their pace."""
    stages = dict(manifest.seconds)
    steps = {f"{step.number}. {step.step}": step for step in manifest.steps}
    for name, step in steps.items():
        stages.setdefault(name, step.seconds)
    longest = max(stages.values(), default=0) or 1
    lines = []
    for name, spent in stages.items():
        rows_in = steps[name].rows_in if name in steps else None
        count = "" if rows_in is None else f"{rows_in:,}"
        pace = f"{rows_in / spent:,.0f}" if rows_in is not None and spent > 0 else ""
        lines.append([escape(name), count, seconds(spent), pace, bar(spent / longest)])
    return Section("time", "Time", table("Stages of the run", ["stage", "#rows", "#time", "#rows a second", ""], lines))


def inputs(manifest: Manifest) -> Section:
    """What was read, and by which versions."""
    lines = [
        [path(record.path), f"{record.rows:,}", f"{record.bytes:,}", path(record.fingerprint[:23])]
        for record in manifest.inputs[:SHOWN_INPUTS]
    ]
    caption = "Inputs and their fingerprints" + _rest(len(manifest.inputs), SHOWN_INPUTS)
    body = table(caption, ["path", "#rows", "#bytes", "fingerprint"], lines)
    body += "".join(map(paragraph, manifest.notes))
    versions = [[escape(name), escape(version)] for name, version in manifest.versions.items()]
    return Section("inputs", "Inputs and versions", body + table("Versions", ["package", "version"], versions))


def recipe(manifest: Manifest) -> Section:
    """The recipe as it ran."""
    text = yaml.safe_dump(manifest.recipe, sort_keys=False, allow_unicode=True, width=100)
    about = f"<p>With all defaults filled in. sha256 {path(manifest.recipe_sha256)}</p>"
    return Section("recipe", "Recipe", f"{about}<pre>{escape(text)}</pre>")


def files(dataset: Dataset) -> Section:
    """The dataset's files."""
    recorded = dataset.manifest.files
    present = {entry.name for entry in dataset.folder.iterdir() if entry.is_file() and not entry.name.startswith(".")}
    names = sorted({*recorded, *present} - {REPORT, MANIFEST})
    lines = []
    for name in names[:SHOWN_FILES]:
        record = recorded.get(name)
        size = record.bytes if record else (dataset.folder / name).stat().st_size
        count = f"{record.rows:,}" if record and record.rows is not None else ""
        lines.append([path(name), count, f"{size:,}"])
    about = f"<p>{MANIFEST} has the sha256 of each; <code>curation verify</code> hashes them again.</p>"
    caption = "Files beside this page" + _rest(len(names), SHOWN_FILES)
    return Section("files", "Files", about + table(caption, ["file", "#rows", "#bytes"], lines))


def _batch(batch: ShownBatch) -> str:
    names = list(batch.texts[0]) if batch.texts else []
    rows = [
        ["–" if community is None else f"{community:,}", *(escape(_short(text[name])) for name in names)]
        for community, text in zip(batch.communities, batch.texts, strict=True)
    ]
    caption = f"Batch {batch.number:,}: the first {len(rows)} of {batch.rows:,} rows"
    return table(caption, ["#community", *names], rows)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= PREVIEW else f"{flat[: PREVIEW - 1]}…"


def _measure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _step_table(given: ReportTable) -> str:
    return table(given.title, given.columns, [[escape(_cell(cell)) for cell in row] for row in given.rows])


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def _row(shown: Shown, index: int) -> str:
    decided, row = shown.decided[index], shown.rows.get(index)
    values = {} if row is None else row.values
    text = values.get(shown.text) if shown.text else None
    whole = "the text cannot be shown" if text is None else str(text)
    preview = " ".join(whole.split())
    about = [f"{name}: {_brief(value)}" for name, value in values.items() if name != shown.text]
    if row is not None:
        about.append(row.where)
    if len(whole) > TEXT:
        whole = f"{whole[:TEXT]}\n… ({len(whole):,} characters in all)"
    return (
        f'<details class="row"><summary><span class="score">{decided[shown.score]:#.4g}</span>'
        f'<span class="preview">{escape(preview[:PREVIEW])}</span>'
        f'<span class="why">row {index:,} · {escape(decided["reason"])}</span></summary>'
        f'<p class="about">{escape(" · ".join(about))}</p><pre>{escape(whole)}</pre></details>'
    )


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _folded(counts: dict[str, int], names: Sequence[str], others: bool) -> dict[str, int]:
    """Counts of these values, and of all others together."""
    folded = {name: counts.get(name, 0) for name in names}
    return {**folded, OTHER: sum(counts.values()) - sum(folded.values())} if others else folded


def _share(counts: dict[str, int], value: str) -> float:
    return 100 * counts[value] / max(1, sum(counts.values()))


def _rest(total: int, shown: int) -> str:
    return f": the first {shown:,} of {total:,}, {MANIFEST} has all" if total > shown else ""
