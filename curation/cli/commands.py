"""Commands that look at things: a thin layer over ``Dataset``, ``inspect`` and ``recipe``.

What is heavy is imported inside the functions, so that ``curation --help`` stays quick.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from curation.dataset import Dataset
    from curation.dataset.decisions import Cut, Histogram
    from curation.dataset.inspect import Inspection

Finished = Annotated[Path, typer.Argument(help="A finished dataset.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

_BAR = 40
_TEXT = 2000


def verify(out: Finished, json: Json = False) -> None:
    """Hash every file again and count every row again."""
    from curation.cli import terminal
    from curation.dataset import Dataset
    from curation.dataset.verify import findings
    from curation.errors import VerificationError

    dataset = Dataset(out)
    if json:
        with terminal.watching(machine=True) as progress:
            lines = findings(dataset, progress)
        terminal.emit({"out": str(out), "verified": not lines, "findings": lines})
        if lines:
            raise typer.Exit(VerificationError.exit_code)
        return
    with terminal.watching(machine=False) as progress:
        dataset.verify(progress)
    manifest = dataset.manifest
    terminal.out().print(
        f"{out}: verified. {len(manifest.files):,} files, {len(dataset):,} of {manifest.rows_in:,} rows kept.",
        markup=False,
    )


def inspect(
    out_or_source: Annotated[
        str,
        typer.Argument(
            help="A finished dataset, a recipe (its source), a file or folder of rows, or the word stdlib.",
            show_default=False,
        ),
    ],
    samples: Annotated[int, typer.Option(min=0, help="Rows to show, or with --batches batches.")] = 3,
    batches: Annotated[
        bool, typer.Option("--batches", help="Of a grouped dataset: how hard its batches are, and some of them.")
    ] = False,
    json: Json = False,
) -> None:
    """Show columns, counts by reason, sample rows and score histograms; or the batches of a grouped dataset."""
    from curation.cli import terminal
    from curation.dataset import Dataset
    from curation.dataset.inspect import inspect_source, source_of
    from curation.dataset.manifest import MANIFEST

    if batches:
        _inspect_batches(Dataset(out_or_source), samples, json)
        return
    if (Path(out_or_source) / MANIFEST).is_file():
        inspection = Dataset(out_or_source).inspect(samples)
    else:
        inspection = inspect_source(source_of(out_or_source), out_or_source, samples)
    if json:
        terminal.emit(dataclasses.asdict(inspection))
        return
    _show(inspection)


def explain(
    out: Finished,
    index: Annotated[
        int, typer.Option("--index", "-i", help="Position of the row in the source, from 0.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Say why a row was kept or dropped: its scores, its rank, the cut, the reason."""
    from rich.text import Text

    from curation.cli import terminal
    from curation.dataset import Dataset

    explanation = Dataset(out).explain(index)
    if json:
        answer = dataclasses.asdict(explanation)
        for name, standing in explanation.scores.items():
            answer["scores"][name]["percentile"] = standing.percentile
        answer["cuts"] = [
            {**dataclasses.asdict(cut), "rank": standing.rank, "of": standing.of, "percentile": standing.percentile}
            for cut, standing in explanation.cuts
        ]
        terminal.emit(answer)
        return
    console = terminal.out()
    colour = "green" if explanation.kept else "yellow"
    console.print(Text(f"Row {index:,} ", style="bold") + Text("kept" if explanation.kept else "dropped", style=colour))
    console.print(Text(explanation.sentence))
    if explanation.scores:
        rows = [
            (name, f"{standing.value:.6g}", standing.rank, standing.of, f"{standing.percentile:.1f} %")
            for name, standing in explanation.scores.items()
        ]
        console.print()
        console.print(terminal.table("Scores", ["score", "#value", "#rank", "#of", "#above"], rows))
    console.print()
    if explanation.row is None:
        console.print(Text(f"The row itself cannot be shown: {explanation.note}", style="dim"))
        return
    console.print(Text(explanation.row.where, style="dim"))
    for name, value in explanation.row.values.items():
        console.print(Text(f"{name}: ", style="bold") + _long(value))


def schema(
    json: Annotated[bool, typer.Option("--json", help="As without it: a JSON Schema is JSON already.")] = True,
) -> None:
    """Print the JSON Schema of a recipe, for editors and checks."""
    del json
    from curation.cli.terminal import emit
    from curation.recipe import Recipe

    emit(Recipe.model_json_schema())


def recipes(json: Json = False) -> None:
    """List the recipes that ship with the package; `curation run NAME` takes them by name."""
    from curation.cli import terminal
    from curation.recipe import shipped

    known = {name: (path, shipped.describe(path)) for name, path in shipped.shipped().items()}
    if json:
        terminal.emit([{"name": name, "path": str(path), "about": about} for name, (path, about) in known.items()])
        return
    rows = [(name, about) for name, (_, about) in known.items()]
    terminal.out().print(terminal.table("Recipes", ["name", "what it does"], rows))


