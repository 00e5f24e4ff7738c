"""The page at ``/`` in a real Chromium, and what it is drawn from against numpy."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from curation.dataset.manifest import FileRecord, Manifest, StepRecord, now
from curation.dataset.writer import shard_name, write_shard
from curation.plan import BatchPlan
from curation.service.access.tokens import issue_token
from curation.service.client import Client
from curation.service.http.dashboard import losses
from curation.service.store import Store

ROWS, BATCH = 40, 8
PATHS = (
    "/dashboard/sessions",
    "/dashboard/sessions/ours",
    "/dashboard/sessions/ours/plan",
    "/v1/sessions/ours/steps/0/rows",
    "/v1/sessions/ours/rows/0",
    "/v1/sessions/ours/spikes",
    "/dashboard/datasets",
    "/dashboard/datasets/mined",
    "/dashboard/datasets/mined/rows",
    "/dashboard/datasets/mined/rows/0/image?column=text",
    "/dashboard/datasets/mined/report",
)
HOSTILE = "<img src=x onerror=document.title='broken'>"
REPORT = """<!doctype html><title>r</title><p id="own">waiting</p><script>
let reach = "kept apart";
try { reach = "reached " + parent.document.title; } catch {}
let stored = "no storage";
try { stored = "storage " + sessionStorage.length; } catch {}
fetch("/v1/sessions").then(() => "network", () => "no network").then((net) => {
  document.getElementById("own").textContent = [reach, stored, net].join(", ");
});
</script>"""


def curated(folder: Path) -> list[str]:
    """A dataset of two shards, whose third batch is not in the order of the rows; returns the texts."""
    folder.mkdir()
    texts = [HOSTILE if row == 0 else f"row {row}" for row in range(ROWS)]
    names = [shard_name(number, 2) for number in range(2)]
    for name, first, end in zip(names, [0, 18], [18, ROWS], strict=True):
        columns = {
            "text": pa.array(texts[first:end]),
            "embedding": pa.array([[float(row)] * 12 for row in range(first, end)]),
            "_index": pa.array(np.arange(first, end)),
            "big": pa.array([2**60] * (end - first)),
            "ratio": pa.array([float("nan")] * (end - first)),
        }
        table = pa.table(columns)
        write_shard(folder / name, table.schema, [table], batch_rows=5)
    order = np.arange(ROWS)
    order[16:24] = [23, 17, 22, 16, 21, 18, 20, 19]
    clusters = np.arange(ROWS) // 4
    BatchPlan(indices=order, offsets=np.arange(0, ROWS + 1, BATCH), clusters=clusters, metadata={"method": "b3"}).save(
        folder / "batches.arrow"
    )
    (folder / "report.html").write_text(REPORT)
    quality = {"plan": {"similarity": 0.5}, "random": {"similarity": 0.25}}
    Manifest(
        recipe={"steps": []},
        recipe_sha256="0" * 64,
        seed=0,
        inputs=[],
        rows_in=ROWS + 10,
        rows_out=ROWS,
        steps=[StepRecord(number=1, step="b3", rows_in=50, rows_out=40, seconds=1.5, details={"quality": quality})],
        files={name: FileRecord(bytes=1, sha256="", rows=n) for name, n in zip(names, [18, 22], strict=True)},
        versions={},
        seconds={},
        created=now(),
    ).save(folder)
    return texts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    curated(root / "mined")
    (root / "hollow").mkdir()
    (root / "hollow" / "manifest.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def url(live: Callable[..., Any], root: Path) -> str:
    return str(live(datasets=[root]).url)


@pytest.fixture(scope="module")
def guarded(live: Callable[..., Any], root: Path, memory: Path) -> dict[str, str]:
    """A server that asks for tokens, and two of them."""
    url = f"sqlite:///{tempfile.mkdtemp(dir=memory)}/store.db"
    store = Store(url)
    ours, theirs = (issue_token(store, name, frozenset({"select"}))[1] for name in ("ours", "theirs"))
    store.close()
    return {"url": str(live(store=url, datasets=[root]).url), "ours": ours, "theirs": theirs}


def report(client: Client, session: str, step: int, mean: float) -> None:
    batch = client.step(session, step)
    losses = np.linspace(mean - 0.5, mean + 0.5, len(batch.indices)).astype(np.float32)
    client.report(session, [(step, losses)])


def test_the_page_and_its_files_say_what_may_run(url: str) -> None:
    page = httpx.get(f"{url}/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert "<style" not in page.text
    assert " style=" not in page.text
    assert "http" not in page.text.replace("http-equiv", "")
    for name, kind in [("dashboard.js", "javascript"), ("charts.js", "javascript"), ("dashboard.css", "text/css")]:
        answer = httpx.get(f"{url}/static/{name}")
        assert (answer.status_code, kind in answer.headers["content-type"]) == (200, True)
        assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("index.html", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "/etc/passwd", "frame.html"):
        assert httpx.get(f"{url}/static/{name}").status_code == 404
    for path in ("dashboard/frame", "dashboard/datasets/mined/report"):
        policy = httpx.get(f"{url}/{path}").headers["content-security-policy"]
        assert policy.startswith("sandbox allow-scripts; default-src 'none'")


def test_data_needs_the_token_of_its_owner(guarded: dict[str, str]) -> None:
    with Client(guarded["url"], token=guarded["ours"]) as client:
        client.create_session("random", size=10, batch_size=5, id="ours")
    answers = {}
    for who in ("ours", "theirs", ""):
        headers = {"Authorization": f"Bearer {guarded[who]}"} if who else {}
        with httpx.Client(base_url=guarded["url"], headers=headers) as http:
            answers[who] = [http.get(path).status_code for path in PATHS]
            if who:
                listed = http.get("/dashboard/sessions").json()["sessions"]
                assert [line["id"] for line in listed] == (["ours"] if who == "ours" else [])
    assert answers == {
        "ours": [200, 200, 404, 200, 200, 200, 200, 200, 200, 404, 200],
        "theirs": [200, 404, 404, 404, 404, 404, 200, 200, 200, 404, 200],
        "": [401] * 11,
    }


def test_rows_come_in_the_order_of_their_batch(url: str, root: Path) -> None:
    plan = BatchPlan.load(root / "mined" / "batches.arrow")
    with httpx.Client(base_url=f"{url}/dashboard/datasets/mined") as http:
        for batch in range(len(plan)):
            page = http.get("/rows", params={"batch": batch}).json()
            assert [row["position"] for row in page["rows"]] == plan[batch].tolist()
            for row in page["rows"]:
                cells = dict(zip(page["columns"], row["cells"], strict=True))
                assert cells["_index"] == row["position"]
                assert cells["text"] == (HOSTILE if row["position"] == 0 else f"row {row['position']}")
        assert cells["big"] == str(2**60)
        assert cells["ratio"] == "nan"
        assert cells["embedding"].endswith("… (12 items)")
        second = http.get("/rows", params={"batch": 2, "start": 5, "limit": 2}).json()
        assert [row["position"] for row in second["rows"]] == [18, 20]
        whole = http.get("/rows", params={"start": 35}).json()
        assert ([row["position"] for row in whole["rows"]], whole["total"]) == ([35, 36, 37, 38, 39], ROWS)
        assert http.get("/rows", params={"start": 1000}).json()["rows"] == []
        assert http.get("/rows", params={"batch": 5}).json()["type"] == "urn:curation:problem:bad-dataset"
    plan_view = httpx.get(f"{url}/dashboard/datasets/mined").json()["plan"]
    assert plan_view["communities_per_batch"] == 2.0
    assert plan_view["hardness"] == {"similarity": {"plan": 0.5, "random": 0.25}}
    listed = httpx.get(f"{url}/dashboard/datasets").json()
    assert ([line["name"] for line in listed["datasets"]], listed["unreadable"]) == (["mined"], ["hollow"])


def test_the_curve_is_exact_while_every_step_fits(url: str) -> None:
    rng = np.random.default_rng(0)
    given: dict[int, list[np.ndarray]] = {}
    with Client(url) as client:
        id = client.create_session("random", size=60, batch_size=6, epochs=2, world_size=2).id
        for step in range(7):
            for rank in (0, 1):
                losses = rng.gamma(2, 1, len(client.step(id, step, rank=rank).indices)).astype(np.float32)
                client.report(id, [(step, losses)], rank=rank)
                given.setdefault(step, []).append(losses)
    view = httpx.get(f"{url}/dashboard/sessions/{id}").json()
    steps = {step: np.concatenate(parts).astype(np.float64) for step, parts in given.items()}
    assert [(point["step"], point["epoch"]) for point in view["losses"]["points"]] == [(s, s // 5) for s in range(7)]
    np.testing.assert_allclose([p["mean"] for p in view["losses"]["points"]], [v.mean() for v in steps.values()])
    np.testing.assert_allclose(
        [p["low"] for p in view["losses"]["points"]], [np.quantile(v, 0.1) for v in steps.values()]
    )
    for epoch, members in ((0, range(5)), (1, range(5, 7))):
        values = np.concatenate([steps[step] for step in members])
        found = view["losses"]["epochs"][epoch]
        assert (found["number"], found["losses"], found["unknown"]) == (epoch, len(values), 0)
        assert found["mean"] == pytest.approx(values.mean())
    assert (view["standing"]["step"], view["standing"]["epoch"], view["losses"]["every"]) == (6, 1, 1)
    newest = np.concatenate([steps[5], steps[6]])
    edges = view["spread"]["edges"]
    counts = np.histogram(np.clip(newest, edges[0], edges[-1]), edges)[0]
    assert view["spread"]["counts"] == counts.tolist()


def test_the_curve_of_a_long_session_is_thinned_and_ends_at_the_last_step(url: str) -> None:
    steps = 1000
    with Client(url) as client:
        id = client.create_session("random", size=4 * steps, batch_size=2).id
        client.step(id, steps + 100)
        client.report(id, [(step, np.full(2, float(step), np.float32)) for step in range(steps)])
    curve = httpx.get(f"{url}/dashboard/sessions/{id}").json()["losses"]
    assert curve["every"] == 8
    assert [point["step"] for point in curve["points"]] == [*range(0, steps, 8), steps - 1]
    assert [point["mean"] for point in curve["points"]] == [float(point["step"]) for point in curve["points"]]


@pytest.mark.parametrize("first", [0, 7, 300])
@pytest.mark.parametrize("more", [0, 1, 239, 240, 241, 479, 480, 10**6])
def test_a_curve_never_reads_more_steps_than_it_may(first: int, more: int) -> None:
    last = first + more
    steps, every = losses.thinned(first, last, losses.POINTS)
    assert len(steps) <= losses.POINTS + 1
    assert first <= steps[0] < first + every
    assert steps[-1] == last
    assert set(steps[:-1]) <= set(range(0, last, every))
    assert every & (every - 1) == 0
    assert every == 1 or (more + 1) / (every // 2) > losses.POINTS


# What follows is done by hand and eye, in a real browser.


CURVE = "document.querySelector('.curve')?.getAttribute('points').split(' ').length"


def cell(row: int, column: int) -> str:
    """Text of a cell of the epochs' table."""
    return f"document.querySelectorAll('[aria-label^=Epochs] tbody tr')[{row}]?.cells[{column}].textContent"


