"""HOT PATH. Owns one worker's durable usage log, as the pipeline sees it: append, be told, go on.

The worker's loop appends; the group commit makes groups durable without stopping it; once per group the loop runs the
waiting replies and appends one unsynced `Sent` mark for the group (MONEY.md R8). An `Ended` mark, appended for a call
whose caller had gone, wins over a `Sent` that covers it, whichever of the two comes first.

Crash windows: docs/usage-log.md.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from billing import failpoint
from billing.events import Closed, Ended, Sent, encode
from billing.usagelog.disk import Disk, LocalDisk
from billing.usagelog.framing import FrameCodec
from gateway.clock import Clock
from gateway.errors import Code, TollwayError
from gateway.metering.epoch import open_epoch
from gateway.metering.flusher import Flusher
from gateway.metering.group_commit import End, GroupCommit, Message, OnDurable
from gateway.metering.limits import LogLimits
from gateway.metering.loop_flusher import LoopFlusher, SyncMaker, make_kernel_sync
from gateway.metering.preallocator import Preallocator
from gateway.metering.segments import SegmentWriter

__all__ = ["LogLimits", "OnDurable", "UsageLog"]

_log: Final = logging.getLogger(__name__)


class UsageLog:
    """One epoch of one instance, from construction to `close`. All methods on the loop's thread.

    The constructor blocks while the first segment is written (call it before serving); it raises OSError if that fails.
    `on_fatal(error)` is called once if a write or sync fails: nothing is recorded from then on, waiting callbacks are
    never called, the worker must stop (R5). Groups are synced by the kernel where it can (`loop_flusher`), else by a
    thread; another `disk` is always synced by a thread, unless `make_sync` says how. `is_stepped` starts no threads: a
    simulation steps `flusher` and `preallocator` itself.
    """

    def __init__(
        self,
        folder: Path,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        limits: LogLimits,
        on_fatal: Callable[[Exception], None],
        *,
        disk: Disk | None = None,
        codec_for: Callable[[str, int], FrameCodec] = FrameCodec,
        make_sync: SyncMaker | None = None,
        is_threaded: bool = False,
        is_stepped: bool = False,
    ) -> None:
        may_use_kernel = disk is None and not is_threaded and not is_stepped
        #: What the committing thread runs, or None: the loop commits.
        self._flusher: Flusher | None = None
        disk = disk or LocalDisk()
        self._loop = loop
        self._call_soon = loop.call_soon
        self._clock = clock
        self._on_fatal = on_fatal
        self._payload_bytes_max = limits.payload_bytes_max
        self._records_max = limits.unsynced_records_max
        self._bytes_max = limits.unsynced_bytes_max
        self._mark_delay_s = limits.mark_delay_s
        self._gather_ns = int(limits.gather_s * 1e9)
        self._gather_records_min = limits.gather_records_min
        self._gather_until_ns = 0

        #: Whether new calls may be served: the pipeline refuses them with `metering_unavailable` while this is False.
        self.is_accepting = True
        #: Groups made durable so far.
        self.groups = 0
        #: Why no spare segment can be made (the disk is full or fails), or None.
        self.trouble: OSError | None = None
        self.durable_seq = 0
        self._next_seq = 1
        self._last_record_seq = 0
        self._unsynced_bytes = 0
        self._payloads: list[bytes] = []
        self._callbacks: list[OnDurable | None] = []
        self._is_handover_due = False
        self._is_timer_armed = False
        self._is_recording = True
        self.is_closing = False
        self._is_ended = False
        self._on_closed: list[Callable[[], object]] = []

        self.epoch = open_epoch(disk, folder, clock.wall_ns(), limits.segment_bytes)
        inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        codec = codec_for(self.epoch.instance, self.epoch.number)
        self.preallocator = Preallocator(
            disk,
            self.epoch.folder,
            limits.segment_bytes,
            retry_s=limits.spare_retry_s,
            on_spare=self._on_spare,
            on_trouble=lambda error: loop.call_soon_threadsafe(self._on_trouble, error),
        )
        self.threads: list[threading.Thread] = []
        self._disk = disk
        writer = SegmentWriter(disk, self.epoch, limits.segment_bytes, codec)
        if make_sync is None and may_use_kernel:
            make_sync = partial(make_kernel_sync, writer.handle)
        hand = None if make_sync is None else self._try_loop(writer, make_sync)
        self._hand: Callable[[Message], None] = inbox.put if hand is None else hand
        if hand is None:
            commit = GroupCommit(
                writer,
                order_spare=self.preallocator.order,
                on_durable=lambda seq, callbacks, size: loop.call_soon_threadsafe(self._on_group, seq, callbacks, size),
                on_failed=lambda error: loop.call_soon_threadsafe(self._on_failed, error),
                on_stopped=self._release,
            )
            self._flusher = Flusher(commit, inbox)
            if not is_stepped:
                self._start_thread("preallocator", self.preallocator.run)
                self._start_thread("flusher", self._flusher.run)
        else:
            self._start_thread("preallocator", self.preallocator.run)

    def _try_loop(self, writer: SegmentWriter, make_sync: SyncMaker) -> Callable[[Message], None] | None:
        """Commit groups on the loop; None where that cannot be done."""
        try:
            flusher = LoopFlusher(self._loop, make_sync)
        except OSError as error:
            _log.info("usage_log_threaded: %s", error)
            return None
        flusher.drive(
            GroupCommit(
                writer,
                order_spare=self.preallocator.order,
                on_durable=self._on_group,
                on_failed=self._on_failed,
                # Ending waits for the preallocator, which may wait for the disk: not on the loop.
                on_stopped=lambda: self._start_thread("end", self._release),
            )
        )
        return flusher.hand

    def append(self, payload: bytes, on_durable: OnDurable) -> int:
        """Queue one record; returns its number. `on_durable(seq)` is called on the loop, in order, once it is on disk.

        Never calls back before it returns. It takes records even while `is_accepting` is False: calls that were let in
        must be recorded. Raises TollwayError(metering_unavailable) once the log is closed or failed, ValueError for an
        empty or too long payload.
        """
        length = len(payload)
        if not 0 < length <= self._payload_bytes_max:
            raise ValueError(f"a usage record has 1 to {self._payload_bytes_max} bytes, not {length}")
        if not self._is_recording:
            raise TollwayError(Code.METERING_UNAVAILABLE, "usage is not being recorded")
        seq = self._next_seq
        self._next_seq = seq + 1
        self._last_record_seq = seq
        self._payloads.append(payload)
        self._callbacks.append(on_durable)
        self._unsynced_bytes += length
        if seq - self.durable_seq >= self._records_max or self._unsynced_bytes >= self._bytes_max:
            self.is_accepting = False
        if not self._is_handover_due:
            # One hand-over per turn of the loop: all replies of one turn share a group and one wake-up of the flusher.
            self._is_handover_due = True
            self._plan_handover()
        if failpoint.armed:
            failpoint.hit("after_append")
        return seq

    def mark_ended(self, served_seq: int, cause: str, bytes_sent: int) -> None:
        """Note, unsynced, that the caller of record `served_seq` had gone after `bytes_sent` bytes of the reply.

        Overrides the group's Sent mark, before or after it. Raises TollwayError(metering_unavailable) once the log is
        closed or failed.
        """
        if not self._is_recording:
            raise TollwayError(Code.METERING_UNAVAILABLE, "usage is not being recorded")
        self._append_mark(encode(Ended(served_seq=served_seq, cause=cause, bytes_sent=bytes_sent)))

    async def close(self) -> None:
        """Make everything durable, call back, write `Closed`, release the epoch. Idempotent.

        It waits as long as the disk does, or until a full disk has room: give it a deadline. Cancelled, it abandons
        what is not durable yet, as a crash would.
        """
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.start_close(lambda: None if closed.done() else closed.set_result(None))
        try:
            await closed
        except asyncio.CancelledError:
            self.abandon()
            raise
        for thread in self.threads:
            # Whoever released the epoch has just said so, and it has waited for the preallocator.
            thread.join()

    def start_close(self, on_closed: Callable[[], object]) -> None:
        """What `close` does, without waiting: `on_closed` is called on the loop when the epoch is released."""
        self.is_accepting = False
        self.is_closing = True
        if self._is_ended:
            self._call_soon(on_closed)
            return
        self._on_closed.append(on_closed)
        self._finish_if_drained()

    def abandon(self) -> None:
        """Stop at once, as a crash would, but release the epoch when the disk returns. Does not wait."""
        self.is_accepting = self._is_recording = False
        self._hand(End.ABANDON)

    @property
    def is_on_loop(self) -> bool:
        """Whether the loop commits, and the kernel syncs for it."""
        return self._flusher is None

    @property
    def flusher(self) -> Flusher:
        """What a simulation steps."""
        assert self._flusher is not None
        return self._flusher

    # On the loop

    def _plan_handover(self) -> None:
        """At the end of this turn of the loop, or when a busy log's gathering time is over."""
        if self._gather_until_ns:
            wait_ns = self._gather_until_ns - self._clock.monotonic_ns()
            if wait_ns > 0:
                self._loop.call_later(wait_ns / 1e9, self._hand_over)
                return
        self._call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._is_handover_due = False
        if self._payloads and self._is_recording:
            is_busy = len(self._payloads) >= self._gather_records_min
            self._gather_until_ns = self._clock.monotonic_ns() + self._gather_ns if is_busy else 0
            self._hand((self._payloads, self._callbacks))
            self._payloads, self._callbacks = [], []

    def _append_mark(self, payload: bytes) -> None:
        self._next_seq += 1
        self._payloads.append(payload)
        self._callbacks.append(None)
        self._unsynced_bytes += len(payload)
        if self._is_handover_due:
            return
        if self._mark_delay_s:
            if not self._is_timer_armed:
                self._is_timer_armed = True
                self._loop.call_later(self._mark_delay_s, self._on_timer)
            return
        self._is_handover_due = True
        self._call_soon(self._hand_over)

    def _on_timer(self) -> None:
        self._is_timer_armed = False
        if not self._is_handover_due:
            self._hand_over()

    def _on_group(self, first_seq: int, callbacks: list[OnDurable | None], size_bytes: int) -> None:
        """The records from `first_seq` on are durable: let their replies go, then mark them as sent."""
        last_seq = first_seq + len(callbacks) - 1
        self.durable_seq = last_seq
        self.groups += 1
        self._unsynced_bytes -= size_bytes
        seq = first_seq
        for on_durable in callbacks:
            if on_durable is not None:
                try:
                    on_durable(seq)
                # One reply's fault must not hold back the others, which are durable as well.
                except Exception as error:  # noqa: BLE001
                    self._on_callback_failed(seq, error)
            seq += 1
        if failpoint.armed:
            failpoint.hit("after_send_before_mark")
        if self._is_recording:
            self._append_mark(encode(Sent(first_seq=first_seq, last_seq=last_seq)))
        self._judge_accepting()
        self._finish_if_drained()

    def _on_callback_failed(self, seq: int, error: Exception) -> None:
        self._loop.call_exception_handler(
            {"message": f"the reply of usage record {seq} failed after it was durable", "exception": error}
        )
        if self._is_recording:
            self.mark_ended(seq, "callback_failed", 0)

    def _judge_accepting(self) -> None:
        self.is_accepting = (
            self._is_recording
            and not self.is_closing
            and self.trouble is None
            and self._next_seq - 1 - self.durable_seq < self._records_max
            and self._unsynced_bytes < self._bytes_max
        )

    def _on_trouble(self, error: OSError | None) -> None:
        self.trouble = error
        self._judge_accepting()

    def _on_failed(self, error: Exception) -> None:
        self.is_accepting = self._is_recording = False
        self._payloads, self._callbacks = [], []
        self._on_fatal(error)

    def _finish_if_drained(self) -> None:
        """While closing: once nobody waits any more, hand over the last marks and `Closed`."""
        if self.is_closing and self._is_recording and self.durable_seq >= self._last_record_seq:
            self._append_mark(encode(Closed(t_ns=self._clock.wall_ns())))
            self._hand_over()
            self._is_recording = False
            self._hand(End.FINISH)

    def _on_ended(self) -> None:
        self._is_ended = True
        for on_closed in self._on_closed:
            on_closed()
        self._on_closed.clear()

    # Threads

    def _on_spare(self, index: int) -> None:
        """On the preallocator's thread."""
        if self._flusher is not None:
            self._flusher.inbox.put(index)
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody writes any more
            self._loop.call_soon_threadsafe(self._hand, index)

    def _start_thread(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=f"usage-{name}-{self.epoch.instance}", daemon=True)
        self.threads.append(thread)
        thread.start()

    def _release(self) -> None:
        """On a thread of ours, at the end: nothing may write into the folder once the lock is gone."""
        self.preallocator.stop()
        if self.threads:
            self.threads[0].join()
        self._disk.close(self.epoch.lock)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._on_ended)
