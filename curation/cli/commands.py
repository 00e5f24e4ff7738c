"""Commands that look at things: a thin layer over ``verify``, ``inspection``, ``explain``, ``recipe``.

What is heavy is imported inside the functions, so that ``curation --help`` stays quick.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from curation.dataset.decisions import Cut, Histogram
    from curation.dataset.inspect import Inspection

Finished = Annotated[Path, typer.Argument(help="A finished dataset.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

_BAR = 40
_TEXT = 2000


def verify(out: Finished, json: Json = False) -> None:
    """Hash every file again and count every row again."""
    from curation.cli import terminal
    from curation.dataset.manifest import Manifest
    from curation.dataset.verify import findings
    from curation.dataset.verify import verify as check
    from curation.errors import VerificationError

    if json:
        with terminal.watching(machine=True) as progress:
            found = findings(out, progress)
        terminal.emit({"out": str(out), "verified": not found, "findings": found})
        if found:
            raise typer.Exit(VerificationError.exit_code)
        return
    with terminal.watching(machine=False) as progress:
        manifest: Manifest = check(out, progress)
    terminal.out().print(
        f"{out}: verified. {len(manifest.files):,} files, {manifest.rows_out:,} of {manifest.rows_in:,} rows kept.",
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
    from curation.dataset.inspect import inspect as look

    if batches:
        _inspect_batches(Path(out_or_source), samples, json)
        return

    found = look(out_or_source, samples)
    if json:
        terminal.emit(dataclasses.asdict(found))
        return
    _show(found)


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
    from curation.dataset.explain import explain as ask

    found = ask(out, index)
    if json:
        answer = dataclasses.asdict(found)
        for name, standing in found.scores.items():
            answer["scores"][name]["percentile"] = standing.percentile
        answer["cuts"] = [
            {**dataclasses.asdict(cut), "rank": own.rank, "of": own.of, "percentile": own.percentile}
            for cut, own in found.cuts
        ]
        terminal.emit(answer)
        return
    console = terminal.out()
    colour = "green" if found.kept else "yellow"
    console.print(Text(f"Row {index:,} ", style="bold") + Text("kept" if found.kept else "dropped", style=colour))
    console.print(Text(found.sentence))
    if found.scores:
        rows = [(name, f"{s.value:.6g}", s.rank, s.of, f"{s.percentile:.1f} %") for name, s in found.scores.items()]
        console.print()
        console.print(terminal.table("Scores", ["score", "#value", "#rank", "#of", "#above"], rows))
    console.print()
    if found.row is None:
        console.print(Text(f"The row itself cannot be shown: {found.note}", style="dim"))
        return
    console.print(Text(found.row.where, style="dim"))
    for name, value in found.row.values.items():
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

    found = {name: (path, shipped.describe(path)) for name, path in shipped.shipped().items()}
    if json:
        terminal.emit([{"name": name, "path": str(path), "about": about} for name, (path, about) in found.items()])
        return
    rows = [(name, about) for name, (_, about) in found.items()]
    terminal.out().print(terminal.table("Recipes", ["name", "what it does"], rows))


def version(json: Json = False) -> None:
    """Print the versions that decide results."""
    from curation.cli.terminal import emit, out, table
    from curation.dataset.versions import versions

    if json:
        emit(versions())
        return
    out().print(table("Versions", ["package", "version"], versions().items()))


def _inspect_batches(out: Path, samples: int, json: bool) -> None:
    from curation.cli import terminal
    from curation.dataset.batches import look_at_batches
    from curation.dataset.manifest import BATCHES, Manifest
    from curation.errors import SourceError

    found = look_at_batches(out, Manifest.load(out), samples)
    if found is None:
        raise SourceError(f"{out}: has no {BATCHES}: its recipe has no `b3` step")
    if json:
        terminal.emit(dataclasses.asdict(found))
        return
    console = terminal.out()
    console.print(f"{out}: {found.batches:,} batches", style="bold", markup=False)
    quality = [
        (meaning, *("–" if value is None else f"{value:.4g}" for value in values)) for meaning, *values in found.quality
    ]
    console.print()
    console.print(terminal.table("Against random batches of the same sizes", ["", "#these", "#random"], quality))
    sizes = [("batches", int(size), many) for size, many in found.batch_sizes.items()]
    sizes += [("communities", int(size), many) for size, many in found.cluster_sizes.items()]
    console.print()
    console.print(terminal.table("Sizes", ["of", "#rows", "#how many"], sizes))
    for batch in found.shown:
        names = list(batch.texts[0]) if batch.texts else []
        lines = [
            (community if community is not None else "–", *(terminal.shorten(text[name], 100) for name in names))
            for community, text in zip(batch.communities, batch.texts, strict=True)
        ]
        console.print()
        title = f"Batch {batch.number:,}, {len(lines)} of {batch.rows:,} rows"
        console.print(terminal.table(title, ["#community", *names], lines))


def _show(found: "Inspection") -> None:
    from curation.cli import terminal

    console = terminal.out()
    console.print(f"{found.name}: {found.rows:,} rows", style="bold", markup=False)
    console.print()
    console.print(terminal.table("Columns", ["name", "type"], found.schema.items()))
    if found.files:
        console.print()
        files = list(found.files.items())
        console.print(terminal.table("Files", ["path", "#rows"], files[:20]))
        if len(files) > 20:
            console.print(f"and {len(files) - 20:,} more", style="dim")
    if found.counts:
        total = sum(found.counts.values())
        rows = [(name, count, f"{100 * count / total:.1f} %") for name, count in found.counts.items()]
        console.print()
        console.print(terminal.table("Candidates by reason", ["reason", "#rows", "#share"], rows))
    for histogram in found.histograms:
        console.print()
        _histogram(histogram, [cut for cut in found.cuts if cut.score == histogram.name])
    for number, sample in enumerate(found.samples, 1):
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