def version(json: Json = False) -> None:
    """Print the versions that decide results."""
    from curation.cli.terminal import emit, out, table
    from curation.dataset.manifest import versions

    if json:
        emit(versions())
        return
    out().print(table("Versions", ["package", "version"], versions().items()))


def _inspect_batches(dataset: "Dataset", samples: int, json: bool) -> None:
    from curation.cli import terminal
    from curation.dataset.batches import look_at_batches
    from curation.dataset.manifest import BATCHES
    from curation.errors import SourceError

    grouping = look_at_batches(dataset, samples)
    if grouping is None:
        raise SourceError(f"{dataset.folder}: has no {BATCHES}: its recipe has no `b3` step")
    if json:
        terminal.emit(dataclasses.asdict(grouping))
        return
    console = terminal.out()
    console.print(f"{dataset.folder}: {grouping.batches:,} batches", style="bold", markup=False)
    quality = [
        (meaning, *("–" if value is None else f"{value:.4g}" for value in values))
        for meaning, *values in grouping.quality
    ]
    console.print()
    console.print(terminal.table("Against random batches of the same sizes", ["", "#these", "#random"], quality))
    sizes = [("batches", int(size), many) for size, many in grouping.batch_sizes.items()]
    sizes += [("communities", int(size), many) for size, many in grouping.cluster_sizes.items()]
    console.print()
    console.print(terminal.table("Sizes", ["of", "#rows", "#how many"], sizes))
    for batch in grouping.shown:
        names = list(batch.texts[0]) if batch.texts else []
        lines = [
            (community if community is not None else "–", *(terminal.shorten(text[name], 100) for name in names))
            for community, text in zip(batch.communities, batch.texts, strict=True)
        ]
        console.print()
        title = f"Batch {batch.number:,}, {len(lines)} of {batch.rows:,} rows"
        console.print(terminal.table(title, ["#community", *names], lines))


def _show(inspection: "Inspection") -> None:
    from curation.cli import terminal

    console = terminal.out()
    console.print(f"{inspection.name}: {inspection.rows:,} rows", style="bold", markup=False)
    console.print()
    console.print(terminal.table("Columns", ["name", "type"], inspection.schema.items()))
    if inspection.files:
        console.print()
        files = list(inspection.files.items())
        console.print(terminal.table("Files", ["path", "#rows"], files[:20]))
        if len(files) > 20:
            console.print(f"and {len(files) - 20:,} more", style="dim")
    if inspection.counts:
        total = sum(inspection.counts.values())
        rows = [(name, count, f"{100 * count / total:.1f} %") for name, count in inspection.counts.items()]
        console.print()
        console.print(terminal.table("Candidates by reason", ["reason", "#rows", "#share"], rows))
    for histogram in inspection.histograms:
        console.print()
        _histogram(histogram, [cut for cut in inspection.cuts if cut.score == histogram.name])
    for number, sample in enumerate(inspection.samples, 1):
        console.print()
        cells = [(name, terminal.shorten(value, 300)) for name, value in sample.items()]
        console.print(terminal.table(f"Sample {number}", ["column", "value"], cells))


def _histogram(histogram: "Histogram", cuts: "list[Cut]") -> None:
    from rich.text import Text

    from curation.cli import terminal
    from curation.dataset.explain import describe_cut

    console = terminal.out()
    console.print(
        Text(histogram.name, style="bold") + Text(f"  {histogram.rows:,} rows, kept █ dropped ░", style="dim")
    )
    highest = max(1, int((histogram.kept + histogram.dropped).max()))
    digits = max(len(f"{edge:.4g}") for edge in histogram.edges)
    for number in reversed(range(len(histogram.kept))):
        low, high = histogram.edges[number], histogram.edges[number + 1]
        kept, dropped = int(histogram.kept[number]), int(histogram.dropped[number])
        filled = terminal.bar(kept / highest, _BAR)
        rest = "░" * max(0, round(_BAR * (kept + dropped) / highest) - len(filled))
        marks = "".join(
            f"  ◂ cut {cut.value:.4g}"
            for cut in cuts
            if cut.sharp and cut.value is not None and _in(cut.value, low, high, number)
        )
        console.print(
            Text(f"{low:>{digits}.4g} ", style="dim")
            + Text(filled, style="cyan")
            + Text(rest, style="dim")
            + Text(f" {kept + dropped:,}", style="dim")
            + Text(marks, style="bold")
        )
    if histogram.beyond:
        console.print(
            f"{histogram.beyond:,} rows beyond the ends stand in the end bars; scores go from {histogram.low:.4g} "
            f"to {histogram.high:.4g}",
            style="dim",
        )
    for cut in cuts:
        console.print(f"step {cut.number}: {describe_cut(cut)}", style="dim", markup=False)


def _in(value: float, low: float, high: float, number: int) -> bool:
    return low <= value < high or (number == 0 and value < low)


def _long(value: object) -> "Text":
    from rich.text import Text

    from curation.cli.terminal import plain, printable

    text = printable(value if isinstance(value, str) else str(plain(value)))
    return Text(text if len(text) <= _TEXT else f"{text[:_TEXT]}… ({len(text):,} characters)")
