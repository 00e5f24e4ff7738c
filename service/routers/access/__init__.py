"""Routers of tokens, owners and the audit trail, for admin tokens."""
