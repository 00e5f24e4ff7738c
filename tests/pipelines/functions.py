"""Functions that recipes of these tests name. Alone in a file, because each worker that runs one imports its file."""

import threading

import pyarrow as pa

from curation.errors import StepError

NAME = __name__


def lengths(texts: list[str]) -> list[list[int]]:
    return [[len(text)] for text in texts]


def length_score(table: pa.Table, *, sign: int = 1) -> list[int]:
    return [sign * len(text) for text in table["text"].to_pylist()]


def zero(table: pa.Table) -> list[float]:
    return [0.0] * len(table)


def nan_for_some(table: pa.Table) -> list[float]:
    return [float("nan") if group == "g3" else 1.0 for group in table["group"].to_pylist()]


def fails(table: pa.Table) -> list[float]:
    raise KeyError("boo")


def too_few(table: pa.Table) -> list[float]:
    return [0.0]


def gone(table: pa.Table) -> list[float]:
    raise RuntimeError("gone")


class TwoToldError(StepError):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first}, {second}")


class HoldingError(StepError):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


def two_told(table: pa.Table) -> list[float]:
    raise TwoToldError("one", "two")


def holding(table: pa.Table) -> list[float]:
    raise HoldingError("boo")
