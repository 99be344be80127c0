"""One suite over both disks: what the `Disk` seam promises, and what a reader makes of every kind of usage log."""

import stat
from collections.abc import Iterator
from pathlib import Path
from random import Random
from zlib import crc32

import msgspec
import pytest

from billing.events import Closed, Record, Sent, encode
from billing.usagelog.batch import Batch, Damaged, EpochEnded
from billing.usagelog.disk import Disk, LocalDisk
from billing.usagelog.framing import FRAME_BYTES, HEADER_BYTES, FrameCodec, encode_header
from billing.usagelog.reader import UsageReader
from tests.leaks import assert_none_left, held
from tests.sim.disk import SimDisk
from tests.sim.stepped import ends_of, read_all, records_of
from tests.sim.world import served
from tests.sim.writing import WALL_NS, Scribe, overwrite

CALLS: list[Record] = [served(1000 + number, 20) for number in range(20)]
EPOCH = WALL_NS // 1_000_000


@pytest.fixture(params=["local", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Disk, Path]]:
    yield (LocalDisk(), tmp_path / "usage") if request.param == "local" else (SimDisk(Random(0)), Path("/sim/usage"))


Place = tuple[Disk, Path]


def write_dead(place: Place, calls: list[Record], *, is_clean: bool = False) -> Scribe:
    scribe = Scribe(*place)
    for record in calls:
        scribe.write(record)
    if is_clean:
        scribe.write(Closed(t_ns=1))
    scribe.die()
    return scribe


class TestDisk:
    def test_written_bytes_are_read_back(self, place: Place) -> None:
        disk, root = place
        disk.make_folder(root)
        disk.preallocate(root / "file", 1000)
        handle = disk.open(root / "file", is_writable=True)
        disk.pwrite(handle, b"abc", 500)
        disk.fdatasync(handle)
        disk.close(handle)
        handle = disk.open(root / "file", is_writable=False)
        assert disk.pread(handle, 5, 499) == b"\0abc\0"
        assert disk.pread(handle, 5, 998) == b"\0\0", "short only at the end"
        disk.close(handle)

    def test_a_preallocated_file_is_all_zeros_and_new(self, place: Place) -> None:
        disk, root = place
        disk.make_folder(root)
        disk.preallocate(root / "file", 700_000)
        handle = disk.open(root / "file", is_writable=False)
        assert disk.pread(handle, 800_000, 0) == bytes(700_000)
        disk.close(handle)
        with pytest.raises(FileExistsError):
            disk.preallocate(root / "file", 10)

    def test_folders_are_made_with_parents_listed_and_removed(self, place: Place) -> None:
        disk, root = place
        assert disk.list_folder(root / "a") == []
        disk.make_folder(root / "a" / "b")
        disk.make_folder(root / "a" / "b")
        disk.preallocate(root / "a" / "file", 10)
        assert sorted(disk.list_folder(root / "a")) == ["b", "file"]
        with pytest.raises(OSError, match=r"39|not empty|/a"):
            disk.remove_folder(root / "a")
        disk.remove_folder(root / "a" / "b")
        disk.remove_folder(root / "a" / "b")
        disk.unlink(root / "a" / "file")
        disk.unlink(root / "a" / "file")
        assert disk.list_folder(root / "a") == []

    def test_a_missing_file_cannot_be_opened(self, place: Place) -> None:
        disk, root = place
        with pytest.raises(FileNotFoundError):
            disk.open(root / "nothing", is_writable=False)

    def test_an_open_file_outlives_its_name(self, place: Place) -> None:
        disk, root = place
        disk.make_folder(root)
        disk.replace_file(root / "file", b"old")
        handle = disk.open(root / "file", is_writable=False)
        disk.replace_file(root / "file", b"newer")
        disk.unlink(root / "file")
        assert disk.pread(handle, 10, 0) == b"old"
        disk.close(handle)
        assert disk.list_folder(root) == []

    def test_a_lock_has_one_holder_and_is_seen_by_others(self, place: Place) -> None:
        disk, root = place
        disk.make_folder(root / "a")
        assert not disk.is_locked(root / "a" / "lock")
        handle = disk.lock(root / "a" / "lock")
        assert disk.is_locked(root / "a" / "lock")
        with pytest.raises(BlockingIOError):
            disk.lock(root / "a" / "lock")
        disk.rename(root / "a", root / "b")
        assert disk.is_locked(root / "b" / "lock"), "a lock moves with its folder"
        disk.close(handle)
        assert not disk.is_locked(root / "b" / "lock")

    def test_a_folder_is_never_renamed_over_a_used_one(self, place: Place) -> None:
        disk, root = place
        for name in ("a", "b"):
            disk.make_folder(root / name)
            disk.preallocate(root / name / "file", 10)
        with pytest.raises(OSError, match=r"39|not empty|/b"):
            disk.rename(root / "a", root / "b")


