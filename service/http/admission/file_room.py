"""Room for files on their way in and out: how many bytes of TMPDIR one owner holds at once."""

import threading
from collections import Counter
from types import TracebackType

from curation.service.errors import Refusal

_RETRY_SECONDS = 10.0


class FileRoom:
    """The files of a server, by owner. Thread-safe.

    Args:
        most: bytes that one owner may hold.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str | None] = Counter()
        self._lock = threading.RLock()  # a file that goes while bytes are counted gives its own back

    def holding(self, owner: str | None) -> "Holding":
        """What one file of an owner will hold; None: whoever needs no token."""
        return Holding(self, owner)

    def add(self, owner: str | None, size: int, before: int) -> None:
        """Count bytes of a file that has some, before they are written; raises ``Refusal`` where they are too many."""
        if before + size > self._most:
            raise Refusal("too-large", f"the checkpoint takes more than {self._most} bytes (owner_file_bytes)")
        with self._lock:
            if self._held[owner] + size > self._most:
                raise Refusal(
                    "quota",
                    f"the checkpoints that are on their way for {'you' if owner is None else f'owner {owner!r}'} take "
                    f"{self._held[owner]} bytes of this server's disk, and {self._most} is the limit "
                    "(owner_file_bytes): let some of them end first",
                    retry_after=_RETRY_SECONDS,
                    limit="owner_file_bytes",
                )
            self._held[owner] += size

    def remove(self, owner: str | None, size: int) -> None:
        """The bytes are gone."""
        with self._lock:
            self._held[owner] -= size
            if not self._held[owner]:
                del self._held[owner]


class Holding:
    """Bytes of one file; given back as a ``with`` ends, or by :meth:`release`."""

    def __init__(self, room: FileRoom, owner: str | None) -> None:
        self._room, self._owner, self._size = room, owner, 0

    def add(self, size: int) -> None:
        """Count bytes that are written next.

        Raises:
            Refusal: the owner would hold more than it may, or the file is larger than that alone.
        """
        self._room.add(self._owner, size, self._size)
        self._size += size

    def release(self) -> None:
        """The file is gone; again, it does nothing."""
        size, self._size = self._size, 0
        if size:
            self._room.remove(self._owner, size)

    def __enter__(self) -> "Holding":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
