"""Commands of the pipelines: ``curation run`` and ``curation reselect``.

Ray is imported when a run starts, not when the command line does.
"""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from curation.dataset.manifest import Manifest

Out = Annotated[str, typer.Option("--out", "-o", metavar="OUT", help="Folder of the result.", show_default=False)]
Address = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        envvar="RAY_ADDRESS",
        help="A Ray cluster to work on. Without it: this machine.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Tasks at a time. Default: as many as fit.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines; progress as JSON lines on stderr.")]


def run(
    recipe: Annotated[
        str,
        typer.Argument(help="A YAML file, or the name of a shipped recipe (see `recipes`).", show_default=False),
    ],
    out: Out,
    ray_address: Address = None,
    workers: Workers = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what an interrupted run had done.")] = False,
    json: Json = False,
) -> None:
    """Score, select and write what a recipe says. Interrupted, the same command goes on where it stopped."""
    from curation.cli import terminal
    from curation.pipelines.engine.target import folder_of
    from curation.recipe import load_recipe
    from curation.recipe.shipped import find

    folder = folder_of(out)
    loaded = load_recipe(find(recipe))
    with terminal.watching(json) as progress:
        from curation.pipelines.job import run as work

        manifest = work(loaded, folder, ray_address=ray_address, workers=workers, restart=restart, progress=progress)
    _finish(manifest, folder, json)


def reselect(
    done: Annotated[Path, typer.Argument(help="A finished dataset.", show_default=False)],
    out: Out,
    count: Annotated[int | None, typer.Option(min=1, help="Keep that many.", show_default=False)] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Keep that share, above 0 up to 1.", show_default=False)
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Keep scores at or above it.", show_default=False)] = None,
    kind: Annotated[
        Literal["top-k", "threshold", "power", "softmax", "soft-rank"] | None,
        typer.Option(help="How to choose. Default: as the recipe did.", show_default=False),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(min=0, help="Coldness of a stochastic draw.", show_default=False)
    ] = None,
    shift: Annotated[
        str | None, typer.Option(help="Added to scores for power: a number, or lowest.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the recipe's.", show_default=False)] = None,
    ray_address: Address = None,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Make another cut from the scores of a finished dataset; nothing is scored again."""
    from curation.cli import terminal
    from curation.pipelines.engine.target import folder_of

    folder = folder_of(out)
    if fraction is not None and not 0 < fraction <= 1:
        raise typer.BadParameter(f"it must be above 0 and at most 1, not {fraction:g}", param_hint="--fraction")
    if sum(size is not None for size in (count, fraction, threshold)) > 1:
        raise typer.BadParameter("give only one of --count, --fraction and --threshold")
    if all(change is None for change in (count, fraction, threshold, kind, beta, shift, seed)):
        raise typer.BadParameter(
            "say what is to change: --count, --fraction, --threshold, --kind, --beta, --shift or --seed"
        )
    with terminal.watching(json) as progress:
        from curation.pipelines.job import reselect as work

        manifest = work(
            done,
            folder,
            count=count,
            fraction=fraction,
            threshold=threshold,
            kind=kind,
            beta=beta,
            shift=_shift(shift),
            seed=seed,
            ray_address=ray_address,
            workers=workers,
            progress=progress,
        )
    _finish(manifest, folder, json)


def _shift(given: str | None) -> float | Literal["lowest"] | None:
    if given is None or given == "lowest":
        return given  # type: ignore[return-value]
    try:
        return float(given)
    except ValueError:
        raise typer.BadParameter(f"it must be a number or the word lowest, not {given}", param_hint="--shift") from None


def summary(manifest: "Manifest", out: Path) -> dict[str, Any]:
    """What ``--json`` prints at the end of a run."""
    account: dict[str, Any] = jsonlib.loads(
        manifest.model_dump_json(
            include={"rows_in", "rows_out", "bad_rows", "steps", "seconds", "recipe_sha256", "seed"}
        )
    )
    from curation.dataset.manifest import MANIFEST, REPORT

    return {"out": str(out), **account, "report": str(out / REPORT), "manifest": str(out / MANIFEST)}


def _finish(manifest: "Manifest", out: Path, json: bool) -> None:
    from curation.cli import terminal
    from curation.dataset.manifest import REPORT

    if json:
        terminal.emit(summary(manifest, out))
        return
    rows: list[tuple[object, ...]] = []
    for step in manifest.steps:
        rows.append((f"{step.number}. {step.step}", step.rows_in, step.rows_out, f"{step.seconds:.1f}"))
        rows += [
            (f"     {reason.partition(': ')[2] or reason}", "", f"−{count:,}", "")
            for reason, count in step.dropped.items()
        ]
    if manifest.bad_rows:
        rows.insert(0, ("bad rows, set aside", "", f"−{manifest.bad_rows:,}", ""))
    console = terminal.out()
    console.print()
    console.print(terminal.table("Steps", ["step", "#rows in", "#rows out", "#seconds"], rows))
    console.print()
    share = 100 * manifest.rows_out / manifest.rows_in if manifest.rows_in else 0
    console.print(
        f"Kept {manifest.rows_out:,} of {manifest.rows_in:,} rows ({share:.1f} %).", style="bold", markup=False
    )
    console.print(f"Report:  {out / REPORT}", markup=False, soft_wrap=True)
    console.print(f"Next:    curation verify {out}", markup=False, soft_wrap=True)
    console.print(f"         curation explain {out} --index 0", markup=False, soft_wrap=True)
    console.print(f'         datasets.load_from_disk("{out}")', markup=False, soft_wrap=True)
