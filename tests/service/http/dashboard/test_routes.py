"""The page in a real Chromium: runs that diverged, wait, stand still; many ranks and sessions; addresses of nothing."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from curation.dataset.manifest import FileRecord, Manifest, now
from curation.dataset.writer import shard_name, write_shard
from curation.service.client import Client

STANDING = "document.querySelector('.standing')?.textContent"
HIDE = """Object.defineProperty(document, 'hidden', {get: () => true});
document.dispatchEvent(new Event('visibilitychange'));"""


def png(colour: int) -> bytes:
    """A picture of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes([0, colour, colour, colour]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset "pictures" of 40 rows; the picture of row 0 is text."""
    root = tmp_path_factory.mktemp("datasets")
    (root / "pictures").mkdir()
    columns = {
        "picture": pa.array([b"<svg onload=alert(1)>", *(png(row) for row in range(1, 40))]),
        "nested": pa.array([{"bytes": png(row), "path": None} for row in range(40)]),
        "caption": pa.array([f"caption {row}" for row in range(40)]),
    }
    table, name = pa.table(columns), shard_name(0, 1)
    write_shard(root / "pictures" / name, table.schema, [table], batch_rows=10)
    Manifest(
        recipe={"steps": []},
        recipe_sha256="0" * 64,
        seed=0,
        inputs=[],
        rows_in=40,
        rows_out=40,
        steps=[],
        files={name: FileRecord(bytes=1, sha256="", rows=40)},
        versions={},
        seconds={},
        created=now(),
    ).save(root / "pictures")
    return root


@pytest.fixture(scope="module")
def url(live: Callable[..., Any], root: Path) -> str:
    """A server with sessions of every kind."""
    url = str(live(datasets=[root]).url)
    with Client(url) as client:
        for number in range(120):
            client.create_session("random", size=10, batch_size=5, id=f"sweep-{number:03d}")
        client.create_session("infobatch", size=1000, batch_size=10, epochs=10, id="unused")
        client.create_session("infobatch", size=40, batch_size=10, epochs=2, world_size=2, id="waits")
        for step, ranks in ((0, (0, 1)), (1, (0,))):
            for rank in ranks:
                batch = client.step("waits", step, rank=rank)
                client.report("waits", [(step, np.ones(len(batch.indices)))], rank=rank)
        client.create_session("random", size=400, batch_size=4, epochs=3, id="diverged", non_finite="keep")
        client.step("diverged", 0)
        client.report("diverged", [(step, np.full(4, 9.0 if step < 50 else np.inf)) for step in range(60)])
        client.create_session("infobatch", size=40, batch_size=20, epochs=4, id="done", parameters={"delta": 0.5})
        step = 0
        while True:
            batch = client.step("done", step)
            client.report("done", [(step, np.linspace(0.1, 10, len(batch.indices)))])
            if batch.end_of_session:
                break
            step += 1
        client.create_session("random", dataset="pictures", batch_size=8, epochs=6, id="plates")
        for step in range(30):
            batch = client.step("plates", step)
            losses = 1 + 0.01 * np.arange(len(batch.indices))
            losses[2] += 8 * (step == 27)
            client.report("plates", [(step, losses)])
    return url


def test_a_diverged_run_says_so_and_where_it_began(browser: Any, url: str) -> None:
    browser.open(f"{url}/#/sessions/diverged")
    browser.until(
        "document.querySelector('.alarm.loud')?.textContent.startsWith('Diverged: from step 50 (epoch 0) on')"
    )
    assert "16.7 % in epoch 0" in browser.js("document.querySelector('.alarm').textContent")
    assert browser.js("document.querySelector('.standing .badge').textContent") == "diverged"
    assert browser.js("document.querySelectorAll('.bad').length") == 10
    assert "No losses were reported" not in browser.js("document.querySelector('main').innerText")


def test_an_unused_session_is_not_begun(browser: Any, url: str) -> None:
    browser.open(f"{url}/#/sessions/unused")
    browser.until("document.querySelector('.tiles dd')?.textContent", "0.0 %")
    assert browser.js(STANDING) == "not started No step was asked for yet."
    seen = "[...document.querySelectorAll('h2')].filter((e) => e.checkVisibility()).map((e) => e.textContent)"
    shown = browser.js(seen)
    assert shown == ["Losses", "Parameters"]


def test_the_list_and_the_page_say_for_whom_a_session_waits(browser: Any, url: str) -> None:
    browser.open(f"{url}/#/sessions/waits")
    browser.until(
        "document.querySelector('.standing')?.textContent.includes('Epoch 1 waits for 1 rank: rank 1 was last')"
    )
    assert browser.js("document.querySelector('[aria-label=Ranks] tbody th').textContent") == "1"
    browser.open(url)
    line = "[...document.querySelectorAll('tbody tr')].find((e) => e.querySelector('a').textContent == 'waits')"
    browser.until(f"{line}?.querySelector('.badge').textContent", "waiting")
    assert browser.js(f"{line}.querySelector('.why').textContent").startswith("rank 1 was last here")


def test_the_curve_has_a_log_scale_and_a_window_and_pruning_says_when_it_ended(browser: Any, url: str) -> None:
    browser.open(f"{url}/#/sessions/done")
    browser.until("document.querySelector('.standing .badge')?.textContent", "finished")
    browser.until("document.querySelector('main').textContent.includes('Pruning ended at epoch 2 (delta)')")
    points = "document.querySelector('.curve')?.getAttribute('points')"
    before = browser.js(points)
    browser.driver.find_element("xpath", "//button[text()='Log scale']").click()
    assert browser.js(points) != before
    every = browser.until(f"{points}.split(' ').length")
    browser.js("document.getElementById('which-steps').focus()")
    browser.press("\ue015")  # down: the newest epoch
    browser.until(f"{points}.split(' ').length", 2)
    assert every > 2
    assert browser.js("document.querySelectorAll('polyline.outline').length") == 1


def test_a_click_on_the_curve_shows_the_rows_of_the_step_with_pictures(browser: Any, url: str) -> None:
    browser.open(f"{url}/#/sessions/plates")
    browser.until("document.querySelector('.curve') != null")
    browser.click("figure svg")  # its middle
    browser.until("location.hash.startsWith('#/sessions/plates/steps/1')")
    browser.until("document.querySelectorAll('details.row').length", 8)
    browser.js("document.getElementById('which-step').select()")
    browser.press("2", "7", "\ue007")
    browser.until("location.hash", "#/sessions/plates/steps/27")
    with Client(url) as client:
        rows = client.step_rows("plates", 27)
    worst = int(rows.rows[np.argmax(rows.losses)])
    first = "document.querySelector('details.row')"
    browser.until(f"{first}?.textContent.includes('loss 9.02') && {first}.textContent.includes('row {worst}')")
    assert f"caption {worst}" in browser.js(f"{first}.querySelector('.preview').textContent")
    browser.until(f"{first}.querySelector('img').naturalWidth", 1)
    browser.click("details.row summary")
    browser.click("details.row .visits button")
    browser.until(f"{first}.querySelectorAll('.visits tbody tr').length", 6)
    browser.driver.find_element("xpath", "//button[text()='Find spikes']").click()
    browser.until("document.querySelector('[aria-label^=Steps] button.link')?.textContent", "27")
    browser.open(f"{url}/#/sessions/plates/steps/3")
    browser.until("document.querySelector('main').textContent.includes('Step 3, epoch 0: 8 rows, 8 with a loss')")
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("sessions/none-such", "There is no session “none-such”"),
        ("sessions/%", "This address names no session and no dataset"),
        ("sessions/%00", "There is no session"),
        ("constructor/x", "This address names no session and no dataset"),
        ("datasets/none", "There is no dataset “none”"),
    ],
)
def test_an_address_of_nothing_says_so(browser: Any, url: str, address: str, says: str) -> None:
    browser.open(f"{url}/#/{address}")
    browser.until(f"document.querySelector('main').innerText.includes('{says}')")
    assert browser.js("[...document.querySelectorAll('main h2')].length") == 0
    assert not [line for line in browser.complaints() if "404" not in line and "422" not in line]
    browser.click("main a")
    browser.until("document.querySelector('main h1').textContent != 'Not found'")


def test_a_session_that_is_not_there_is_asked_for_once(browser: Any, url: str) -> None:
    browser.open(f"{url}/#/sessions/none-such")
    browser.until("document.querySelector('main h1').textContent", "Not found")
    browser.driver.execute_async_script("setTimeout(arguments[0], 2300)")
    asked = "performance.getEntriesByType('resource').filter((e) => e.name.includes('/none-such')).length"
    assert browser.js(asked) == 1


def test_sessions_are_searched_and_paged_and_fit_a_phone(browser: Any, url: str) -> None:
    browser.open(url)
    browser.until("document.querySelector('main').textContent.includes('1 to 50 of 125 sessions')")
    browser.driver.find_element("xpath", "//button[text()='Next page']").click()
    browser.until("document.querySelector('main').textContent.includes('51 to 100 of 125 sessions')")
    browser.click("#search")
    browser.press(*"sweep-11")
    browser.until("document.querySelector('main').textContent.includes('1 to 10 of 10 sessions')")
    assert browser.js("document.querySelector('tbody a').textContent") == "sweep-119"
    browser.emulate(500, "light")
    hidden = browser.js(
        "[...document.querySelectorAll('tbody tr:first-child td')].filter((e) => e.checkVisibility() && "
        "(e.getBoundingClientRect().right > innerWidth || !e.innerText.trim())).map((e) => e.dataset.title)"
    )
    assert hidden == []
    assert browser.js("document.documentElement.scrollWidth") <= 500


def test_a_hidden_tab_asks_for_nothing(browser: Any, url: str) -> None:
    browser.open(url)
    browser.until("document.querySelectorAll('tbody tr').length", 50)
    browser.driver.execute_script(HIDE)
    before = browser.js("performance.getEntriesByType('resource').length")
    browser.driver.execute_async_script("setTimeout(arguments[0], 2300)")
    assert browser.js("performance.getEntriesByType('resource').length") == before


def test_a_picture_has_a_strict_type_and_nothing_else_is_one(url: str, assert_problem: Callable[..., Any]) -> None:
    path = f"{url}/dashboard/datasets/pictures/rows"
    for column in ("picture", "nested"):
        answer = httpx.get(f"{path}/7/image", params={"column": column})
        assert (answer.headers["content-type"], answer.content) == ("image/png", png(7))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert httpx.get(path).json()["images"] == ["picture", "nested"]
    assert httpx.get(path).json()["rows"][1]["cells"][0] == f"image/png, {len(png(1))} bytes"
    for row, column in ((0, "picture"), (7, "caption"), (7, "none"), (40, "picture")):
        assert_problem(httpx.get(f"{path}/{row}/image", params={"column": column}), 404, "not-found")
    assert_problem(httpx.get(f"{url}/dashboard/datasets/none/rows/0/image?column=a"), 404, "not-found")
