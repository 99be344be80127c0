"""Opening an epoch: numbers are never used twice, and what a dead opener left is removed."""

from pathlib import Path
from random import Random

import pytest

from billing.usagelog.framing import Header
from billing.usagelog.segment import read_header
from gateway.metering.epoch import Epoch, open_epoch
from tests.sim.disk import Crash, SimDisk

ROOT = Path("/sim/usage/w0")
NOW_NS = 1_767_225_600_000_000_000


def reopen(disk: SimDisk, wall_ns: int) -> Epoch:
    epoch = open_epoch(disk, ROOT, wall_ns, 512)
    disk.close(epoch.lock)
    return epoch


def test_the_number_is_the_wall_clock_in_milliseconds() -> None:
    disk = SimDisk(Random(0))
    epoch = reopen(disk, NOW_NS)
    assert epoch.number == NOW_NS // 1_000_000
    assert epoch.folder.name == f"{epoch.number:016d}"
    header = read_header(disk, epoch.folder, 1)
    assert isinstance(header, Header)
    assert (header.instance, header.epoch, header.first_seq) == ("w0", epoch.number, 1)


@pytest.mark.parametrize("step_ns", [0, -(10**18)])
def test_numbers_grow_even_if_the_clock_does_not_and_the_epoch_is_gone(step_ns: int) -> None:
    disk = SimDisk(Random(0))
    first = reopen(disk, NOW_NS)
    for path in [path for path in disk.files if path.parent == first.folder]:
        disk.unlink(path)
    disk.remove_folder(first.folder)
    assert reopen(disk, NOW_NS + step_ns).number == first.number + 1


def test_numbers_grow_even_if_the_counter_is_lost() -> None:
    disk = SimDisk(Random(0))
    first = reopen(disk, NOW_NS)
    disk.unlink(ROOT / "last-epoch")
    assert reopen(disk, NOW_NS).number == first.number + 1


def test_a_counter_that_is_no_number_is_refused() -> None:
    disk = SimDisk(Random(0))
    reopen(disk, NOW_NS)
    disk.replace_file(ROOT / "last-epoch", b"x")
    with pytest.raises(ValueError, match="not a number"):
        open_epoch(disk, ROOT, NOW_NS, 512)


@pytest.mark.parametrize("crash_in", range(1, 8))
def test_a_crash_while_opening_leaves_nothing_that_stays(crash_in: int) -> None:
    disk = SimDisk(Random(crash_in))
    disk.crash_in = crash_in
    with pytest.raises(Crash):
        open_epoch(disk, ROOT, NOW_NS, 512)
    disk.power_cut()
    published = [name for name in disk.list_folder(ROOT) if name.isdecimal()]
    reopen(disk, NOW_NS)
    left = sorted(disk.list_folder(ROOT))
    assert len(left) == len(published) + 2, left
    assert all(name == "last-epoch" or name.isdecimal() for name in left)


def test_a_full_disk_releases_the_lock() -> None:
    disk = SimDisk(Random(0))
    disk.is_full = True
    with pytest.raises(OSError, match="simulated"):
        open_epoch(disk, ROOT, NOW_NS, 512)
    disk.is_full = False
    reopen(disk, NOW_NS)
    assert not [name for name in disk.list_folder(ROOT) if name.startswith(".")]


def test_a_living_opener_is_left_alone() -> None:
    disk = SimDisk(Random(0))
    disk.make_folder(ROOT / ".new-x")
    disk.lock(ROOT / ".new-x" / "lock")
    reopen(disk, NOW_NS)
    assert ".new-x" in disk.list_folder(ROOT)


def test_an_instance_name_that_no_header_holds_is_refused() -> None:
    disk = SimDisk(Random(0))
    with pytest.raises(ValueError, match="instance"):
        open_epoch(disk, ROOT.parent / ("x" * 33), NOW_NS, 512)
