"""Ownership of a SQLite file: one server at a time, known by the file itself and not by its name.

A lock on the file holds through links and after whatever lies beside it was tidied away. The file beside it
(``.lock``) is what servers of release 0.1 lock; it stays, so that a store that vanished is missed at the next start.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curation.errors import CurationError
from curation.service.errors import Refusal
from curation.service.logs import logger


class StoreError(CurationError):
    """The store cannot be opened: its URL is wrong, or another server owns it."""


class OwnedFile:
    """The file of one store, which is made where there is none, for nobody else to read.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._beside: int | None = None
        self._lost = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._new = not path.exists() or path.stat().st_size == 0
        if self._new:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def own(self) -> None:
        """Be the one server of the file, until :meth:`close` or the end of the process.

        Raises:
            StoreError: another server has it.
        """
        if self._beside is not None:
            return
        resolved = self.path.resolve()
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        beside = os.open(f"{resolved}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(beside, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(beside)
            raise StoreError(
                f"{self.path}: another server owns this store. Stop it, or use PostgreSQL for several replicas."
            ) from error
        self._beside = beside
        if self._new and os.fstat(beside).st_size:
            logger.error(
                "%s is new, but there was a store here before (%s.lock tells): sessions and tokens of that one are "
                "gone unless you stop this server and put the file back, from a backup",
                self.path,
                resolved,
            )
        self._new = False
        os.ftruncate(beside, 0)
        os.write(beside, f"{os.getpid()}\n".encode())

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own it for a while, to change its tables; it stays owned where it was before.

        Raises:
            StoreError: another server has it.
        """
        before = self._beside is not None
        self.own()
        try:
            yield
        finally:
            if not before:
                self._release()

    def check(self) -> None:
        """Make sure that the name still leads to the file.

        Raises:
            Refusal: it was removed or replaced. Once is for good: what was written meanwhile is in no store.
        """
        if self._descriptor is None:
            return
        try:
            there, ours = self.path.stat(), os.fstat(self._descriptor)
            same = (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)
        except OSError:
            same = False
        if self._lost or not same:
            if not self._lost:
                logger.critical(
                    "%s was removed or replaced while this server runs: nothing is acknowledged any more. Stop the "
                    "server, put the file back with its -wal, and start it",
                    self.path,
                )
            self._lost = True
            raise Refusal(
                "store-unavailable",
                "the store's file was removed or replaced while the server runs, so nothing can be kept: its operator "
                "has to stop the server, put the file back and start it",
                retry_after=5,
            )

    def close(self) -> None:
        """Let go of it. After all connections: closing any descriptor of a file drops the locks SQLite holds on it."""
        self._release()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _release(self) -> None:
        if self._beside is not None and self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._beside)
            self._beside = None