class TestReading:
    def test_a_clean_epoch_is_read_once_in_order_and_ends(self, place: Place) -> None:
        write_dead(place, CALLS, is_clean=True)
        reader = UsageReader(place[1], disk=place[0])
        results = read_all(reader, 3)
        assert [seq for seq, _ in records_of(results)] == list(range(1, 22))
        assert [record for _, record in records_of(results)] == [*CALLS, Closed(t_ns=1)]
        assert all(len(result.records) <= 3 for result in results if isinstance(result, Batch))
        end = EpochEnded(instance="w0", epoch=EPOCH, last_seq=21, is_clean=True, torn_bytes=0)
        assert results[-1] == end
        assert ends_of(results) == [end]
        assert read_all(reader) == []
        reader.close()

    def test_a_living_epoch_waits_and_goes_on(self, place: Place) -> None:
        scribe = Scribe(*place)
        reader = UsageReader(place[1], disk=place[0])
        assert read_all(reader) == []
        assert reader.live_epochs() == [("w0", EPOCH)]
        for number, record in enumerate(CALLS, 1):
            scribe.write(record, is_synced=False)
            assert records_of(read_all(reader)) == [(number, record)]
        scribe.die()
        (end,) = read_all(reader)
        assert isinstance(end, EpochEnded)
        assert (end.last_seq, end.is_clean) == (20, False)
        assert reader.live_epochs() == []
        reader.close()

    @pytest.mark.parametrize("position", range(0, 21, 4))
    def test_reading_resumes_behind_the_watermark(self, place: Place, position: int) -> None:
        write_dead(place, CALLS)
        reader = UsageReader(place[1], {("w0", EPOCH): position}, disk=place[0])
        results = read_all(reader)
        assert [seq for seq, _ in records_of(results)] == list(range(position + 1, 21))
        assert ends_of(results)[0].last_seq == 20
        assert not reader.damages

    def test_a_watermark_beyond_the_end_is_an_end(self, place: Place) -> None:
        # Records may be read and posted before a power cut takes them from the log.
        write_dead(place, CALLS[:3])
        reader = UsageReader(place[1], {("w0", EPOCH): 7}, disk=place[0])
        (end,) = read_all(reader)
        assert isinstance(end, EpochEnded)
        reader.ack("w0", EPOCH, end.last_seq)
        assert place[0].list_folder(place[1] / "w0") == ["last-epoch"]

    def test_an_epoch_without_records_ends_and_is_removed(self, place: Place) -> None:
        write_dead(place, [])
        reader = UsageReader(place[1], disk=place[0])
        (end,) = read_all(reader)
        assert end == EpochEnded(instance="w0", epoch=EPOCH, last_seq=0, is_clean=False, torn_bytes=0)
        reader.ack("w0", EPOCH, 0)
        assert place[0].list_folder(place[1] / "w0") == ["last-epoch"]

    def test_several_workers_and_epochs_are_read_in_turns(self, place: Place) -> None:
        scribes = [Scribe(*place, instance) for instance in ("w0", "w1", "w0")]
        for scribe in scribes:
            scribe.write(*CALLS)
        reader = UsageReader(place[1], disk=place[0])
        firsts = [reader.read_batch(2) for _ in range(3)]
        sources = [(batch.instance, batch.epoch) for batch in firsts if isinstance(batch, Batch)]
        assert sources == [("w0", EPOCH), ("w0", EPOCH + 1), ("w1", EPOCH)]
        late = Scribe(*place, "w2")
        late.write(CALLS[0])
        results = read_all(reader)
        assert ("w2", EPOCH) in {(found.instance, found.epoch) for found in results}
        assert len(records_of(results)) == 3 * 20 + 1 - 6

    def test_a_busy_reader_discovers_new_epochs_too(self, place: Place) -> None:
        Scribe(*place, segment_bytes=64 * 1024).write(*CALLS * 10)
        reader = UsageReader(place[1], disk=place[0])
        reader.read_batch(1)
        Scribe(*place, "w9").write(CALLS[0])
        results = [reader.read_batch(1) for _ in range(100)]
        assert "w9" in {result.instance for result in results if result is not None}

    def test_two_readers_do_not_disturb_each_other(self, place: Place) -> None:
        scribe = write_dead(place, CALLS)
        owner = UsageReader(place[1], disk=place[0])
        other = UsageReader(place[1], disk=place[0], is_owner=False)
        assert isinstance(other.read_batch(2), Batch)
        results = read_all(owner)
        assert len(records_of(results)) == 20
        owner.ack("w0", EPOCH, 19)
        assert not other.damages
        rest = read_all(other)
        assert not other.damages
        assert records_of(rest)[-1][0] == 20, "it passes over what the owner let go, up to the end"
        assert scribe.epoch.number == EPOCH
        with pytest.raises(AssertionError):
            other.ack("w0", EPOCH, 20)


