"""Callers: who makes a request, and what they may do."""

from dataclasses import dataclass, field, replace

from curation.service.errors import Refusal
from curation.service.session.account import Account


@dataclass(frozen=True)
class Caller:
    """Who makes a request.

    Args:
        owner: whose sessions it makes and uses; None: nobody's, on loopback without tokens.
        scopes: what the token allows, with all that this implies.
        token: the token's id.
        everyone: whether it may use the sessions of every owner.
        account: what the owner has used.
        peer: the address that the request came from.
        request: the request's id.
    """

    owner: str | None
    scopes: frozenset[str]
    token: str | None = None
    everyone: bool = False
    account: Account | None = field(default=None, compare=False)
    peer: str | None = None
    request: str | None = None

    def need(self, scope: str) -> None:
        """Count a request against the owner's quota; raise ``Refusal`` where that is used up, or a scope is lacking."""
        if self.account is not None:
            self.account.take()
        if scope not in self.scopes:
            raise Refusal(
                "bad-scope", f"this needs the scope {scope}, and the token has {' '.join(sorted(self.scopes))}"
            )

    def asking(self, scope: str, peer: str | None, request: str | None) -> "Caller":
        """The caller of one request that needs ``scope``: who may read everybody's sessions may not so change them."""
        everyone = self.everyone or (scope == "read" and "read-all" in self.scopes)
        return replace(self, everyone=everyone, peer=peer, request=request)

    @property
    def sees(self) -> str | None:
        """The owner whose sessions it sees; None: everybody's."""
        return None if self.everyone else self.owner

    def may_use(self, owner: str | None) -> bool:
        """Whether a session of this owner is open to the caller."""
        return self.everyone or self.owner == owner


ANYONE = Caller(None, frozenset({"read", "read-all", "select", "admin"}), everyone=True)
"""Whoever asks, where no token is needed."""
