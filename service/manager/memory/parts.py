"""Parts of super-batches: what each rank sent, kept until the choice is made.

One server keeps them in memory: they need not outlive it, since a rank whose part is lost is told ``not-sent`` and
sends it again, while a choice that was answered is on disk. What memory has no room for goes to the store, as all of
it does where replicas share one, because there the parts of a step must meet.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from curation.service.session.choice import Choice, RankPart
from curation.service.store import Store
from curation.service.store import choices as choice_store
from curation.service.store.choices import Pending, StepKey

FORGOTTEN = 600
"""Seconds after which parts of a step whose other ranks never came make room for others."""


@dataclass
class _Step:
    parts: dict[int, RankPart] = field(default_factory=dict)
    nbytes: int = 0
    touched: float = 0


class Parts:
    """Parts of one server's super-batches. All calls block.

    Args:
        store: where choices are, and parts that memory has no room for.
        max_bytes: what parts may take in memory.
    """

    def __init__(self, store: Store, max_bytes: int) -> None:
        self._store, self._max_bytes = store, max_bytes
        self._steps: dict[StepKey, _Step] = {}
        self._lock = threading.Lock()

    def read(self, key: StepKey) -> Choice | Pending:
        """The choice of a step, or who has sent a part of it."""
        return self._with_memory(key, choice_store.read_choice(self._store, key))

    def put(self, key: StepKey, rank: int, part: RankPart) -> Choice | Pending:
        """Keep a rank's part, unless the choice is made or the part is there.

        Raises:
            Refusal: the rank sent something else before, or the session was rewound or deleted meanwhile.
        """
        if self._store.shared:
            return choice_store.put_part(self._store, key, rank, part)
        stored = choice_store.read_choice(self._store, key)
        if isinstance(stored, Choice):
            return stored
        if rank in stored.ranks or not self._keep(key, rank, part):
            stored = choice_store.put_part(self._store, key, rank, part)
        return self._with_memory(key, stored)

    def all(self, key: StepKey, ranks: Sequence[int]) -> list[RankPart]:
        """What some ranks sent for a step.

        Raises:
            Refusal: it is not all there any more.
        """
        with self._lock:
            kept = dict(self._steps[key].parts) if key in self._steps else {}
        stored = choice_store.read_parts(self._store, key, [rank for rank in ranks if rank not in kept])
        return [kept[rank] if rank in kept else stored[rank] for rank in ranks]

    def forget(self, key: StepKey) -> None:
        """Drop what memory has of a step."""
        with self._lock:
            self._steps.pop(key, None)

    def _keep(self, key: StepKey, rank: int, part: RankPart) -> bool:
        """Keep a part in memory; False where there is no room."""
        size = sum(matrix.nbytes for matrix in part.sides.values())
        size += 0 if part.scores is None else part.scores.nbytes
        now = time.monotonic()
        with self._lock:
            for other, step in list(self._steps.items()):
                rewound = other.session == key.session and other.generation < key.generation
                if rewound or step.touched < now - FORGOTTEN:
                    del self._steps[other]
            step = self._steps.get(key, _Step())
            if rank in step.parts:
                if step.parts[rank].digest != part.digest:
                    raise choice_store.part_differs(rank, key.step)
            elif sum(other.nbytes for other in self._steps.values()) + size > self._max_bytes:
                return False
            else:
                step.parts[rank] = part
                step.nbytes += size
            step.touched = now
            self._steps[key] = step
        return True

    def _with_memory(self, key: StepKey, stored: Choice | Pending) -> Choice | Pending:
        if isinstance(stored, Choice):
            return stored
        with self._lock:
            return Pending(stored.ranks | set(self._steps[key].parts if key in self._steps else ()))
