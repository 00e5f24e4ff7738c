"""Ray: the one place that knows a job is distributed.

A task is a picklable callable that takes a piece of work and leaves its result in a file. Ray schedules, places
and retries; what is finished stands on disk, so a piece may run twice and a killed job goes on where it was.
"""

import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.data
from ray import cloudpickle

from curation.errors import CurationError, StepError
from curation.pipelines.engine.functions import expect, expected, extend_path, import_path, load_function
from curation.progress import Progress
from curation.recipe.model import Resources

TRIES = 5
"""How often a task is begun whose worker dies."""


class Piece(Protocol):
    """A unit of work."""

    @property
    def number(self) -> int:
        """From 0, without gaps."""

    @property
    def rows(self) -> int:
        """What finishing it adds to the progress."""


@contextmanager
def runtime(address: str | None = None, workers: int | None = None) -> Iterator[None]:
    """A Ray runtime: the caller's, where one is up; else a cluster by address or ``RAY_ADDRESS``; else a local one.

    Only what was started here is shut down.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    # Without this Ray 2.60 warns on every start of a task that asks for no GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # "local": without an address Ray would join any cluster that it finds on this machine.
    local = {"address": "local", "include_dashboard": False, "num_cpus": workers}
    where = local if address is None else {"address": address}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    try:
        if address is not None:
            run_one(_nothing)
        yield
    finally:
        ray.shutdown()


def run_pieces(
    task: Callable[[Any], object],
    pieces: Sequence[Piece],
    *,
    label: str,
    tries: Path,
    progress: Progress,
    resources: Resources | None = None,
    workers: int | None = None,
    actors: bool = False,
) -> None:
    """Run ``task`` on each piece, one Ray Data task a piece, and wait for all.

    Args:
        task: a picklable callable of one piece; it writes its result to a file.
        pieces: what to do; their order is the order of submission.
        label: names the step in errors.
        tries: a folder for marks that count how often a piece was begun: Ray Data begins one again without end
            when its worker dies, and has no setting for that.
        progress: told the rows of each finished piece.
        resources: what one task asks of Ray.
        workers: the most tasks at a time; None leaves it to Ray.
        actors: run in a pool of processes that each keep one copy of ``task``, so that what it loaded for one
            piece, such as a model, is there for the next.

    Raises:
        CurationError: the first one that a task raised.
        StepError: a task raised anything else.
    """
    if not pieces:
        return
    _quiet()
    by_number = {piece.number: piece for piece in pieces}
    shared = ray.put(_Packed.of(task))

    for mark in tries.glob("*.tries"):
        mark.unlink()

    class Work:
        """One worker; Ray Data makes it where it runs."""

        task: Callable[[Any], object] | None = None

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            piece: Piece = pickle.loads(batch["piece"][0])

            def once() -> None:
                _count_try(tries / f"{piece.number:07d}.tries")
                self.task = self.task or ray.get(shared).unpack()
                self.task(piece)

            # Everything stands inside: Ray Data tries an exception again without end.
            return {"number": [piece.number], "error": [_attempt(once)]}

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        return Work()(batch)

    work.__name__ = Work.__name__ = label
    worker: Any = Work if actors else work
    pool = (1, max(1, min(len(pieces), workers or _places(resources)))) if actors else workers
    results = ray.data.from_items(
        [{"piece": pickle.dumps(piece)} for piece in pieces], override_num_blocks=len(pieces)
    ).map_batches(worker, batch_size=1, concurrency=pool, **_remote(resources))
    with _ray_trouble(label):
        for result in results.iter_rows():
            if result["error"]:
                raise pickle.loads(result["error"])
            progress.advance(by_number[result["number"]].rows)


def run_one(task: Callable[[], object], *, resources: Resources | None = None) -> None:
    """Run one task on the cluster, so that what it holds in memory is not the driver's.

    Raises:
        CurationError: as the task raised it; anything else as a StepError.
    """
    remote = ray.remote(max_retries=TRIES - 1, **_remote(resources))(_attempt)
    with _ray_trouble(getattr(task, "__name__", type(task).__name__)):
        error = ray.get(remote.remote(_Packed.of(task)))
    if error:
        raise pickle.loads(error)


@contextmanager
def _ray_trouble(label: str) -> Iterator[None]:
    """Say what failed where Ray itself gave up: a worker that dies again and again, or lacks this package."""
    try:
        yield
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise StepError(
            f"{label}: Ray gave up after {TRIES} tries: {last}. What was finished is kept; "
            "ray's logs (/tmp/ray/session_latest/logs) say why a worker died"
        ) from error


def _nothing() -> None:
    """Sent to a cluster first: it fails at once, and not in every task, where workers lack this package."""


def _count_try(mark: Path) -> None:
    """Raise StepError where the piece has had all its tries: it kills whoever works on it."""
    with mark.open("ab") as file:
        file.write(b".")
    if mark.stat().st_size > TRIES:
        raise StepError(
            f"piece {mark.stem} lost its worker {TRIES} times, most likely for want of memory: "
            "lower `block_rows`, or raise `resources` of the step"
        )


class _Packed:
    """A task on its way to a worker, which looks for its code where this process does."""

    def __init__(self, path: tuple[str, ...], code: Mapping[str, str], data: bytes) -> None:
        self.path, self.code, self.data = path, code, data

    @classmethod
    def of(cls, task: Callable[..., object]) -> "_Packed":
        return cls(import_path(), expected(), cloudpickle.dumps(task))  # type: ignore[no-untyped-call]

    def unpack(self) -> Callable[..., object]:
        extend_path(self.path)
        expect(self.code)
        for name in self.code:
            load_function(name)
        task: Callable[..., object] = pickle.loads(self.data)
        return task

    def __call__(self) -> object:
        return self.unpack()()


def _attempt(run: Callable[[], object]) -> bytes:
    """Run; the pickled error, or nothing. Ray would wrap an exception in its own and print it."""
    try:
        run()
    except CurationError as error:
        return pickle.dumps(error)
    except Exception as error:
        where = "".join(traceback.format_exception(error)[-3:]).rstrip()
        return pickle.dumps(StepError(f"{type(error).__name__}: {error}\n{where}"))
    return b""


def _remote(resources: Resources | None) -> dict[str, Any]:
    resources = resources or Resources()
    asked: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.memory_mib is not None:
        asked["memory"] = resources.memory_mib * 2**20
    return asked


def gpus() -> int:
    """GPUs that the runtime has."""
    return int(_resources().get("GPU", 0))


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def _places(resources: Resources | None) -> int:
    """How many tasks of these resources run at a time."""
    asked, available = resources or Resources(), _resources()
    wanted = {"CPU": asked.cpus, "GPU": asked.gpus}
    return int(min(available.get(name, 0) // amount for name, amount in wanted.items() if amount))


def _quiet() -> None:
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