class TestAcknowledging:
    def test_segments_go_once_everything_in_them_is_acknowledged(self, place: Place) -> None:
        disk, root = place
        scribe = write_dead(place, CALLS)
        segments = sorted(name for name in disk.list_folder(scribe.epoch.folder) if name.endswith(".seg"))
        assert len(segments) == 5
        reader = UsageReader(root, disk=disk)
        read_all(reader)
        handle = disk.open(scribe.segment(2), is_writable=False)
        second = int.from_bytes(disk.pread(handle, 8, 24), "little")
        disk.close(handle)
        reader.ack("w0", EPOCH, second - 2)
        assert sorted(disk.list_folder(scribe.epoch.folder)) == [*segments, "lock"]
        reader.ack("w0", EPOCH, second - 1)
        assert sorted(disk.list_folder(scribe.epoch.folder)) == [*segments[1:], "lock"]
        reader.ack("w0", EPOCH, 19)
        assert sorted(disk.list_folder(scribe.epoch.folder)) == [segments[-1], "lock"]
        reader.ack("w0", EPOCH, 20)
        assert disk.list_folder(root / "w0") == ["last-epoch"]
        reader.ack("w0", EPOCH, 20)

    def test_a_living_epoch_keeps_its_last_segment(self, place: Place) -> None:
        scribe = Scribe(*place)
        scribe.write(*CALLS)
        reader = UsageReader(place[1], disk=place[0])
        read_all(reader)
        reader.ack("w0", EPOCH, 20)
        names = place[0].list_folder(scribe.epoch.folder)
        assert len([name for name in names if name.endswith(".seg")]) == 1

    def test_a_dead_epoch_stays_until_its_end_was_delivered(self, place: Place) -> None:
        scribe = Scribe(*place)
        scribe.write(CALLS[0])
        reader = UsageReader(place[1], disk=place[0])
        assert isinstance(reader.read_batch(), Batch)
        scribe.die()
        reader.ack("w0", EPOCH, 1)
        assert place[0].list_folder(scribe.epoch.folder)
        assert isinstance(reader.read_batch(), EpochEnded)
        reader.ack("w0", EPOCH, 1)
        assert not place[0].list_folder(scribe.epoch.folder)

    def test_what_was_never_delivered_cannot_be_acknowledged(self, place: Place) -> None:
        write_dead(place, CALLS)
        reader = UsageReader(place[1], disk=place[0])
        reader.read_batch(3)
        with pytest.raises(ValueError, match="only 3 delivered"):
            reader.ack("w0", EPOCH, 4)

    def test_what_an_interrupted_removal_left_goes_with_the_next(self, place: Place) -> None:
        disk, root = place
        write_dead(place, CALLS[:1])
        disk.rename(root / "w0" / f"{EPOCH:016d}", root / "w0" / f".removed-{EPOCH:016d}")
        reader = UsageReader(root, disk=disk)
        assert read_all(reader) == []
        write_dead(place, CALLS[:1])
        (end,) = ends_of(read_all(reader))
        reader.ack("w0", end.epoch, end.last_seq)
        assert disk.list_folder(root / "w0") == ["last-epoch"]

    def test_a_watermark_below_the_first_segment_left_is_damage(self, place: Place) -> None:
        disk, root = place
        scribe = write_dead(place, CALLS)
        disk.unlink(scribe.segment(1))
        for positions in ({}, {("w0", EPOCH): 1}):
            reader = UsageReader(root, positions, disk=disk)
            (damage,) = read_all(reader)
            assert isinstance(damage, Damaged)
            assert damage.seq == positions.get(("w0", EPOCH), 0) + 1
        reader = UsageReader(root, {("w0", EPOCH): 15}, disk=disk)
        assert [seq for seq, _ in records_of(read_all(reader))] == [16, 17, 18, 19, 20]


