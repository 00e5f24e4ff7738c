"""Progress: how a long job tells whoever watches what it is doing."""

from typing import Protocol


class Progress(Protocol):
    """The command line draws bars with it; a program may pass its own."""

    def begin(self, stage: str, rows: int, done: int = 0) -> None:
        """A stage starts; ``done`` of its ``rows`` were finished by an earlier, interrupted run."""

    def advance(self, rows: int) -> None:
        """That many more rows of the current stage are done."""

    def end(self) -> None:
        """The current stage is over."""

    def note(self, message: str) -> None:
        """A line that the watcher should see, such as a choice that was made."""


class Silent:
    """Says nothing."""

    def begin(self, stage: str, rows: int, done: int = 0) -> None: ...

    def advance(self, rows: int) -> None: ...

    def end(self) -> None: ...

    def note(self, message: str) -> None: ...
