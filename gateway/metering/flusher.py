"""HOT PATH. Owns the group commit: everything handed over while one group is being synced becomes the next group.

One thread. Per group: one pwrite into the prewritten segment, one fdatasync (without the GIL) if the group holds a
record, one wake-up of the loop. Marks alone are written without a sync.

Crash windows, in order: handed over -> pwrite -> [before_sync] -> fdatasync -> [after_sync] -> told to the loop.
Killed before the fdatasync, the group's callers have got nothing; after it, their records have no mark and are voided
(R7).
"""

import contextlib
import queue
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


Message = Handover | int | End


class Flusher:
    """Writes what comes through `inbox`: handovers, an int (a spare segment is there), an End.

    The callables are called on this thread: `order_spare(index)`; `on_durable(first_seq, callbacks, size_bytes)` once
    per group; `on_failed(error)` at most once, after which nothing is written any more (R5); `on_ended()` last.
    `release` stops whoever else writes into the epoch's folder and then gives its lock back.
    """

    def __init__(
        self,
        writer: SegmentWriter,
        inbox: queue.SimpleQueue[Message],
        *,
        order_spare: Callable[[int], object],
        on_durable: Callable[[int, list[OnDurable | None], int], object],
        on_failed: Callable[[Exception], object],
        on_ended: Callable[[], object],
        release: Callable[[], object],
    ) -> None:
        self.inbox = inbox
        self.is_running = True
        self._writer = writer
        self._order_spare = order_spare
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._on_ended = on_ended
        self._release = release
        # Waiting to be written: more than one turn's worth only while a spare segment is missing.
        self._payloads: list[bytes] = []
        self._callbacks: list[OnDurable | None] = []
        self._end: End | None = None
        self._ordered_index = 0
        #: Bytes of marks written since the last sync; reported with the next group.
        self._marks_bytes = 0
        self._order_if_wanted()

    def run(self) -> None:
        """The thread: until an End or an error."""
        while self.is_running:
            self.step()

    def step(self) -> None:
        """Wait for a message, take all that are there, write one group."""
        try:
            self._take()
            if self._end is not End.ABANDON:
                if self._payloads:
                    self._flush()
                if self._payloads or self._end is None:
                    return
                self._writer.sync_rest()
        # Whatever it is, nothing may be written after it, and the worker must hear of it: a flusher that dies in
        # silence would leave every call waiting.
        except Exception as error:  # noqa: BLE001
            self._on_failed(error)
        self._stop()

    def _take(self) -> None:
        inbox = self.inbox
        while True:
            message = inbox.get()
            if type(message) is tuple:
                self._payloads += message[0]
                self._callbacks += message[1]
            elif isinstance(message, End):
                self._end = message
            else:
                assert isinstance(message, int)
                self._writer.add_spare(message)
            if inbox.empty():
                return

    def _flush(self) -> None:
        writer = self._writer
        first_seq = writer.next_seq
        payloads, callbacks = self._payloads, self._callbacks
        count = writer.write(payloads)
        # What did not fit waits for a spare segment; its callers wait with it.
        self._payloads, self._callbacks = payloads[count:], callbacks[count:]
        self._order_if_wanted()
        if count < len(payloads):
            del payloads[count:], callbacks[count:]
        self._marks_bytes += sum(map(len, payloads))
        if callbacks.count(None) == count:
            return
        if failpoint.armed:
            failpoint.hit("before_sync")
        writer.sync()
        if failpoint.armed:
            failpoint.hit("after_sync")
        self._on_durable(first_seq, callbacks, self._marks_bytes)
        self._marks_bytes = 0

    def _order_if_wanted(self) -> None:
        wanted = self._writer.wanted_index
        if wanted is not None and wanted != self._ordered_index:
            self._ordered_index = wanted
            self._order_spare(wanted)

    def _stop(self) -> None:
        self.is_running = False
        # After a failed write or sync the close may fail as well; that was reported already.
        with contextlib.suppress(OSError):
            self._writer.close()
        self._release()
        self._on_ended()