def test_the_curve_moves_as_losses_come_in(browser: Any, live: Callable[..., Any]) -> None:
    server = live()
    browser.open(server.url)
    browser.until("document.querySelector('main').textContent.includes('There is no session yet')")
    with Client(server.url) as client:
        id = client.create_session("infobatch", size=400, batch_size=40, epochs=3, id="watched").id
        browser.until("document.querySelector('main a')?.textContent", "watched")
        browser.click("main a")
        browser.until("document.activeElement.textContent", "watched")
        browser.until("document.querySelector('main').textContent.includes('No step was asked for yet')")
        for step in range(3):
            report(client, id, step, 2.0 - step / 10)
        browser.until(CURVE, 3)
        for step in range(3, 10):
            report(client, id, step, 2.0 - step / 10)
        browser.until(CURVE, 10)
        browser.until(cell(0, 6), "1.55")
        report(client, id, 10, 1.0)
        state = httpx.get(f"{server.url}/v1/sessions/{id}/epochs").json()["epochs"][1]
    browser.until(cell(0, 3), str(state["rows"]))
    assert 200 < state["rows"] < 400
    browser.until(cell(0, 4), f"{100 * state['rows'] / 400:.1f} %")
    browser.until(cell(0, 5), str(state["reweighted"]))
    browser.until("document.getElementById('status').textContent.startsWith('Epoch 1 is open')")
    weights = browser.js("document.querySelector('[aria-label^=Weights] tbody').textContent")
    assert "2" in weights
    bars = browser.js("[...document.querySelectorAll('figure rect.rest')].map((bar) => bar.height.baseVal.value)")
    assert len(bars) == 1
    assert bars[0] > 0
    browser.click("#pause")
    assert browser.js("document.getElementById('pause').ariaPressed") == "true"
    browser.click(".name")
    browser.until("document.querySelector('tbody td[data-title=step]')?.textContent", "10")
    server.stop()
    browser.click("#pause")
    browser.until("!document.getElementById('problem').hidden")
    assert browser.js("document.getElementById('clock').textContent").startswith("As of ")
    server.start()
    browser.until("document.getElementById('problem').hidden")
    assert browser.js("document.getElementById('status').textContent") == "The server answers again."


