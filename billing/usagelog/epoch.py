"""Owns the reading of one epoch: its segments in order, where it ends, and whether what is missing was ever durable."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path

import msgspec

from billing.events import RECORD_VERSION, Closed, decode
from billing.packed import AnyRecord, DecodeAll, decode_all
from billing.usagelog.batch import Batch, Damaged, EpochEnded, ReadResult
from billing.usagelog.disk import Disk
from billing.usagelog.framing import FrameCodec, Header, Stop, decode_header
from billing.usagelog.segment import LOCK_NAME, SegmentCursor, read_file, read_header, segment_indexes, segment_name

CodecFor = Callable[[str, int], FrameCodec]


class _Step(Enum):
    """What to do when there is nothing to deliver."""

    AGAIN = "again"
    WAIT = "wait"


class EpochReader:
    """Delivers one epoch's records once, in order, from behind `position` (None: from the first one there).

    Changes nothing on the disk. Records are delivered as soon as they can be read, durable or not: only a terminal mark
    makes a call billable, and its mark is written after the call's record is durable. A reader that is not the owner
    passes over segments that the owner has let go.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        instance: str,
        epoch: int,
        *,
        position: int | None = None,
        is_owner: bool = True,
        codec_for: CodecFor = FrameCodec,
        decode_all: DecodeAll = decode_all,
    ) -> None:
        self.instance = instance
        self.epoch = epoch
        self.folder = folder
        #: The end or damage was returned; nothing follows.
        self.is_finished = False
        #: (index, first_seq) of the begun segments still there, ascending.
        self.segments: list[tuple[int, int]] = []
        #: Everything up to here has been delivered, now or before the position.
        self.delivered_seq = position or 0
        self._position = position
        self._is_owner = is_owner
        self._disk = disk
        self._codec = codec_for(instance, epoch)
        self._decode_all = decode_all
        self._cursor: SegmentCursor | None = None
        self._next_seq = 1
        self._is_dead = False
        self._last_payload = b""

    def read(self, records_max: int) -> ReadResult | None:
        """The next records, the epoch's end, damage, or None: nothing yet."""
        while not self.is_finished:
            cursor = self._cursor
            if cursor is None:
                step = self._start()
            else:
                frames, stop = cursor.peek(self._next_seq, records_max)
                step = self._deliver(cursor, frames) if frames else self._at_tail(cursor, stop)
            if step is _Step.WAIT:
                return None
            if step is not _Step.AGAIN:
                return step
        return None

    def close(self) -> None:
        """Let go of the open segment. Idempotent."""
        self.is_finished = True
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None

    def is_live(self) -> bool:
        """Whether a writer holds the epoch."""
        return self._disk.is_locked(self.folder / LOCK_NAME)

    # Starting

    def _start(self) -> ReadResult | _Step:
        """Open the segment that holds the record behind the position, if the epoch has begun."""
        headers = self._begun_headers()
        if not headers:
            return self._judge_first()
        wanted = self.delivered_seq + 1
        if self._is_owner and headers[0].first_seq > wanted:
            name = segment_name(headers[0].segment_index)
            return self._damaged(wanted, name, 0, f"the records before this segment's {headers[0].first_seq} are gone")
        start = ([header for header in headers if header.first_seq <= wanted] or headers[:1])[-1]
        earlier = [header for header in headers if header.segment_index < start.segment_index]
        self.segments = [(header.segment_index, header.first_seq) for header in earlier]
        return self._enter(start)

    def _begun_headers(self) -> list[Header]:
        """Headers from the first segment there up to the first that is not begun."""
        headers: list[Header] = []
        for index in segment_indexes(self._disk.list_folder(self.folder)):
            header = read_header(self._disk, self.folder, index)
            is_next = not headers or index == headers[-1].segment_index + 1
            if not (is_next and isinstance(header, Header) and self._is_ours(header, index)):
                break
            headers.append(header)
        return headers

    def _judge_first(self) -> ReadResult | _Step:
        """The first segment there has no header of ours."""
        first = segment_indexes(self._disk.list_folder(self.folder))[:1]
        if first == [1]:
            # Segment 1 is begun durably before its epoch is published.
            return self._damaged(self.delivered_seq + 1, segment_name(1), 0, "segment 1 has lost its header")
        # Segments before it were read, acknowledged and removed; a power cut may then have torn this one.
        self._next_seq = self.delivered_seq + 1
        return self._wait_or(self._finish)

    def _is_ours(self, header: Header, index: int) -> bool:
        """False for what a recycled file held before: as a successor it has not been begun."""
        return (header.instance, header.epoch, header.segment_index) == (self.instance, self.epoch, index)

    def _enter(self, header: Header) -> Damaged | _Step:
        if header.record_version > RECORD_VERSION:
            reason = f"record version {header.record_version} is newer than this reader's {RECORD_VERSION}"
            return self._damaged(header.first_seq, segment_name(header.segment_index), 0, reason)
        before, self._cursor = self._cursor, SegmentCursor(self._disk, self.folder, header, self._codec)
        if before is not None:
            before.close()
        self._next_seq = header.first_seq
        self.segments.append((header.segment_index, header.first_seq))
        return _Step.AGAIN

    # Delivering

    def _deliver(self, cursor: SegmentCursor, frames: list[tuple[int, bytes]]) -> ReadResult | _Step:
        """A batch of the frames behind the position, up to the first that is no record we know."""
        known = min(len(frames), max(0, self.delivered_seq + 1 - frames[0][0]))
        records, problem = self._decode_all(frames[known:])
        taken = known + len(records)
        if problem and not records:
            return self._damaged(
                frames[taken][0], cursor.name, cursor.offset, f"an intact frame, but no known record: {problem}"
            )
        consumed = frames[:taken]
        cursor.consume(consumed)
        self._next_seq += taken
        self._last_payload = consumed[-1][1]
        return self._batch(records) if records else _Step.AGAIN

    def _batch(self, records: list[tuple[int, AnyRecord]]) -> Batch:
        first_seq, last_seq = records[0][0], records[-1][0]
        self.delivered_seq = last_seq
        return Batch(instance=self.instance, epoch=self.epoch, first_seq=first_seq, last_seq=last_seq, records=records)

    # Ending

    def _at_tail(self, cursor: SegmentCursor, stop: Stop | None) -> ReadResult | _Step:
        """No frame here: go on to the next segment, wait for the writer, or end."""
        successor = self._find_successor(cursor.index)
        if successor is not None:
            return self._go_on(cursor, successor)
        if stop is Stop.BAD and self._codec.find_proof(cursor.rest(), 0, self._next_seq) is not None:
            # A living writer may have completed the record and written the proof between two pages of our read.
            return _Step.AGAIN if cursor.peek(self._next_seq, 1)[0] else self._lost(cursor, cursor.name)
        return self._wait_or(self._finish)

    def _find_successor(self, index: int) -> Header | None:
        """The next segment's header if it is begun; a reader that is not the owner takes the next one that is left."""
        later = index + 1
        if not self._is_owner:
            left = segment_indexes(self._disk.list_folder(self.folder))
            later = next((found for found in left if found > index), later)
        header = read_header(self._disk, self.folder, later)
        return header if isinstance(header, Header) and self._is_ours(header, later) else None

    def _wait_or(self, finish: Callable[[], ReadResult]) -> ReadResult | _Step:
        if self._is_dead:
            return finish()
        if self.is_live():
            return _Step.WAIT
        # Its last records may have been written between our look and its death: look once more.
        self._is_dead = True
        return _Step.AGAIN

    def _go_on(self, cursor: SegmentCursor, successor: Header) -> ReadResult | _Step:
        if successor.first_seq == self._next_seq or successor.segment_index > cursor.index + 1:
            return self._enter(successor)
        # The writer may have filled this segment and gone on since we looked at it.
        if cursor.peek(self._next_seq, 1)[0]:
            return _Step.AGAIN
        # A segment is synced before its successor is begun, so these records were durable.
        return self._lost(cursor, segment_name(successor.segment_index))

    def _finish(self) -> ReadResult:
        """The writer is dead and wrote no further frame: an end, unless something proves that records are missing."""
        if _is_closed(self._last_payload):
            return self._ended(torn_bytes=0)
        cursor = self._cursor
        here = cursor.index if cursor is not None else 0
        torn_bytes = 0
        for index in segment_indexes(self._disk.list_folder(self.folder)):
            if index < here:
                continue
            is_here = cursor is not None and index == here
            raw = cursor.rest() if cursor is not None and is_here else read_file(self._disk, self.folder, index)
            is_begun = not is_here and self._is_begun(raw, index)
            if is_begun or self._codec.find_proof(raw, 0, self._next_seq) is not None:
                return self._lost(cursor, segment_name(index))
            torn_bytes += len(raw.rstrip(b"\0"))
        return self._ended(torn_bytes=torn_bytes)

    def _lost(self, cursor: SegmentCursor | None, witness: str) -> Damaged:
        name, offset = (cursor.name, cursor.offset) if cursor is not None else (witness, 0)
        return self._damaged(self._next_seq, name, offset, f"unreadable, but {witness} proves that it had been durable")

    def _is_begun(self, raw: bytes, index: int) -> bool:
        header = decode_header(raw)
        return isinstance(header, Header) and self._is_ours(header, index)

    def _ended(self, *, torn_bytes: int) -> EpochEnded:
        self.close()
        return EpochEnded(
            instance=self.instance,
            epoch=self.epoch,
            last_seq=self.delivered_seq,
            is_clean=_is_closed(self._last_payload),
            torn_bytes=torn_bytes,
        )

    def _damaged(self, seq: int, segment: str, offset: int, reason: str) -> Damaged:
        self.close()
        return Damaged(instance=self.instance, epoch=self.epoch, seq=seq, segment=segment, offset=offset, reason=reason)


def _is_closed(payload: bytes) -> bool:
    try:
        return isinstance(decode(payload), Closed)
    except msgspec.DecodeError:
        # Nothing was read, or a record before the position that only a newer reader knew.
        return False
