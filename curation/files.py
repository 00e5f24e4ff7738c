"""Files written so that a reader sees a whole one or none."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curation.errors import OutputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on leaving, what stands there is synced and renamed to ``path``.

    Raises:
        OutputError: the disk is full, the folder is not writable, or the like. Nothing is left at ``path``.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}. What was finished is kept: "
            "fix this and run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically (see :func:`atomic`)."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