def test_a_token_is_asked_for_and_kept_in_the_tab(browser: Any, guarded: dict[str, str]) -> None:
    browser.open(guarded["url"])
    browser.until("document.activeElement.id", "token")
    browser.press("cur_wrong_wrong", "\ue007")
    browser.until("document.getElementById('problem').textContent.includes('refused')")
    browser.click("#token")
    browser.press(guarded["theirs"], "\ue007")
    browser.until("!document.querySelector('main').hidden && document.getElementById('problem').hidden")
    assert browser.js("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]") == [
        [guarded["theirs"]],
        [],
        "",
    ]
    browser.open(f"{guarded['url']}/#/datasets/mined")
    browser.until("document.querySelectorAll('details.row').length", BATCH)
    browser.click("#forget")
    browser.until("document.activeElement.id", "token")
    assert browser.js("[sessionStorage.length, document.getElementById('clock').textContent]") == [0, ""]


def test_a_list_of_long_names_fits(browser: Any, guarded: dict[str, str]) -> None:
    with Client(guarded["url"], token=guarded["theirs"]) as client:
        for name in ("run-with-all-of-its-parameters-in-the-name-as-people-like-to-do-x", "r" * 64):
            session = client.create_session("random", size=1000, batch_size=10, id=name[-64:]).id
            report(client, session, 0, 1.0)
    browser.open(guarded["url"])
    browser.until("document.activeElement.id", "token")
    browser.press(guarded["theirs"], "\ue007")
    browser.until("document.querySelectorAll('.cards tbody tr').length", 2)
    for width in (1280, 1100):
        browser.emulate(width, "light")
        assert browser.js(
            "document.querySelector('.cards').scrollWidth <= document.querySelector('.cards').clientWidth"
        )


