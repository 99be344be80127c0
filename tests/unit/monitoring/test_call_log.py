"""The call log: whole lines, in order, from a thread that never holds up a call."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from gateway.monitoring.call_log import CallLog
from tests.leaks import assert_none_left, held


class Later:
    """`call_later` that remembers."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def __call__(self, delay_s: float, callback: Callable[[], None]) -> None:
        assert delay_s > 0
        self.due.append(callback)

    def run(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


def test_lines_are_gathered_and_written_in_order(tmp_path: Path) -> None:
    later, path = Later(), tmp_path / "calls.jsonl"
    log = CallLog(path, later)
    for number in range(10):
        log.write(b"%d\n" % number)
    assert len(later.due) == 1, "one timer for all lines"
    later.run()
    log.write(b"last\n")
    log.close()
    assert path.read_bytes() == b"".join(b"%d\n" % number for number in range(10)) + b"last\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert log.dropped_lines == 0


def test_an_existing_log_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    for number in range(2):
        log = CallLog(path, Later())
        log.write(b"%d\n" % number)
        log.close()
    assert path.read_bytes() == b"0\n1\n"


def test_many_lines_do_not_wait_for_the_timer(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    log = CallLog(path, Later())
    for _ in range(5000):
        log.write(b"x\n")
    log.close()
    assert path.read_bytes() == b"x\n" * 5000


def test_a_writer_that_cannot_keep_up_loses_lines_not_calls(tmp_path: Path) -> None:
    """The file is a pipe that nobody reads until all was handed over."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = CallLog(path, Later())
    batch = b"x" * 99_999 + b"\n"
    for _ in range(100):
        log.write(batch)
        log.flush()
    assert log.dropped_lines > 0
    os.set_blocking(reader, True)
    taken = bytearray()
    end = threading.Thread(target=log.close)
    end.start()
    while chunk := os.read(reader, 1 << 20):
        taken += chunk
    end.join()
    os.close(reader)
    assert len(taken) + log.dropped_lines * len(batch) == 100 * len(batch)


def test_a_full_disk_loses_lines_not_calls() -> None:
    log = CallLog(Path("/dev/full"), Later())
    log.write(b"x\n")
    log.close()
    assert log.dropped_lines == 1


def test_no_descriptor_and_no_thread_is_left(tmp_path: Path) -> None:
    before = held()
    for _ in range(50):
        log = CallLog(tmp_path / "calls.jsonl", Later())
        log.write(b"x\n")
        log.close()
    assert_none_left(before, 50)


def test_a_full_file_is_put_aside_and_a_few_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    log = CallLog(path, Later(), file_bytes_max=10)
    batches = [b"%d234567890\n" % number for number in range(6)]
    for batch in batches:
        log.write(batch)
        log.flush()
    log.write(b"small\n")
    log.close()
    names = ["calls.jsonl", "calls.jsonl.1", "calls.jsonl.2", "calls.jsonl.3"]
    assert sorted(found.name for found in tmp_path.iterdir()) == names
    assert [(tmp_path / name).read_bytes() for name in names] == [b"small\n", *batches[:2:-1]]
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in names)
    assert log.dropped_lines == 0


def test_a_file_that_cannot_be_put_aside_grows_on(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    log = CallLog(folder / "calls.jsonl", Later(), file_bytes_max=4)
    for number in (2, 3):
        (folder / f"calls.jsonl.{number}").mkdir()
        (folder / f"calls.jsonl.{number}" / "in the way").touch()
    for _ in range(3):
        log.write(b"12345\n")
        log.flush()
    log.close()
    assert (folder / "calls.jsonl").read_bytes() == b"12345\n" * 3
    assert log.dropped_lines == 0
