"""Quotas: what a bucket lets through, and what it says when it is empty."""

import pytest

from curation.service.errors import Refusal
from curation.service.session import account as accounts
from curation.service.session.account import Account, Quota


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(accounts.time, "monotonic", lambda: self.now)

    def taken(self, account: Account, seconds: float, tries: int) -> int:
        """Requests let through of many that come evenly in some seconds."""
        through = 0
        for _ in range(tries):
            self.now += seconds / tries
            try:
                account.take()
                through += 1
            except Refusal:
                pass
        return through


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("rate", [0.5, 10.0, 500.0])
def test_requests_pass_at_their_rate(clock: Clock, rate: float) -> None:
    account = Account("vision", Quota(requests_per_second=rate))
    passed = clock.taken(account, 20, int(rate * 200))
    assert abs(passed - 20 * rate) <= max(rate, 1) + 1  # and one second's worth at once
    assert account.requests == int(rate * 200)


def test_who_is_refused_is_told_how_long(clock: Clock) -> None:
    account = Account("vision", Quota(requests_per_second=0.5))
    account.take()
    with pytest.raises(Refusal, match="'vision' may send 0.5 requests a second") as refused:
        account.take()
    assert (refused.value.kind, refused.value.members) == ("quota", {"limit": "requests_per_second"})
    assert refused.value.retry_after is not None
    clock.now += refused.value.retry_after
    account.take()


def test_a_large_body_holds_back_what_follows(clock: Clock) -> None:
    account = Account("vision", Quota(bytes_per_second=1000))
    account.take()
    account.answered(5000, 200)
    with pytest.raises(Refusal) as refused:
        account.take()
    assert refused.value.members == {"limit": "bytes_per_second"}
    assert refused.value.retry_after == pytest.approx(4, abs=0.1)
    account.answered(0, 429)
    clock.now += 4.1
    account.take()
    assert (account.requests, account.bytes, account.refused) == (3, 5000, 1)


def test_a_quota_may_change_and_go(clock: Clock) -> None:
    account = Account("vision", Quota())
    assert clock.taken(account, 1, 1000) == 1000
    account.quota = Quota(requests_per_second=10)
    assert clock.taken(account, 1, 1000) <= 21
    account.quota = Quota()
    assert clock.taken(account, 1, 1000) == 1000