def test_a_dataset_by_keyboard(browser: Any, url: str) -> None:
    browser.open(f"{url}/#/datasets/mined")
    browser.until("document.querySelector('.preview')?.textContent", HOSTILE)
    browser.js("document.getElementById('which-rows').focus()")
    browser.press("\ue013", "\ue013", "\ue004")  # up, up, tab: the number changes
    browser.until("document.querySelector('.position')?.textContent", "23")
    assert browser.js("[...document.querySelectorAll('.preview')].map((e) => e.textContent)")[:3] == [
        "row 23",
        "row 17",
        "row 22",
    ]
    browser.js("document.querySelector('details.row summary').focus()")
    browser.press("\ue007")
    assert browser.js("document.querySelector('details.row').open")
    assert "(12 items)" in browser.js("document.querySelector('dl.cells').textContent")
    assert (
        browser.js("document.querySelector('[aria-label^=Hardness] tbody').textContent")
        == "similarity0.50.252 ×higher is harder"
    )
    assert browser.js("document.title") == "mined – curation"
    assert browser.js("document.querySelectorAll('main img').length") == 0
    assert browser.complaints() == []


def test_a_dataset_without_its_shards_and_report_says_so(browser: Any, url: str, root: Path) -> None:
    folder = root / "torn"
    curated(folder)
    (folder / "data-00000-of-00002.arrow").write_bytes(b"not arrow")
    (folder / "report.html").unlink()
    try:
        browser.open(f"{url}/#/datasets/torn")
        browser.until(
            "document.querySelector('p[role=status].note').textContent",
            "data-00000-of-00002.arrow of dataset 'torn' cannot be read",
        )
        browser.driver.find_element("xpath", "//button[text()='Show the report']").click()
        browser.until(
            "[...document.querySelectorAll('p.note')].at(-1).textContent", "dataset 'torn' has no report.html"
        )
    finally:
        shutil.rmtree(folder)


