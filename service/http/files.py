"""Files on their way in and out: bodies that are too large for memory, kept in TMPDIR meanwhile.

A long transfer may take its time: the request's limits start anew with each piece.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOSPC
from tempfile import NamedTemporaryFile, TemporaryFile, gettempdir
from typing import IO, Any, cast

from fastapi import Request
from fastapi.responses import StreamingResponse

from curation.service.errors import Refusal
from curation.service.http.admission.file_room import Holding
from curation.service.http.admission.request_body import body_of
from curation.service.http.bodies import ARROW
from curation.service.settings import Settings

PIECE = 1 << 20
_UNIT = 256 << 20
"""Bytes for which the work on a file may take as long as any other request."""


@contextmanager
def temporary_file() -> Iterator[Any]:
    """A file with a name in TMPDIR, gone in the end."""
    file = NamedTemporaryFile()  # noqa: SIM115 (closing one on a full disk fails, too)
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


async def receive_file(request: Request, settings: Settings, file: IO[bytes], holding: Holding) -> None:
    """Write a request's body into a file; what follows gets time by its size.

    Raises:
        Refusal: the disk is full, or the owner's share of it.
    """
    deadline, pieces, waiting = request.state.deadline, [], 0
    body_of(request).allow(settings.max_checkpoint_bytes, "max_checkpoint_bytes", kept=False)
    with _room():
        async for piece in request.stream():
            holding.add(len(piece))
            pieces.append(piece)
            waiting += len(piece)
            if waiting >= PIECE:
                await asyncio.to_thread(file.writelines, pieces)
                pieces, waiting = [], 0
                deadline.set(settings.body_seconds)
        await asyncio.to_thread(file.writelines, pieces)
        await asyncio.to_thread(file.flush)
    deadline.set(settings.request_seconds * (1 + file.tell() / _UNIT))


async def send_file(
    request: Request, settings: Settings, write: Callable[[IO[bytes]], Any], holding: Holding
) -> StreamingResponse:
    """The answer that ``write`` writes into a file, in a thread, before its first byte is sent.

    Raises:
        Refusal: the disk is full, or the owner's share of it.
    """
    file = TemporaryFile()  # noqa: SIM115 (open until the answer is sent)
    weakref.finalize(file, holding.release)  # also where nobody takes the answer
    try:
        with _room():
            await asyncio.to_thread(write, cast(IO[bytes], _Counted(file, holding)))
            await asyncio.to_thread(file.flush)
    except BaseException:
        with holding, suppress(OSError):  # what it could not write it tries again
            file.close()
        raise
    size = file.tell()
    file.seek(0)

    async def pieces() -> AsyncIterator[bytes]:
        with holding, file:
            while piece := await asyncio.to_thread(file.read, PIECE):
                request.state.deadline.set(settings.request_seconds)
                yield piece

    return StreamingResponse(pieces(), media_type=ARROW, headers={"Content-Length": str(size)})


class _Counted:
    """A file whose bytes are counted as they are written."""

    closed = False

    def __init__(self, file: IO[bytes], holding: Holding) -> None:
        self._file, self._holding = file, holding

    def write(self, data: Any) -> int:
        self._holding.add(memoryview(data).nbytes)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        detail = f"the server has no room for a checkpoint in {gettempdir()}: its operator may name another TMPDIR"
        raise Refusal("store-unavailable", detail, retry_after=60) from error
