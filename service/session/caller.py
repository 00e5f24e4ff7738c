"""Callers: who makes a request, and what they may do."""

from dataclasses import dataclass

from curation.service.errors import Refusal


@dataclass(frozen=True)
class Caller:
    """Who makes a request. ``owner`` None: nobody in particular, on loopback without tokens."""

    owner: str | None
    scopes: frozenset[str]

    def need(self, scope: str) -> None:
        """Raise ``Refusal`` where the token lacks a scope."""
        if scope not in self.scopes:
            raise Refusal(
                "bad-scope", f"this needs the scope {scope}, and the token has {' '.join(sorted(self.scopes))}"
            )

    def may_use(self, owner: str | None) -> bool:
        """Whether a session of this owner is open to the caller."""
        return self.owner is None or self.owner == owner or "admin" in self.scopes
