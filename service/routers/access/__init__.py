"""Routers of who may use the service: tokens, owners and their quotas, the audit trail."""
