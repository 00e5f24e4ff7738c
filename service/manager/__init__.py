"""Managers of a running server: its sessions, their choices and checkpoints, and the group commit of reports."""
