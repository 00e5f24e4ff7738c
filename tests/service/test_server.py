"""Server process: what hinders its start is one line with what to do; how it ends, its exit status says."""

import logging
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What ``curation serve`` prints where it does not start."""
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code in (1, 2)
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return " ".join(printed.replace("│", " ").split())


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A server sets up its process: what it changes of this one is put back."""
    loggers = [logging.getLogger(name) for name in ("curation.service", "uvicorn")]
    logs = [(log, log.handlers[:], log.level, log.propagate) for log in loggers]
    terminated, interval = signal.getsignal(signal.SIGTERM), sys.getswitchinterval()
    yield
    signal.signal(signal.SIGTERM, terminated)
    sys.setswitchinterval(interval)
    for log, handlers, level, propagate in logs:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


def test_a_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, "--port", str(port), "--store", f"sqlite:///{tmp_path}/s.db")
    assert f"127.0.0.1, port {port}: Address already in use: another process listens there: stop it, or" in said


def test_an_address_of_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--host", "127.0.0.1.example.invalid", "--store", f"sqlite:///{tmp_path}/s.db")
    assert "127.0.0.1.example.invalid can be reached from other machines" in said


def test_a_file_that_is_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no database, but a text that is long enough for a header\n" * 100)
    said = refused(capsys, "--store", f"sqlite:///{tmp_path}/notes.txt")
    assert "the store cannot be opened: file is not a database. To do: name another file, or move this" in said


def test_a_folder_in_the_place_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--store", f"sqlite:///{tmp_path}")
    assert "unable to open database file. To do: check that its folder exists" in said
    (tmp_path / "file").touch()
    assert "the store cannot be opened: " in refused(capsys, "--store", f"sqlite:///{tmp_path}/file/s.db")


def test_a_postgresql_that_is_down_and_no_password_in_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen: nobody else can meanwhile
        port = held.getsockname()[1]
        said = refused(capsys, "--store", f"postgresql+psycopg://me:geheim@127.0.0.1:{port}/sessions")
    assert "Connection refused" in said
    assert "To do: check that PostgreSQL runs and listens there." in said
    assert "geheim" not in said


@pytest.mark.parametrize("text", ["port: [1\n", "- a\n- b\n", "just words\n", "port: many\n", "colour: red\n"])
def test_a_settings_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert "Invalid value" in refused(capsys, "--config", str(file))


def test_a_new_store_is_for_its_user_only(serve: Callable[..., Any], tmp_path: Path) -> None:
    server = serve()
    modes = {file.suffix: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("store.db*")}
    del modes[".lock"]
    assert modes == {".db": 0o600, ".db-wal": 0o600, ".db-shm": 0o600}
    assert server.stop() == 0
