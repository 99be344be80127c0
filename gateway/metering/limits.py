"""Owns the bounds of one worker's usage log."""

from dataclasses import dataclass
from typing import Final

from billing.usagelog.framing import FRAME_BYTES, HEADER_BYTES, PAYLOAD_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """Raises ValueError for a segment size out of bounds."""

    segment_bytes: int = 16 * MIB
    #: Records and bytes appended but not yet durable; beyond either the log stops accepting new calls.
    unsynced_records_max: int = 8192
    unsynced_bytes_max: int = 8 * MIB
    #: How long to wait before the next attempt to preallocate a segment on a full or failing disk.
    spare_retry_s: float = 1.0
    #: Longest delay of an unsynced mark that finds no group to ride with; 0: handed over in the same loop turn. It
    #: saves a wake-up of the flusher per group: about 40 µs CPU a call at c=1, 1 µs at c=64 (docs/usage-log.md).
    mark_delay_s: float = 0.001
    #: Under load groups gather: while the last group held `gather_records_min` records or more, the next is handed over
    #: no sooner than this after it. A flush costs 100 µs CPU or more, so many small groups cost more than they save; a
    #: lone caller never waits.
    gather_s: float = 0.002
    gather_records_min: int = 3

    def __post_init__(self) -> None:
        if not SEGMENT_BYTES_MIN <= self.segment_bytes <= SEGMENT_BYTES_MAX:
            raise ValueError(f"segment_bytes = {self.segment_bytes}: use {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}")

    @property
    def payload_bytes_max(self) -> int:
        """Longest record: one frame must fit into a segment and into a reader's window."""
        return min(PAYLOAD_BYTES_MAX, self.segment_bytes - HEADER_BYTES - FRAME_BYTES)
