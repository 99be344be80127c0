"""Owns the seam between the pipeline and the usage log: what a call needs of it."""

from collections.abc import Callable
from typing import Protocol


class RecordLog(Protocol):
    """`gateway.metering.log.UsageLog`, or a twin of it in tests."""

    #: False while usage cannot be recorded: new calls are refused before they are served.
    is_accepting: bool

    def append(self, payload: bytes, on_durable: Callable[[int], None]) -> int:
        """Queue one record; `on_durable(seq)` follows on the loop once it is on disk."""

    def mark_ended(self, served_seq: int, cause: str, bytes_sent: int) -> None:
        """Note an exception of a record: its caller had gone."""
