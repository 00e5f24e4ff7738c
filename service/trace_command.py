"""Command ``curation trace``, which :mod:`curation.cli` mounts by name: the flight recorder in a terminal."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from rich.table import Table


class _Question(NamedTuple):
    """What is asked of a session: one of ``step``, ``row`` and neither (its spikes)."""

    session: str
    step: int | None
    row: int | None
    rank: int | None
    top: int
    values: bool


def trace(
    session: Annotated[str, typer.Argument(help="The session's id.")],
    step: Annotated[int | None, typer.Option(min=0, help="The rows of this step, the highest losses first.")] = None,
    row: Annotated[int | None, typer.Option(min=0, help="Every visit of this row.")] = None,
    spikes: Annotated[bool, typer.Option("--spikes", help="The steps whose mean loss stands out.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="With --step: this rank alone (default: all).")] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Rows of a step, or spikes (100), at most.")] = 10,
    values: Annotated[bool, typer.Option("--values", help="With --step: the rows' text, from the dataset.")] = False,
    url: Annotated[str, typer.Option(envvar="CURATION_URL", help="The running server.")] = "http://127.0.0.1:8765",
    token: Annotated[str | None, typer.Option(envvar="CURATION_TOKEN", help="A bearer token for it.")] = None,
    store: Annotated[str | None, typer.Option(help="Look into this store itself: the server may be down.")] = None,
    datasets: Annotated[list[Path] | None, typer.Option(help="With --store: a folder of curated datasets.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, as the service answers it.")] = False,
) -> None:
    """Say which rows were in a step, when a row was visited, or which rows stand behind a spike of the loss."""
    if (step is not None) + (row is not None) + spikes != 1:
        raise typer.BadParameter("give one of --step, --row and --spikes")
    question = _Question(session, step, row, rank, top, values)
    if store is None:
        found = _ask_server(question, url, token)
    else:
        found = asyncio.run(_ask_store(question, store, datasets or []))
    if as_json:
        typer.echo(json.dumps(found))
        return
    from rich.console import Console

    tabulate = _spike_table if spikes else _visit_table if step is None else _step_table
    Console().print(tabulate(found))


def _ask_server(question: _Question, url: str, token: str | None) -> dict[str, Any]:
    import httpx

    from curation.service.client.requests import auth_headers
    from curation.service.client.responses import ServiceError, read_error

    query: dict[str, str | int]
    if question.step is not None:
        path, query = f"steps/{question.step}/rows", {"sort": "loss", "limit": question.top}
        query |= {} if question.rank is None else {"rank": question.rank}
        query |= {"values": "true"} if question.values else {}
    elif question.row is not None:
        path, query = f"rows/{question.row}", {}
    else:
        path, query = "spikes", {"top": min(question.top, 100)}
    with httpx.Client(base_url=url, headers=auth_headers(token), timeout=120) as http:
        visits: list[Any] = []
        while True:
            try:
                answer = http.get(f"/v1/sessions/{question.session}/{path}", params=query)
            except httpx.TransportError as error:
                detail = f"{url} does not answer ({error}); --store looks without it"
                raise ServiceError("unreachable", detail) from error
            if not answer.is_success:
                raise read_error(answer)
            found: dict[str, Any] = answer.json()
            if question.row is None:
                return found
            visits += found["visits"]
            if found["next"] is None:
                return {**found, "visits": visits}
            query["first"] = found["next"]


async def _ask_store(question: _Question, url: str, roots: list[Path]) -> dict[str, Any]:
    from functools import partial

    from curation.service.client.responses import ServiceError
    from curation.service.datasets import Datasets
    from curation.service.errors import Refusal
    from curation.service.http.rows import read_rows
    from curation.service.manager.sessions import SessionManager
    from curation.service.manager.trace import Recorder
    from curation.service.routers.trace import models
    from curation.service.session.caller import ANYONE
    from curation.service.settings import Settings
    from curation.service.store.opening import open_store

    store = open_store(url, make=False)
    manager = SessionManager(store, resident_bytes=Settings().resident_bytes)
    recorder = Recorder(manager)
    try:
        entry = await manager.entry(ANYONE, question.session)
        about = (question.session, entry.row.generation)
        if question.step is not None:
            name, values = entry.row.spec.dataset, None
            if question.values:
                if name is None:
                    raise Refusal("bad-dataset", f"session {question.session!r} names no dataset: leave --values out")
                values = partial(read_rows, Datasets(roots), name)
            rows = await recorder.step_rows(entry, question.step, question.rank)
            return models.step_trace(
                *about, rows, by_loss=True, start=0, limit=question.top, values=values
            ).model_dump()
        if question.row is None:
            return models.spike_list(*about, await recorder.spikes(entry, min(question.top, 100))).model_dump()
        found = await recorder.row_visits(entry, question.row)
        visits, first = found.visits, found.first
        while found.next is not None:
            found = await recorder.row_visits(entry, question.row, found.next)
            visits += found.visits
        return models.row_trace(*about, question.row, found._replace(visits=visits, first=first)).model_dump()
    except Refusal as refusal:
        raise ServiceError(refusal.kind, refusal.detail) from refusal
    finally:
        recorder.stop()
        manager.group_commit.stop()
        store.close()


def _step_table(found: dict[str, Any]) -> "Table":
    from rich.table import Table

    shown = f"{len(found['rows'])} of {found['total']:,} rows, {found['reported']:,} reported"
    waits = ". Nothing is chosen of this super-batch yet" if found["chosen"] is False else ""
    table = Table(title=f"step {found['step']}, epoch {found['epoch']} of {found['session']}: {shown}{waits}")
    names = ["rank", "position", "row", "weight", "loss", *(["score"] if found["chosen"] else [])]
    text = found["text"]
    for name in names:
        table.add_column(name, justify="right")
    if text is not None:
        table.add_column(text, no_wrap=True, overflow="ellipsis")
    for row in found["rows"]:
        cells = [] if text is None else [str(row["cells"][found["columns"].index(text)])]
        table.add_row(*(_number(row, name) for name in names), *cells)
    return table


def _visit_table(found: dict[str, Any]) -> "Table":
    from rich.table import Table

    chooses = any(visit["chosen"] is not None for visit in found["visits"])
    names = ["epoch", "step", "rank", "position", "weight", "loss", *(["chosen", "score"] if chooses else [])]
    table = Table(title=f"row {found['row']} of {found['session']}, visits: {len(found['visits'])}")
    for name in names:
        table.add_column(name, justify="right")
    for visit in found["visits"]:
        table.add_row(*(_number(visit, name) for name in names))
    return table


def _spike_table(found: dict[str, Any]) -> "Table":
    from rich.table import Table

    title = f"spikes of {found['session']}, steps {found['first']} to {found['end'] - 1}: {len(found['spikes'])}"
    table = Table(title=title)
    for name in ("step", "epoch", "mean", "median before", "score", "not finite"):
        table.add_column(name, justify="right")
    table.add_column("row (rank) loss", no_wrap=True)
    for spike in found["spikes"]:
        rows = [f"{row['row']} ({row['rank']}) {_number(row, 'loss')}" for row in spike["rows"] or []]
        unknown = f"{spike['unknown']:,} of {spike['losses']:,}"
        unknown += f", for {spike['steps']:,} steps" if spike["steps"] > 1 else ""
        numbers = (_number(spike, name) for name in ("step", "epoch", "mean", "median", "z"))
        table.add_row(*numbers, unknown, "\n".join(rows))
    return table


def _number(values: dict[str, Any], name: str) -> str:
    value = values[name]
    if value is None:
        return "not finite" if values.get("reported") and name == "loss" else "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
