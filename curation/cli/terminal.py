"""Terminal output: tables, JSON, progress, and text from data made safe to print."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from curation.progress import Progress

QUIET_SECONDS = 2.0
TELLING = 0.05
"""The share of a stage that must be done before its pace is told: until then it is mostly that of starting."""


def out() -> Console:
    """Where results go."""
    return Console(highlight=False, soft_wrap=False)


def err() -> Console:
    """Where everything else goes."""
    return Console(stderr=True, highlight=False)


def complain(message: str) -> None:
    """Say what went wrong, in red."""
    console = err()
    console.print(Text("error: ", style="bold red") + Text(printable(message)), soft_wrap=True)


def emit(value: Any) -> None:
    """Print JSON for machines: one document, keys as they come, numbers that JSON lacks as null or text."""
    print(json.dumps(plain(value), ensure_ascii=False, indent=2, default=str))


def plain(value: Any) -> Any:
    """What JSON can hold: arrays become lists, NaN null, infinities text."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value


def printable(text: str) -> str:
    """Text whose control characters, such as escape sequences, show instead of acting."""
    return "".join(_visible(character) for character in text)


def shorten(value: Any, limit: int) -> Text:
    """A value from data on one line."""
    text = printable(value if isinstance(value, str) else str(plain(value))).replace("\n", "⏎")
    return Text(text if len(text) <= limit else text[: limit - 1] + "…")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; a column whose title starts with ``#`` holds numbers and is aligned to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left")
    for row in rows:
        made.add_row(
            *(
                cell if isinstance(cell, Text) else Text(f"{cell:,}" if isinstance(cell, int) else str(cell))
                for cell in row
            )
        )
    return made


def bar(share: float, width: int) -> str:
    """A bar of eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


@contextmanager
def watching(machine: bool) -> Iterator[Progress]:
    """Progress on stderr: bars in a terminal, plain lines elsewhere, JSON lines for machines."""
    console = err()
    if machine:
        yield _JsonLines()
    elif console.is_terminal:
        bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}", justify="right"),
            _Speed(),
            TimeRemainingColumn(),
            console=console,
        )
        with bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Speed(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None and task.elapsed:
            speed = (task.completed - task.fields["before"]) / task.elapsed
        return Text("" if speed is None else f"{speed:,.0f} rows/s", style="dim")


class _Bars:
    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def begin(self, stage: str, rows: int, done: int = 0) -> None:
        self._task = self._bars.add_task(stage, total=rows, completed=done, before=done)

    def advance(self, rows: int) -> None:
        if self._task is not None:
            self._bars.advance(self._task, rows)

    def end(self) -> None:
        if self._task is not None:
            self._bars.stop_task(self._task)
            self._bars.refresh()
        self._task = None

    def note(self, message: str) -> None:
        self._bars.console.print(Text(printable(message)))


class _Counter:
    """Counts rows of a stage and says something at its begin, its end, and at most every ``QUIET_SECONDS``."""

    def __init__(self) -> None:
        self._stage, self._rows, self._done, self._before = "", 0, 0, 0
        self._start = self._said = 0.0

    def begin(self, stage: str, rows: int, done: int = 0) -> None:
        self._stage, self._rows, self._done, self._before = stage, rows, done, done
        self._start = self._said = time.monotonic()
        self._say("begin", None, None)

    def advance(self, rows: int) -> None:
        self._done += rows
        if time.monotonic() - self._said >= QUIET_SECONDS:
            self._said = time.monotonic()
            speed = self._speed() if self._done - self._before >= TELLING * (self._rows - self._before) else None
            self._say("advance", speed, (self._rows - self._done) / speed if speed else None)

    def end(self) -> None:
        self._say("end", self._speed(), None)

    def _speed(self) -> float | None:
        seconds = time.monotonic() - self._start
        fresh = self._done - self._before
        return fresh / seconds if seconds > 0 and fresh > 0 else None

    def _say(self, event: str, speed: float | None, left: float | None) -> None:
        raise NotImplementedError


class _Lines(_Counter):
    def note(self, message: str) -> None:
        self._print(printable(message))

    def _say(self, event: str, speed: float | None, left: float | None) -> None:
        if event == "begin":
            resumed = f", {self._before:,} of them done before" if self._before else ""
            self._print(f"{self._stage}: {self._rows:,} rows{resumed}")
            return
        pace = f", {speed:,.0f} rows/s" if speed else ""
        if event == "end":
            self._print(f"{self._stage}: done in {time.monotonic() - self._start:.1f} s{pace}")
        else:
            share = f" ({100 * self._done / self._rows:.0f} %)" if self._rows else ""
            remaining = f", {left:,.0f} s left" if left is not None else ""
            self._print(f"{self._stage}: {self._done:,} of {self._rows:,}{share}{pace}{remaining}")

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _JsonLines(_Counter):
    def note(self, message: str) -> None:
        self._print({"event": "note", "message": message})

    def _say(self, event: str, speed: float | None, left: float | None) -> None:
        line: dict[str, Any] = {"event": event, "stage": self._stage, "rows": self._rows, "done": self._done}
        if event != "begin":
            line |= {"rows_per_second": speed, "seconds": time.monotonic() - self._start}
        if left is not None:
            line["seconds_left"] = left
        self._print(line)

    def _print(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), file=sys.stderr, flush=True)


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or (code >= 32 and not 127 <= code < 160):
        return character
    return chr(0x2400 + code) if code < 32 else "�"
