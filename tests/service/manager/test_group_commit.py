"""Groups of reports that are committed together: one owner's megabytes do not hold up another's few bytes."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from curation.service.errors import Refusal
from curation.service.manager.group_commit import GROUP, GROUP_BYTES, PIECE_BYTES, GroupCommit, pieces, size_of
from curation.service.monitoring.metrics import Metrics
from curation.service.session.caller import ANYONE
from curation.service.session.session import Report
from curation.service.session.spec import SessionSpec
from curation.service.store import Store
from curation.service.store.reports import Ignored, Write
from curation.service.workers.fairness import TENANT, Tenant


class Watched(Store):
    """A store that notes what was written together."""

    groups: list[list[tuple[int, int]]]

    def add_reports(self, writes: Sequence[Write]) -> list[Ignored | Refusal]:
        self.groups.append([(write.key, size_of(write.reports)) for write in writes])
        return super().add_reports(writes)


def reports_of(count: int, rows: int, first: int = 0) -> list[Report]:
    return [Report(0, first + step, np.ones(rows, np.float32)) for step in range(count)]


def test_groups_are_bounded_in_bytes_and_owners_take_turns(tmp_path: Path) -> None:
    store = Watched(f"sqlite:///{tmp_path}/store.db")
    store.groups = []
    keys = [
        store.create(name, ANYONE, SessionSpec(method="random", size=9, batch_size=9), 9, {}).key  # type: ignore[union-attr]
        for name in ("hostile", "honest")
    ]

    async def run() -> None:
        commit = GroupCommit(store, Metrics(), lambda writes, outcomes: None)
        for step in range(40):
            TENANT.set(Tenant("hostile"))
            commit.submit(keys[0], 0, reports_of(1, PIECE_BYTES // 4, step))
        TENANT.set(Tenant("honest"))
        await commit.submit(keys[1], 0, reports_of(1, 1024))
        assert sum(key == keys[0] for group in store.groups for key, _ in group) <= 4
        for step in range(2 * GROUP):
            last = commit.submit(keys[1], 0, reports_of(1, 1, step + 1))
        await last
        await asyncio.to_thread(commit.stop)

    asyncio.run(run())
    assert max(sum(size for _, size in group) for group in store.groups) <= GROUP_BYTES
    assert max(map(len, store.groups)) <= GROUP
    stored = [report.step for report in store.reports(keys[1], 0, 10_000)]
    assert stored == list(range(2 * GROUP + 1))
    store.close()


def test_large_requests_go_in_pieces() -> None:
    assert [len(piece) for piece in pieces([])] == [0]
    assert [len(piece) for piece in pieces(reports_of(3, 1024))] == [3]
    large = reports_of(5, PIECE_BYTES // 8)
    assert [[report.step for report in piece] for piece in pieces(large)] == [[0, 1], [2, 3], [4]]
    assert [len(piece) for piece in pieces(reports_of(2, PIECE_BYTES))] == [1, 1]
