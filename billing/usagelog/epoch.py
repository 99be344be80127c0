"""Owns the reading of one epoch: its segments in order, where it ends, and whether what is missing was ever durable."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path

import msgspec

from billing.events import RECORD_VERSION, Closed, Record, decode
from billing.usagelog.batch import Batch, Damaged, EpochEnded, ReadResult
from billing.usagelog.disk import Disk
from billing.usagelog.framing import FrameCodec, Header, HeaderState, Stop, decode_header
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
        if isinstance(headers, Damaged):
            return headers
        if not headers:
            return self._wait_or(lambda: self._ended(torn_bytes=0))
        wanted = self.delivered_seq + 1
        if self._is_owner and self._position is not None and headers[0].first_seq > wanted:
            return self._damaged(
                wanted, segment_name(headers[0].segment_index), 0, "the records before this segment are gone"
            )
        start = ([header for header in headers if header.first_seq <= wanted] or headers[:1])[-1]
        self.segments = [
            (header.segment_index, header.first_seq) for header in headers if header.segment_index < start.segment_index
        ]
        self._enter(start)
        return _Step.AGAIN

    def _begun_headers(self) -> list[Header] | Damaged:
        """Headers from the first segment there up to the first that is not begun."""
        headers: list[Header] = []
        for index in segment_indexes(self._disk.list_folder(self.folder)):
            header = read_header(self._disk, self.folder, index)
            if not isinstance(header, Header):
                # The first segment is begun durably before its epoch is published; a successor is judged in _at_tail.
                if header is HeaderState.BAD and not headers:
                    return self._damaged(self.delivered_seq + 1, segment_name(index), 0, "bad segment header")
                break
            problem = self._problem(header, index)
            if problem is not None:
                return self._damaged(header.first_seq, segment_name(index), 0, problem)
            headers.append(header)
        return headers

    def _problem(self, header: Header, index: int) -> str | None:
        if (header.instance, header.epoch, header.segment_index) != (self.instance, self.epoch, index):
            return f"this is segment {header.segment_index} of {header.instance}/{header.epoch}"
        if header.record_version > RECORD_VERSION:
            return f"record version {header.record_version} is newer than this reader's {RECORD_VERSION}"
        return None

    def _enter(self, header: Header) -> None:
        before, self._cursor = self._cursor, SegmentCursor(self._disk, self.folder, header, self._codec)
        if before is not None:
            before.close()
        self._next_seq = header.first_seq
        self.segments.append((header.segment_index, header.first_seq))

    # Delivering

    def _deliver(self, cursor: SegmentCursor, frames: list[tuple[int, memoryview]]) -> ReadResult | _Step:
        """A batch of the frames behind the position, up to the first that is no record we know."""
        records: list[tuple[int, Record]] = []
        problem = ""
        taken = 0
        for seq, payload in frames:
            if seq > self.delivered_seq:
                try:
                    records.append((seq, decode(payload)))
                except msgspec.DecodeError as error:
                    problem = f"an intact frame, but no known record: {error}"
                    break
            taken += 1
        if problem and not records:
            return self._damaged(frames[taken][0], cursor.name, cursor.offset, problem)
        consumed = frames[:taken]
        cursor.consume(consumed)
        self._next_seq += taken
        self._last_payload = bytes(consumed[-1][1])
        return self._batch(records) if records else _Step.AGAIN

    def _batch(self, records: list[tuple[int, Record]]) -> Batch:
        first_seq, last_seq = records[0][0], records[-1][0]
        self.delivered_seq = last_seq
        return Batch(instance=self.instance, epoch=self.epoch, first_seq=first_seq, last_seq=last_seq, records=records)

    # Ending

    def _at_tail(self, cursor: SegmentCursor, stop: Stop | None) -> ReadResult | _Step:
        """No frame here: go on to the next segment, wait for the writer, or end."""
        successor = self._find_successor(cursor.index)
        if isinstance(successor, Header):
            return self._go_on(cursor, successor)
        if stop is Stop.BAD:
            damage = self._find_damage(cursor, cursor.rest(), cursor.name)
            if damage is not None:
                return damage
        return self._wait_or(lambda: self._finish(cursor))

    def _find_successor(self, index: int) -> Header | HeaderState:
        """The next segment's header; for a reader that is not the owner, of the next one that the owner has left."""
        if not self._is_owner:
            for later in segment_indexes(self._disk.list_folder(self.folder)):
                if later > index:
                    return read_header(self._disk, self.folder, later)
        return read_header(self._disk, self.folder, index + 1)

    def _wait_or(self, finish: Callable[[], ReadResult | _Step]) -> ReadResult | _Step:
        if self._is_dead:
            return finish()
        if self.is_live():
            return _Step.WAIT
        # Its last records may have been written between our look and its death: look once more.
        self._is_dead = True
        return _Step.AGAIN

    def _go_on(self, cursor: SegmentCursor, successor: Header) -> ReadResult | _Step:
        index = successor.segment_index if not self._is_owner else cursor.index + 1
        problem = self._problem(successor, index)
        is_next = successor.first_seq == self._next_seq or index > cursor.index + 1
        if problem is None and is_next:
            self._enter(successor)
            return _Step.AGAIN
        # The writer may have filled this segment and gone on since we looked at it.
        if cursor.peek(self._next_seq, 1)[0]:
            return _Step.AGAIN
        # A segment is synced before its successor is begun, so these records were durable.
        reason = (
            problem
            or f"records are missing before segment {successor.segment_index}, which begins with {successor.first_seq}"
        )
        return self._damaged(self._next_seq, cursor.name, cursor.offset, reason)

    def _find_damage(self, cursor: SegmentCursor, raw: bytes, name: str) -> Damaged | None:
        """Damage, if a frame in `raw` proves that the record we cannot read had been durable."""
        place = self._codec.find_proof(raw, 0, self._next_seq)
        # A living writer may have completed the record and written the proof between two pages of our read.
        if place is None or cursor.peek(self._next_seq, 1)[0]:
            return None
        reason = f"bad record; a valid one {place} bytes on in {name} says that it had been durable"
        return self._damaged(self._next_seq, cursor.name, cursor.offset, reason)

    def _finish(self, cursor: SegmentCursor) -> ReadResult | _Step:
        """The writer is dead and wrote no further frame: an end, unless something proves that records are missing."""
        if _is_closed(self._last_payload):
            return self._ended(torn_bytes=0)
        torn_bytes = 0
        later = [index for index in segment_indexes(self._disk.list_folder(self.folder)) if index > cursor.index]
        for index, raw in [(cursor.index, cursor.rest()), *((i, read_file(self._disk, self.folder, i)) for i in later)]:
            damage = self._find_damage(cursor, raw, segment_name(index))
            if damage is None and index > cursor.index and isinstance(decode_header(raw), Header):
                reason = f"records are missing before segment {index}"
                damage = self._damaged(self._next_seq, cursor.name, cursor.offset, reason)
            if damage is not None:
                return damage
            torn_bytes += len(raw.rstrip(b"\0"))
        return self._ended(torn_bytes=torn_bytes)

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