class TestDamage:
    def check_stops(self, place: Place, *, last_seq: int, next_seq: int) -> Damaged:
        reader = UsageReader(place[1], disk=place[0])
        results = read_all(reader)
        assert [seq for seq, _ in records_of(results)] == list(range(1, last_seq + 1))
        damage = results[-1]
        assert isinstance(damage, Damaged)
        assert damage.seq == next_seq
        assert reader.damages == [damage]
        assert not ends_of(results)
        assert read_all(reader) == [], "reported once; nothing follows"
        return damage

    def test_a_bad_record_before_valid_ones_stops_reading(self, place: Place) -> None:
        disk, root = place
        scribe = write_dead(place, CALLS)
        overwrite(disk, scribe.segment(1), HEADER_BYTES + FRAME_BYTES + 3, b"\xff")
        damage = self.check_stops(place, last_seq=0, next_seq=1)
        assert (damage.segment, damage.offset) == ("00000001.seg", HEADER_BYTES)
        names = disk.list_folder(scribe.epoch.folder)
        reader = UsageReader(root, disk=disk)
        read_all(reader)
        reader.ack("w0", EPOCH, 0)
        assert sorted(disk.list_folder(scribe.epoch.folder)) == sorted(names), "never truncated away"

    def test_zeroed_records_before_valid_ones_are_damage(self, place: Place) -> None:
        disk, _ = place
        scribe = Scribe(*place, segment_bytes=4096)
        for record in CALLS:
            scribe.write(record)
        scribe.die()
        frame = FRAME_BYTES + len(encode(CALLS[0]))
        overwrite(disk, scribe.segment(1), HEADER_BYTES + 3 * frame, bytes(frame))
        self.check_stops(place, last_seq=3, next_seq=4)

    def test_damage_is_found_while_the_writer_lives(self, place: Place) -> None:
        disk, _ = place
        scribe = Scribe(*place, segment_bytes=4096)
        for record in CALLS:
            scribe.write(record)
        frame = FRAME_BYTES + len(encode(CALLS[0]))
        overwrite(disk, scribe.segment(1), HEADER_BYTES + 3 * frame + FRAME_BYTES, b"\xff")
        self.check_stops(place, last_seq=3, next_seq=4)

    def test_a_lost_header_is_damage(self, place: Place) -> None:
        disk, _ = place
        scribe = write_dead(place, CALLS)
        overwrite(disk, scribe.segment(1), 0, b"x")
        self.check_stops(place, last_seq=0, next_seq=1)

    def test_a_lost_later_header_is_damage(self, place: Place) -> None:
        disk, _ = place
        scribe = write_dead(place, CALLS)
        overwrite(disk, scribe.segment(2), 9, b"\xff")
        results = read_all(UsageReader(place[1], disk=disk))
        assert isinstance(results[-1], Damaged)

    def test_a_missing_segment_is_damage(self, place: Place) -> None:
        disk, _ = place
        scribe = write_dead(place, CALLS)
        disk.unlink(scribe.segment(3))
        results = read_all(UsageReader(place[1], disk=disk))
        assert isinstance(results[-1], Damaged)
        assert results[-1].seq == records_of(results)[-1][0] + 1

    def test_a_torn_tail_of_a_dead_epoch_is_cut(self, place: Place) -> None:
        disk, _ = place
        scribe = Scribe(*place, segment_bytes=4096)
        scribe.write(*CALLS[:5])
        scribe.write(*CALLS[5:8], is_synced=False)
        scribe.die()
        frame = FRAME_BYTES + len(encode(CALLS[0]))
        overwrite(disk, scribe.segment(1), HEADER_BYTES + 6 * frame + 30, bytes(20))
        results = read_all(UsageReader(place[1], disk=disk))
        assert [seq for seq, _ in records_of(results)] == [1, 2, 3, 4, 5, 6], "8 was never synced: no proof about 7"
        (end,) = ends_of(results)
        assert end.torn_bytes > 0
        assert not end.is_clean

    def test_an_intact_frame_that_is_no_record_stops_reading(self, place: Place) -> None:
        scribe = Scribe(*place, segment_bytes=4096)
        scribe.write_raw([encode(CALLS[0]), msgspec.msgpack.encode(["?", 1]), encode(CALLS[1])])
        scribe.die()
        damage = self.check_stops(place, last_seq=1, next_seq=2)
        assert "no known record" in damage.reason

    def test_a_segment_of_a_newer_record_version_is_not_guessed_at(self, place: Place) -> None:
        disk, _ = place
        scribe = write_dead(place, CALLS[:1])
        header = bytearray(encode_header("w0", EPOCH, 1, 1, 512))
        header[10:12] = (9).to_bytes(2, "little")
        header[-4:] = crc32(bytes(header[:-4])).to_bytes(4, "little")
        overwrite(disk, scribe.segment(1), 0, bytes(header))
        damage = self.check_stops(place, last_seq=0, next_seq=1)
        assert "newer" in damage.reason

    def test_a_segment_of_another_epoch_is_no_first_segment(self, place: Place) -> None:
        disk, _ = place
        scribe = write_dead(place, CALLS[:1])
        overwrite(disk, scribe.segment(1), 0, encode_header("w0", EPOCH - 1, 1, 1, 512))
        self.check_stops(place, last_seq=0, next_seq=1)

    def test_stale_frames_of_another_epoch_never_parse(self, place: Place) -> None:
        disk, root = place
        old = write_dead(place, CALLS[:1])
        new = write_dead(place, [])
        codec = FrameCodec("w0", old.epoch.number)
        parts, _, _ = codec.encode([encode(CALLS[0])], 0, 1, 0, 4096)
        overwrite(disk, new.segment(1), HEADER_BYTES, b"".join(parts))
        results = read_all(UsageReader(root, {("w0", old.epoch.number): 1}, disk=disk))
        assert records_of(results) == []
        assert [end.torn_bytes > 0 for end in ends_of(results)] == [False, True]


def test_files_are_private_and_nothing_stays_open(tmp_path: Path) -> None:
    disk, root = LocalDisk(), tmp_path / "usage"
    before = held()
    for _ in range(20):
        scribe = Scribe(disk, root)
        scribe.write(CALLS[0], Sent(first_seq=1, last_seq=1))
        for path in root.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        reader = UsageReader(root, disk=disk)
        read_all(reader)
        scribe.die()
        for end in ends_of(read_all(reader)):
            reader.ack(end.instance, end.epoch, end.last_seq)
        reader.close()
    assert_none_left(before, 20)
