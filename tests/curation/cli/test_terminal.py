"""Progress on every kind of stderr, JSON that stays JSON, and text that cannot act on a terminal."""

import io
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from curation.cli import terminal
from curation.progress import Progress


def work(progress: Progress) -> None:
    progress.begin("1. align", 100, 40)
    for _ in range(6):
        progress.advance(10)
    progress.note("a choice was made")
    progress.end()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes each look at the clock advance it by some seconds."""

    def tick(seconds: float) -> None:
        now = [0.0]

        def monotonic() -> float:
            now[0] += seconds
            return now[0]

        monkeypatch.setattr(terminal.time, "monotonic", monotonic)

    return tick


def test_plain_lines_say_begin_and_end(capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]) -> None:
    clock(0.01)
    with terminal.watching(machine=False) as progress:
        work(progress)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1. align: 100 rows, 40 of them done before"
    assert lines[1] == "a choice was made"
    assert lines[2].startswith("1. align: done in ")
    assert lines[2].endswith(" rows/s")
    assert len(lines) == 3


def test_plain_lines_come_at_most_every_two_seconds(
    capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    clock(1.0)
    with terminal.watching(machine=False) as progress:
        work(progress)
    middle = [line for line in capsys.readouterr().err.splitlines() if " of 100 (" in line]
    assert 0 < len(middle) < 6
    assert all("rows/s" in line and "s left" in line for line in middle)


def test_no_pace_is_told_of_the_very_start(capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]) -> None:
    clock(3.0)
    with terminal.watching(machine=False) as progress:
        progress.begin("check rows", 1000)
        progress.advance(40)
        progress.advance(40)
        progress.end()
    _, early, later, _ = capsys.readouterr().err.splitlines()
    assert early == "check rows: 40 of 1,000 (4 %)"
    assert later.startswith("check rows: 80 of 1,000 (8 %), ")
    assert later.endswith(" s left")


def test_machines_get_json_lines(capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]) -> None:
    clock(1.0)
    with terminal.watching(machine=True) as progress:
        work(progress)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == {"event": "begin", "stage": "1. align", "rows": 100, "done": 40}
    assert lines[-1]["event"] == "end"
    assert lines[-1]["done"] == 100
    assert {"event": "note", "message": "a choice was made"} in lines
    assert any(line["event"] == "advance" and line["seconds_left"] > 0 for line in lines)


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(terminal, "err", lambda: console)
    with terminal.watching(machine=False) as progress:
        work(progress)
        progress.begin("2. acquire", 5)
        progress.advance(5)
        progress.end()
    shown = screen.getvalue()
    assert "1. align" in shown
    assert "100 of 100" in shown
    assert "2. acquire" in shown
    assert "a choice was made" in shown
    assert "rows/s" in shown


def test_json_holds_what_json_can() -> None:
    value = {"a": np.array([1.0, math.nan]), "b": (math.inf,), "c": b"\xff", 4: {"d": "ü"}}
    assert terminal.plain(value) == {"a": [1.0, None], "b": ["inf"], "c": "�", "4": {"d": "ü"}}


def test_control_characters_show() -> None:
    assert terminal.printable("a\x1b[2J\x07\x9b\x7f\n\tü") == "a␛[2J␇��\n\tü"
    assert terminal.shorten("one\ntwo", 100).plain == "one⏎two"
    assert terminal.shorten("x" * 50, 10).plain == "x" * 9 + "…"


@pytest.mark.parametrize(("share", "width", "drawn"), [(0, 4, ""), (1, 4, "████"), (0.5, 1, "▌"), (2, 2, "██")])
def test_bars(share: float, width: int, drawn: str) -> None:
    assert terminal.bar(share, width) == drawn
