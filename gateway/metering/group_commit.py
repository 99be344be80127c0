"""HOT PATH. Owns the group commit: everything handed over while one group is being synced becomes the next group.

Per group: one pwrite into the prewritten segment, one fdatasync if the group holds a record, one call back. Marks alone
are written without a sync. Who waits for the disk is the driver's affair: the kernel while the loop goes on
(`loop_flusher`), or a thread (`flusher`).

Crash windows, in order: handed over -> pwrite -> [before_sync] -> fdatasync -> [after_sync] -> told to the loop.
Killed before the fdatasync, the group's callers have got nothing; after it, their records have no mark and are voided
(R7).
"""

import contextlib
from collections.abc import Callable
from enum import Enum

from billing import failpoint
from gateway.metering.segments import SegmentWriter

#: Called with the record's sequence number.
OnDurable = Callable[[int], None]
#: Payloads and, in the same places, whom to tell when they are durable; None: a mark, nobody waits.
Handover = tuple[list[bytes], list[OnDurable | None]]


class End(Enum):
    #: Write and sync everything handed over, then stop.
    FINISH = "finish"
    #: Stop at once; records handed over and not yet durable are as lost as in a crash.
    ABANDON = "abandon"


#: A handover, an int (the index of a spare segment that is there now), an End.
Message = Handover | int | End


class GroupCommit:
    """What was handed over and what was written of it. One thread, the driver's:

    `take` every message; then, while `begin` is True, sync the writer's handle and call `complete`, or `fail`.

    `order_spare(index)` asks for a spare segment; `on_durable(first_seq, callbacks, size_bytes)` is called once per
    group; `on_failed(error)` at most once, after which nothing is written any more (R5); `on_stopped()` last.
    """

    def __init__(
        self,
        writer: SegmentWriter,
        *,
        order_spare: Callable[[int], object],
        on_durable: Callable[[int, list[OnDurable | None], int], object],
        on_failed: Callable[[Exception], object],
        on_stopped: Callable[[], object],
    ) -> None:
        self.is_running = True
        self.writer = writer
        self._order_spare = order_spare
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._on_stopped = on_stopped
        # Waiting to be written: more than one turn's worth only while a sync runs or a spare segment is missing.
        self._payloads: list[bytes] = []
        self._callbacks: list[OnDurable | None] = []
        #: Written, and to be told of when the sync is done.
        self._group_seq = 0
        self._group: list[OnDurable | None] | None = None
        self._end: End | None = None
        self._ordered_index = 0
        #: Bytes of marks written since the last group; reported with the next one.
        self._marks_bytes = 0
        self._order_if_wanted()

    def take(self, message: Message) -> None:
        """Add what was handed over to what waits."""
        if isinstance(message, End):
            self._end = message
        elif isinstance(message, int):
            self.writer.add_spare(message)
        else:
            self._payloads += message[0]
            self._callbacks += message[1]

    def begin(self) -> bool:
        """Write what waits. True: the writer's handle must be synced now, and `complete` called. Raises OSError."""
        if not self.is_running:
            return False
        if self._end is End.ABANDON:
            self._stop()
            return False
        if self._payloads and self._write():
            return True
        if self._payloads or self._end is None:
            return False
        if self.writer.has_unsynced:
            return True
        self._stop()
        return False

    def complete(self) -> None:
        """What was written is durable: tell whose records they are."""
        if failpoint.armed:
            failpoint.hit("after_sync")
        self.writer.note_synced()
        group, self._group = self._group, None
        if group is not None:
            size_bytes, self._marks_bytes = self._marks_bytes, 0
            self._on_durable(self._group_seq, group, size_bytes)

    def fail(self, error: Exception) -> None:
        """A write or sync failed: nothing may be written after it, and the worker must hear of it (R5).

        A commit that died in silence would leave every call waiting.
        """
        if self.is_running:
            self._on_failed(error)
            self._stop()

    def _write(self) -> bool:
        """Write what fits; True if a sync must follow: somebody waits, or the segment is full and not synced."""
        writer = self.writer
        first_seq = writer.next_seq
        payloads, callbacks = self._payloads, self._callbacks
        count = writer.write(payloads)
        # What did not fit waits for a sync or a spare segment; its callers wait with it.
        self._payloads, self._callbacks = payloads[count:], callbacks[count:]
        self._order_if_wanted()
        if count < len(payloads):
            del payloads[count:], callbacks[count:]
        self._marks_bytes += sum(map(len, payloads))
        if callbacks.count(None) == count:
            return bool(self._payloads) and writer.wanted_index is None
        self._group_seq, self._group = first_seq, callbacks
        if failpoint.armed:
            failpoint.hit("before_sync")
        return True

    def _order_if_wanted(self) -> None:
        wanted = self.writer.wanted_index
        if wanted is not None and wanted != self._ordered_index:
            self._ordered_index = wanted
            self._order_spare(wanted)

    def _stop(self) -> None:
        self.is_running = False
        # After a failed write or sync the close may fail as well; that was reported already.
        with contextlib.suppress(OSError):
            self.writer.close()
        self._on_stopped()
