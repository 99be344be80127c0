"""Owns nothing: the worker's name for `gateway.snapshot_watcher`, which the quota owner needs as well."""

from gateway.snapshot_watcher import POLL_S, OnSnapshot, SnapshotWatcher

__all__ = ["POLL_S", "OnSnapshot", "SnapshotWatcher"]