def test_a_report_runs_apart_from_the_page(browser: Any, url: str) -> None:
    browser.open(f"{url}/#/datasets/mined")
    browser.until("document.querySelector('.preview') != null")
    browser.driver.find_element("xpath", "//button[text()='Show the report']").click()
    browser.until("document.querySelector('iframe')?.sandbox.value", "allow-scripts")
    browser.driver.switch_to.frame(0)
    try:
        browser.until("document.getElementById('own')?.textContent", "kept apart, no storage, no network")
    finally:
        browser.driver.switch_to.default_content()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_names_its_parts_and_has_contrast(browser: Any, url: str, width: int, scheme: str) -> None:
    with Client(url) as client:
        for step in range(12):
            client.create_session("plan", dataset="mined", batch_size=BATCH, epochs=3, id="looked-at")
            report(client, "looked-at", step, 1.0)
        client.create_session("jest", size=60, batch_size=20, id="chosen", parameters={"filter_ratio": 0.5})
        client.step("chosen", 0)
    browser.emulate(width, scheme)
    for view, ready in [
        ("", "main tbody a"),
        ("sessions/looked-at", "[aria-label^=Hardness]"),
        ("sessions/chosen", "rect.rest"),
        ("datasets", "main tbody a"),
        ("datasets/mined", "details.row"),
    ]:
        browser.open(f"{url}/#/{view}")
        browser.until(f"document.querySelector('{ready}') != null && !document.querySelector('.waiting')")
        assert browser.js("document.documentElement.scrollWidth") <= width, view
        assert browser.js("document.querySelectorAll('h1').length") == 1
        unnamed = browser.js(
            "[...document.querySelectorAll('button, input, select, iframe, [role=img], [role=region], table')]"
            ".filter((e) => !(e.ariaLabel || e.caption?.textContent || e.labels?.[0]?.textContent.trim() || e.title"
            " || (e.tagName == 'BUTTON' && e.textContent))).map((e) => e.outerHTML)"
        )
        assert unnamed == [], view
        ids = browser.js("[...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids)), view
        colours = browser.js(
            "['--paper', '--ink', '--muted', '--accent'].map((n) =>"
            " getComputedStyle(document.documentElement).getPropertyValue(n).trim())"
        )
        paper, *inks = map(luminance, colours)
        assert (paper < 0.5) == (scheme == "dark")
        assert all((max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 4.5 for ink in inks)
        browser.press("\ue004")
        assert browser.js("document.activeElement.id") == "skip"
    assert browser.complaints() == []


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
