"""Routes of the dashboard: the page at ``/``, and what it asks for beyond the public API.

The page and its files hold no data and are served to anybody; everything else under ``/dashboard`` needs a token
with the scope read wherever the API needs one. The Content-Security-Policy lets nothing run but the page's own
files. A report has scripts of its own, so it runs in a frame without an origin and without a network.
"""

import asyncio
from pathlib import Path as File
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from curation.dataset.manifest import REPORT, Manifest
from curation.service.datasets import Datasets
from curation.service.errors import Refusal
from curation.service.http.dashboard import datasets as browse
from curation.service.http.dependencies import App, Reader
from curation.service.http.openapi import problems
from curation.service.http.rows import read_image

STATIC = File(__file__).resolve().parents[2] / "static"
FILES = ("charts.js", "dashboard.css", "dashboard.js", "elements.js", "icon.svg", "network.js", "rows.js", "session.js")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FRAME_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)

pages = APIRouter(include_in_schema=False)
router = APIRouter(prefix="/dashboard", tags=["dashboard"])


class DatasetLine(BaseModel):
    """One dataset of the list."""

    name: str
    rows_in: int
    rows_out: int
    created: float


class DatasetLines(BaseModel):
    """Curated datasets under the configured roots."""

    datasets: list[DatasetLine]
    unreadable: list[str] = Field(description="folders whose manifest cannot be read")


class StepLine(BaseModel):
    """A step of a dataset's recipe."""

    number: int
    step: str
    rows_in: int
    rows_out: int
    seconds: float


class DatasetView(DatasetLine):
    """All that the page shows of a dataset beside its rows."""

    bad_rows: int
    steps: list[StepLine]
    plan: browse.PlanFacts | None


@pages.get("/")
async def page() -> FileResponse:
    """The page."""
    return _file("index.html", POLICY)


@pages.get("/static/{name}")
async def static(name: str) -> FileResponse:
    """Its style, scripts and icon."""
    if name not in FILES:
        raise Refusal("not-found", "there is no such file")
    return _file(name, POLICY)


@pages.get("/dashboard/frame")
async def frame() -> FileResponse:
    """An empty document that shows the report it is handed."""
    return _file("frame.html", FRAME_POLICY)


@router.get("/datasets", responses=problems(401, 403))
async def show_datasets(app: App, caller: Reader) -> DatasetLines:
    """Curated datasets, with their sizes."""
    return await asyncio.to_thread(_datasets, app.datasets(caller))


@router.get("/datasets/{name}", responses=problems(401, 403, 404, 422))
async def show_dataset(name: str, app: App, caller: Reader) -> DatasetView:
    """A dataset's steps and its plan."""
    return await asyncio.to_thread(_dataset, app.datasets(caller), name)


@router.get("/datasets/{name}/rows", responses=problems(401, 403, 404, 422))
async def show_rows(
    name: str,
    app: App,
    caller: Reader,
    batch: Annotated[int | None, Query(ge=0, le=2**62, description="None: the dataset as a whole")] = None,
    start: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 25,
) -> browse.Page:
    """Rows of a batch, long values cut short."""
    return await asyncio.to_thread(browse.read_page, app.datasets(caller), name, batch, start, limit)


@router.get(
    "/datasets/{name}/rows/{position}/image",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}, "description": "The picture"}, **problems(401, 403, 404, 422)},
)
async def show_image(
    name: str,
    position: Annotated[int, Path(ge=0, le=2**62)],
    app: App,
    caller: Reader,
    column: Annotated[str, Query(max_length=1000)],
) -> Response:
    """The picture in a cell: PNG, JPEG, GIF or WebP, by its first bytes, up to 16 MiB."""
    image = await asyncio.to_thread(read_image, app.datasets(caller), name, position, column)
    headers = {"Content-Security-Policy": "default-src 'none'; sandbox", "Cache-Control": "private, max-age=3600"}
    return Response(image.data, headers=headers, media_type=image.kind)


@router.get(
    "/datasets/{name}/report",
    response_class=Response,
    responses={200: {"content": {"text/html": {}}, "description": "The report"}, **problems(401, 403, 404, 422)},
)
async def show_report(name: str, app: App, caller: Reader) -> FileResponse:
    """A dataset's ``report.html``, which its policy keeps from this origin."""
    path = await asyncio.to_thread(app.datasets(caller).file, name, REPORT)
    return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": FRAME_POLICY})


def _datasets(datasets: Datasets) -> DatasetLines:
    lines, unreadable = [], []
    for name in datasets.names():
        try:
            lines.append(_line(name, datasets.manifest(name)))
        except Refusal:
            unreadable.append(name)
    return DatasetLines(datasets=lines, unreadable=unreadable)


def _dataset(datasets: Datasets, name: str) -> DatasetView:
    manifest = datasets.manifest(name)
    planned = browse.has_plan(datasets, name)
    return DatasetView(
        **_line(name, manifest).model_dump(),
        bad_rows=manifest.bad_rows,
        steps=[StepLine(**step.model_dump(include=set(StepLine.model_fields))) for step in manifest.steps],
        plan=browse.plan_facts(datasets.plan(name), manifest) if planned else None,
    )


def _line(name: str, manifest: Manifest) -> DatasetLine:
    return DatasetLine(
        name=name, rows_in=manifest.rows_in, rows_out=manifest.rows_out, created=manifest.created.timestamp()
    )


def _file(name: str, policy: str) -> FileResponse:
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return FileResponse(STATIC / name, headers=headers)
