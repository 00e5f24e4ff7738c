"""Collector of what names sessions and owners, and so is shown only to who may look at them."""

import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from curation.service.manager.memory.entry import Entry
from curation.service.session.account import Account
from curation.service.session.caller import Caller

SESSIONS = 100
"""Sessions with metrics of their own: those used last."""
_SESSION_LABELS = ("session", "method")
_OF_OWNERS = {
    "requests": "Requests with a token of the owner",
    "bytes": "Bytes of their bodies",
    "refused": "Those of them that a quota refused",
}


class NamedCollector(Collector):
    """Sessions and owners by name, as far as one reader may see them.

    Args:
        caller: who reads.
        entries: the sessions in memory, of which the latest :data:`SESSIONS` are shown.
        accounts: what owners used.
    """

    def __init__(self, caller: Caller, entries: Iterable[Entry], accounts: Iterable[Account]) -> None:
        self._entries = [entry for entry in entries if caller.may_use(entry.row.owner)][-SESSIONS:]
        self._accounts = [account for account in accounts if caller.may_use(account.owner)]

    def collect(self) -> Iterable[Metric]:
        yield from _each(self._entries)
        for name, text in _OF_OWNERS.items():
            family = CounterMetricFamily(f"curation_owner_{name}", text, labels=("owner",))
            for account in self._accounts:
                family.add_metric((account.owner,), getattr(account, name))
            yield family


def _each(entries: Sequence[Entry]) -> Iterable[Metric]:
    now = time.monotonic()
    shown: Sequence[tuple[str, str, Callable[[Entry], float | None]]] = (
        ("curation_pool_size", "Candidates of a session", lambda entry: entry.row.size),
        ("curation_kept_share", "Share kept in its latest epoch", _kept),
        ("curation_ranks_waiting", "Ranks that wait for others' reports", lambda entry: len(entry.waiting(now))),
        ("curation_rank_gap_steps", "Steps from its slowest rank to its fastest, as this server saw them", _gap),
        ("curation_slowest_rank", "The number of its slowest rank", _slowest),
    )
    for name, text, value in shown:
        family = GaugeMetricFamily(name, text, labels=_SESSION_LABELS)
        for entry in entries:
            found = value(entry)
            if found is not None:
                family.add_metric((entry.row.id, entry.row.spec.method), found)
        yield family


def _kept(entry: Entry) -> float:
    records = entry.session.records
    return records[-1].layout.rows / entry.row.size if records else 1.0


def _gap(entry: Entry) -> float | None:
    asked = list(entry.asked.values())
    return max(asked) - min(asked) if asked else None


def _slowest(entry: Entry) -> float | None:
    asked = list(entry.asked.items())
    return min((step, rank) for rank, step in asked)[1] if asked else None
