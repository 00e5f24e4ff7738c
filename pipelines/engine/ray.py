"""Ray: the one place that knows a job is distributed.

A task is a picklable callable that takes a piece of work and leaves its result in a file. Ray schedules and places;
what is finished stands on disk, so a piece may run twice and a killed job goes on where it was.
"""

import logging
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import cloudpickle

from curation.errors import CurationError, StepError
from curation.pipelines.engine.functions import expect, expected, extend_path, import_path, load_function
from curation.pipelines.engine.pool import Actors, Piece, Tasks, Workers, work_off
from curation.progress import Progress, Silent
from curation.recipe.model import Resources

LEAST_ROOM = 64
"""Tasks under way at least, as long as nobody says how many: the queue tells a cluster that it may grow."""

ANSWER = 10.0
"""Seconds within which a cluster's port must answer: Ray itself waits for minutes."""


@contextmanager
def runtime(address: str | None = None, workers: int | None = None) -> Iterator[bool]:
    """A Ray runtime: the caller's, where one is up; else a cluster by address or ``RAY_ADDRESS``; else a local one.

    Only what was started here is shut down, and Ray's logging is as it was afterwards. Gives whether nodes may join.

    Raises:
        CurationError: there is no cluster at the address.
        StepError: its workers cannot run this package.
    """
    if ray.is_initialized():
        yield True
        return
    address = (address or os.environ.get("RAY_ADDRESS") or "").strip() or None
    with _restored():
        # Without this Ray 2.60 warns on every start of a task that asks for no GPU.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            # "local": without an address Ray would join any cluster that it finds on this machine.
            ray.init(address="local", include_dashboard=False, num_cpus=workers, **quiet)
        else:
            _connect(address, quiet)
        try:
            if address is not None:
                run_one(_nothing)
            yield address is not None
        finally:
            ray.shutdown()


def _connect(address: str, quiet: dict[str, Any]) -> None:
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal() and "/" not in address:
            socket.create_connection((host, int(port)), ANSWER).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise CurationError(
            f"no Ray cluster can be reached at {address!r} ({why}): give `host:port` of its head node, as "
            "--ray-address or RAY_ADDRESS, or neither, to work on this machine"
        ) from error


@contextmanager
def _restored() -> Iterator[None]:
    """Put back what Ray changes for a whole process: the caller's goes on after a run."""
    logger, environment = logging.getLogger("ray"), _environment()
    level, handlers, propagate = logger.level, logger.handlers[:], logger.propagate
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate
        for name in _environment().keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def _environment() -> dict[str, str]:
    """What Ray sets: its own variables, and what ``breakpoint()`` calls."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"}


def run_pieces(
    task: Callable[[Any], object],
    pieces: Sequence[Piece],
    *,
    label: str,
    progress: Progress,
    resources: Resources | None = None,
    workers: int | None = None,
    actors: bool = False,
) -> None:
    """Run ``task`` on each piece, one Ray task a piece, and wait for all; on an error or Ctrl-C the others are killed.

    Args:
        task: a picklable callable of one piece; it writes its result to a file.
        pieces: what to do; their order is the order of submission.
        label: names the step in errors.
        progress: told the rows of each finished piece.
        resources: what one task asks of Ray.
        workers: the most tasks at a time; None leaves it to Ray.
        actors: run in a pool of processes that each keep one copy of ``task``, so that what it loaded for one
            piece, such as a model, is there for the next.

    Raises:
        CurationError: the first one that a task raised.
        StepError: a task raised anything else, or lost its worker too often.
    """
    if not pieces:
        return
    shared = ray.put(_Packed.of(task))
    pool: Workers
    if actors:
        size = max(1, min(len(pieces), workers or _places(resources)))
        pool = Actors(_Worker, shared, label, _remote(resources), size)
    else:
        room = partial(_room, resources) if workers is None else lambda: workers
        pool = Tasks(_work, shared, label, _remote(resources), room)
    with closing(work_off(pool, pieces, label)) as ended:
        for piece, error in ended:
            if error:
                raise pickle.loads(error)
            progress.advance(piece.rows)


def run_one(task: Callable[[], object], *, resources: Resources | None = None) -> None:
    """Run one task on the cluster, so that what it holds in memory is not the driver's.

    Raises:
        CurationError: as for :func:`run_pieces`.
    """
    label = getattr(task, "__name__", type(task).__name__)
    run_pieces(lambda _: task(), [_Whole()], label=label, progress=Silent(), resources=resources)


@dataclass(frozen=True)
class _Whole:
    """The one piece of a task that is not cut."""

    number: int = 0
    rows: int = 0


def _nothing() -> None:
    """Sent to a cluster first: it fails at once, and not in every task, where workers lack this package."""


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


class _Worker:
    """A process that unpacks its task once."""

    def __init__(self, packed: _Packed) -> None:
        self.packed = packed
        self.task: Callable[..., object] | None = None

    def work(self, piece: Piece) -> bytes:
        """The pickled error, or nothing: Ray would wrap an exception in its own and print it."""
        try:
            self.task = self.task or self.packed.unpack()
            self.task(piece)
        except CurationError as error:
            return _pickled(error)
        except (Exception, SystemExit) as error:
            where = "".join(traceback.format_exception(error)[-3:]).rstrip()
            return pickle.dumps(StepError(f"{type(error).__name__}: {error}\n{where}"))
        return b""


def _pickled(error: CurationError) -> bytes:
    """An error as the driver can read it: of a user's own class only the message, where it does not come through."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        return pickle.dumps(StepError(f"{type(error).__name__}: {error}"))
    return data


def _work(packed: _Packed, piece: Piece) -> bytes:
    return _Worker(packed).work(piece)


def _remote(resources: Resources | None) -> dict[str, Any]:
    resources = resources or Resources()
    asked: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.memory_mib is not None:
        asked["memory"] = resources.memory_mib * 2**20
    return asked


def check_room(asked: Mapping[str, Resources], *, grows: bool, note: Callable[[str], None]) -> None:
    """Check, before anything runs, that some node has what a task asks for: Ray would wait for one without a word.

    Args:
        asked: what a task asks for, by what it belongs to.
        grows: whether nodes may join; then it is only told.
        note: is told.

    Raises:
        StepError: no node has as much, and none will join.
    """
    nodes: list[dict[str, float]] = [
        node["Resources"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    for label, resources in asked.items():
        wanted = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": (resources.memory_mib or 0) * 2**20}
        if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            continue
        there = "; ".join(sorted({_listed(node) for node in nodes}))
        why = f"{label} asks for {_listed(wanted)} for each task, and no node has as much, only {there}"
        if not grows:
            raise StepError(f"{why}: lower its `resources`, give more `workers`, or the address of a cluster")
        note(f"{why}: it will wait until one joins")


def _listed(resources: Mapping[str, float]) -> str:
    words = [f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU")]
    return ", ".join([*words, f"{resources.get('memory', 0) / 2**20:,.0f} MiB"])


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


def _room(resources: Resources | None) -> int:
    """How many tasks to have under way: as many again as run, so that no worker waits for the driver."""
    return max(LEAST_ROOM, 2 * _places(resources))
