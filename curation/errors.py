"""Errors that this project raises on purpose, apart from ``ValueError`` for a bad argument.

::

    CurationError
    ├── RecipeError          the recipe is wrong: file, line, key                    exit code 3
    ├── SourceError          an input cannot be read: file, column                   exit code 4
    │   └── BadRowError      one row of it is bad: file, row, reason                 exit code 4
    ├── StepError            a step cannot do its work: step, reason                 exit code 5
    ├── OutputError          the output cannot be written, or is someone else's      exit code 6
    └── VerificationError    a finished dataset is not what its manifest says        exit code 7
"""


class CurationError(Exception):
    """Base of the tree. ``exit_code`` is what the command line exits with."""

    exit_code = 1


class RecipeError(CurationError, ValueError):
    """The recipe is wrong. The message names the file, the line and the key."""

    exit_code = 3


class SourceError(CurationError):
    """An input cannot be read. The message names the file, and the column where one is meant."""

    exit_code = 4


class BadRowError(SourceError):
    """One row of an input is bad: the run stops here unless the recipe says ``on_bad_row: quarantine``.

    Args:
        file: where the row stands.
        row: its number in that file, from 0.
        reason: what is wrong with it, such as ``"text is empty"``.
    """

    def __init__(self, file: str, row: int, reason: str) -> None:
        super().__init__(file, row, reason)
        self.file = file
        self.row = row
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.file}, row {self.row}: {self.reason}. "
            "Fix the row, or set `on_bad_row: quarantine` in the recipe to set such rows aside."
        )


class StepError(CurationError):
    """A step of the recipe cannot do its work. The message names the step."""

    exit_code = 5


class OutputError(CurationError):
    """The output cannot be written, or the folder holds something else."""

    exit_code = 6


class VerificationError(CurationError):
    """A finished dataset differs from its manifest."""

    exit_code = 7
