"""Monitoring of a running server: its metrics, the causes of what it fails at, and whether it is ready."""
