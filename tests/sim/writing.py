"""Writes usage logs record by record, on any disk, without a loop or threads."""

from pathlib import Path

from billing.events import Record, encode
from billing.usagelog.disk import Disk
from billing.usagelog.framing import FrameCodec
from billing.usagelog.segment import segment_name
from gateway.metering.epoch import open_epoch
from gateway.metering.segments import SegmentWriter

WALL_NS = 1_767_225_600_000_000_000


class Scribe:
    """A living epoch of `root/instance`, until `die`."""

    def __init__(self, disk: Disk, root: Path, instance: str = "w0", *, segment_bytes: int = 512) -> None:
        self.disk = disk
        self.epoch = open_epoch(disk, root / instance, WALL_NS, segment_bytes)
        self.segment_bytes = segment_bytes
        codec = FrameCodec(instance, self.epoch.number)
        self.writer = SegmentWriter(disk, self.epoch, segment_bytes, codec)

    def write(self, *records: Record, is_synced: bool = True) -> None:
        """One group; segments are made as they are needed."""
        self.write_raw([encode(record) for record in records])
        if is_synced:
            self._sync()

    def write_raw(self, payloads: list[bytes]) -> None:
        while payloads:
            payloads = payloads[self.writer.write(payloads) :]
            wanted = self.writer.wanted_index
            if payloads and wanted is not None:
                self.disk.preallocate(self.segment(wanted), self.segment_bytes)
                self.writer.add_spare(wanted)
            if payloads and self.writer.has_unsynced:
                self._sync()

    def _sync(self) -> None:
        self.writer.sync()
        self.writer.note_synced()

    def die(self) -> None:
        self.writer.close()
        self.disk.close(self.epoch.lock)

    def segment(self, index: int) -> Path:
        return self.epoch.folder / segment_name(index)


def overwrite(disk: Disk, path: Path, offset: int, data: bytes) -> None:
    """Damage a file."""
    handle = disk.open(path, is_writable=True)
    try:
        disk.pwrite(handle, data, offset)
        disk.fdatasync(handle)
    finally:
        disk.close(handle)
