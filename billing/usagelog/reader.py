"""Owns the in-process shipper: finds every worker's epochs under one root and hands their records to the meter.

At least once: records are delivered in order from the given positions; what the consumer has not made durable it will
see again after a restart. Deduplication is the ledger's unique key. Crash windows: docs/usage-log.md.
"""

from collections import deque
from collections.abc import Mapping
from pathlib import Path

from billing import failpoint
from billing.packed import DecodeAll, decode_all
from billing.usagelog.batch import Batch, Damaged, EpochEnded, ReadResult
from billing.usagelog.disk import Disk, LocalDisk
from billing.usagelog.epoch import CodecFor, EpochReader
from billing.usagelog.framing import FrameCodec
from billing.usagelog.segment import LOCK_NAME, segment_indexes, segment_name

__all__ = ["Batch", "Damaged", "EpochEnded", "ReadResult", "UsageReader"]

#: How many results may pass before a busy reader looks for new epochs.
_DISCOVER_EVERY = 64
_REMOVED_PREFIX = ".removed-"


class UsageReader:
    """Reads `root/<instance>/<epoch>/` as a stream. Not thread-safe; every method blocks on the disk only.

    `positions` maps (instance, epoch) to the last sequence number that the consumer has made durable (its watermark).
    Epochs without a position are read from the first record there. Any number of readers may read one root, but only
    the owner may `ack`; others (`is_owner=False`: reconcile, tools) pass over segments that the owner has let go.
    `decode_all` makes the records: Served and marks, or for the meter `packed.Unpacker().decode_all`.
    """

    def __init__(
        self,
        root: Path,
        positions: Mapping[tuple[str, int], int] | None = None,
        *,
        is_owner: bool = True,
        disk: Disk | None = None,
        codec_for: CodecFor = FrameCodec,
        decode_all: DecodeAll = decode_all,
    ) -> None:
        self._root = root
        self._positions = dict(positions or {})
        self._disk: Disk = disk or LocalDisk()
        self._codec_for = codec_for
        self._decode_all = decode_all
        self._is_owner = is_owner
        self._epochs: dict[tuple[str, int], EpochReader] = {}
        #: The epochs still being read, the next one to ask first.
        self._turns: deque[EpochReader] = deque()
        self._ended: set[tuple[str, int]] = set()
        self._results_left = 0
        #: Every damage found since the start, for status and alarms.
        self.damages: list[Damaged] = []

    def read_batch(self, records_max: int = 1000) -> ReadResult | None:
        """The next result of any epoch, in turns; None if none, new ones included, has anything now: poll again later.

        Of one epoch: batches in order without a gap, then exactly one EpochEnded or Damaged. Raises OSError if the disk
        fails; nothing is lost then, read again or from the positions.
        """
        self._results_left -= 1
        if self._results_left < 0:
            self._discover()
        result = self._read_in_turns(records_max)
        if result is None and self._discover():
            result = self._read_in_turns(records_max)
        return result

    def ack(self, instance: str, epoch: int, seq: int) -> None:
        """Everything of this epoch up to `seq` is durable at the consumer: segments below it may be deleted.

        The last segment goes only with the whole epoch, once EpochEnded was delivered and its `last_seq` acknowledged.
        Idempotent; an epoch already removed is fine. Raises ValueError for a number that was never delivered.
        """
        assert self._is_owner, "only the owner acknowledges"
        reader = self._epochs.get((instance, epoch))
        if reader is None:
            return
        if seq > reader.delivered_seq:
            raise ValueError(f"{instance}/{epoch}: {seq} acknowledged, but only {reader.delivered_seq} delivered")
        segments = reader.segments
        # In ascending order, so that what a crash leaves is a suffix without a gap.
        while len(segments) > 1 and segments[1][1] <= seq + 1:
            if failpoint.armed:
                failpoint.hit("before_segment_delete")
            self._disk.unlink(reader.folder / segment_name(segments[0][0]))
            del segments[0]
        if (instance, epoch) in self._ended and seq == reader.delivered_seq:
            self._remove(reader)

    def live_epochs(self) -> list[tuple[str, int]]:
        """The known epochs whose writer lives."""
        return [key for key, reader in self._epochs.items() if reader.is_live()]

    def delivered(self) -> dict[tuple[str, int], int]:
        """Of each known epoch the last sequence number delivered."""
        return {key: reader.delivered_seq for key, reader in self._epochs.items()}

    def close(self) -> None:
        """Let go of open files. Idempotent."""
        for reader in self._epochs.values():
            reader.close()
        self._turns.clear()

    def _read_in_turns(self, records_max: int) -> ReadResult | None:
        for _ in range(len(self._turns)):
            reader = self._turns[0]
            result = reader.read(records_max)
            self._turns.rotate(-1)
            if result is not None:
                self._note(reader, result)
                return result
        return None

    def _note(self, reader: EpochReader, result: ReadResult) -> None:
        if isinstance(result, Batch):
            return
        self._turns.remove(reader)
        if isinstance(result, Damaged):
            self.damages.append(result)
        else:
            self._ended.add((reader.instance, reader.epoch))

    def _discover(self) -> bool:
        """Take up new epochs, oldest first; whether there are any. A dotted name is not published, or not any more."""
        self._results_left = _DISCOVER_EVERY
        known = len(self._epochs)
        for instance in sorted(self._disk.list_folder(self._root)):
            names = self._disk.list_folder(self._root / instance)
            for name in sorted(name for name in names if name.isdecimal() and name.isascii()):
                key = (instance, int(name))
                if key not in self._epochs:
                    self._take_up(key, self._root / instance / name)
        return len(self._epochs) > known

    def _take_up(self, key: tuple[str, int], folder: Path) -> None:
        position = self._positions.get(key)
        reader = EpochReader(
            self._disk,
            folder,
            *key,
            position=position,
            is_owner=self._is_owner,
            codec_for=self._codec_for,
            decode_all=self._decode_all,
        )
        self._epochs[key] = reader
        self._turns.append(reader)

    def _remove(self, reader: EpochReader) -> None:
        """Remove a finished epoch. Renamed first: a crash leaves all of it, or nothing that a reader would look at."""
        key = (reader.instance, reader.epoch)
        if failpoint.armed:
            failpoint.hit("before_segment_delete")
        parent = reader.folder.parent
        self._disk.rename(reader.folder, parent / f"{_REMOVED_PREFIX}{reader.folder.name}")
        self._ended.discard(key)
        del self._epochs[key]
        # This one, and whatever an earlier crash left.
        for name in self._disk.list_folder(parent):
            if name.startswith(_REMOVED_PREFIX):
                self._remove_folder(parent / name)

    def _remove_folder(self, folder: Path) -> None:
        for index in segment_indexes(self._disk.list_folder(folder)):
            self._disk.unlink(folder / segment_name(index))
        self._disk.unlink(folder / LOCK_NAME)
        self._disk.remove_folder(folder)
