"""What a Python model's process sends: gathered, in order, never held back for longer than it says."""

import gc
import threading
from typing import Any

import pytest

from gateway.engine.frames import Blob
from gateway.engine.python_outbox import GATHER_S, GATHER_S_MAX, PARTS_MAX, SMALL_BYTES_MAX, Gone, Outbox, gather_s_of

Frames = list[tuple[dict[str, Any], bytes]]


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def blob_of(data: bytes) -> Blob:
    blob = Blob()
    blob.add(data)
    return blob


def part(number: int, size: int = 4, *, is_final: bool = False) -> list[Any]:
    return [number, {"outputs": [["T", "UINT8", [size], 0, size]]}, is_final]


def opened(clock: Clock, frames: Frames, **options: Any) -> Outbox:
    """An outbox whose own thread never finds anything due, for its clock stands still."""

    def write(head: dict[str, Any], blob: Blob | None) -> None:
        frames.append((head, b"".join(blob.parts) if blob is not None else b""))

    return Outbox(write, clock, **options)


def test_a_response_after_a_pause_leaves_at_once() -> None:
    clock, frames = Clock(), Frames()
    outbox = opened(clock, frames)
    outbox.add(part(1), blob_of(b"abcd"))
    clock.now_s += GATHER_S
    outbox.add(part(2), blob_of(b"efgh"))
    assert frames == [
        ({"say": "parts", "parts": [part(1)]}, b"abcd"),
        ({"say": "parts", "parts": [part(2)]}, b"efgh"),
    ]


def test_responses_close_upon_each_other_share_a_frame_in_order() -> None:
    clock, frames = Clock(), Frames()
    outbox = opened(clock, frames)
    outbox.add(part(1), blob_of(b"abcd"))
    outbox.add(part(2), blob_of(b"efgh"))
    outbox.add([3, None, True], Blob())
    outbox.add(part(2), blob_of(b"ijkl"))
    assert len(frames) == 1
    clock.now_s += GATHER_S
    outbox.add(part(4), blob_of(b"mnop"))
    head, data = frames[1]
    assert [one[0] for one in head["parts"]] == [2, 3, 2, 4]
    found = [data[t[3] : t[3] + t[4]] for one in head["parts"] if one[1] for t in one[1]["outputs"]]
    assert found == [b"efgh", b"ijkl", b"mnop"]


@pytest.mark.parametrize(
    ("open_count", "gather_s"), [(0, GATHER_S), (1, GATHER_S), (16, GATHER_S), (32, 0.004), (64, 0.008), (1024, 0.008)]
)
def test_the_more_requests_are_open_the_longer_their_responses_are_gathered(open_count: int, gather_s: float) -> None:
    assert gather_s_of(open_count) == pytest.approx(gather_s)


def test_a_time_that_has_grown_counts_from_the_next_response_on() -> None:
    clock, frames = Clock(), Frames()
    outbox = opened(clock, frames)
    outbox.add(part(1), blob_of(b"abcd"))
    outbox.gather_s = GATHER_S_MAX
    clock.now_s += GATHER_S
    outbox.add(part(2), blob_of(b"efgh"))
    assert len(frames) == 1
    clock.now_s += GATHER_S_MAX - GATHER_S
    outbox.add(part(3), blob_of(b"ijkl"))
    assert [len(head["parts"]) for head, _ in frames] == [1, 2]


def test_the_memory_of_a_response_is_free_when_it_is_taken() -> None:
    clock, frames = Clock(), Frames()
    outbox = opened(clock, frames)
    outbox.add(part(1), blob_of(b"abcd"))
    memory = bytearray(b"efgh")
    blob = Blob()
    blob.add(memoryview(memory))
    outbox.add(part(2), blob)
    memory[:] = b"XXXX"
    outbox.send({"say": "done"})
    assert frames[1][1] == b"efgh"


@pytest.mark.parametrize(("size", "frame_count"), [(SMALL_BYTES_MAX, 1), (SMALL_BYTES_MAX + 1, 3)])
def test_a_large_response_leaves_at_once_behind_those_that_wait(size: int, frame_count: int) -> None:
    clock, frames = Clock(), Frames()
    outbox = opened(clock, frames)
    outbox.add(part(1), blob_of(b"abcd"))
    outbox.add(part(2), blob_of(b"efgh"))
    outbox.add(part(3, size), blob_of(bytes(size)))
    assert len(frames) == frame_count
    assert [one[0] for head, _ in frames for one in head["parts"]] == [1, 2, 3][:frame_count]


def test_a_frame_has_a_bounded_number_of_responses() -> None:
    clock, frames = Clock(), Frames()
    outbox = opened(clock, frames)
    for number in range(1 + PARTS_MAX + 1):
        outbox.add(part(number), blob_of(b"abcd"))
    assert [len(head["parts"]) for head, _ in frames] == [1, PARTS_MAX]


def test_other_frames_leave_behind_what_waits() -> None:
    clock, frames = Clock(), Frames()
    outbox = opened(clock, frames)
    outbox.add(part(1), blob_of(b"abcd"))
    outbox.add(part(2), blob_of(b"efgh"))
    outbox.send({"say": "done"})
    assert [head["say"] for head, _ in frames] == ["parts", "parts", "done"]


def test_what_waits_leaves_without_another_response() -> None:
    count = 0
    both = threading.Event()

    def write(_head: dict[str, Any], _blob: Blob | None) -> None:
        nonlocal count
        count += 1
        if count == 2:
            both.set()

    outbox = Outbox(write)
    outbox.add(part(1), blob_of(b"abcd"))
    outbox.add(part(2), blob_of(b"efgh"))
    assert both.wait(60)


def test_a_response_left_by_a_destructor_in_the_middle_of_a_write_neither_blocks_nor_writes() -> None:
    """The collector may run anywhere, also where the lock is held."""
    frames: list[list[int]] = []
    later = threading.Event()

    class Forgotten:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            outbox.leave([9, {"error": "forgotten", "code": 1}, True])

    def write(head: dict[str, Any], _blob: Blob | None) -> None:
        if not frames:
            Forgotten()
            gc.collect()
        frames.append([one[0] for one in head["parts"]])
        if len(frames) == 2:
            later.set()

    outbox = Outbox(write)
    outbox.add(part(1), blob_of(b"abcd"))
    assert frames[0] == [1]
    assert later.wait(60)
    assert frames[1] == [9]


def test_an_engine_that_has_hung_up_ends_the_own_thread_in_silence() -> None:
    is_up = True

    def write(_head: dict[str, Any], _blob: Blob | None) -> None:
        if not is_up:
            raise Gone("the engine has hung up")

    before = set(threading.enumerate())
    # Long enough for the second response to meet an engine that is gone.
    outbox = Outbox(write, gather_s=0.5)
    outbox.add(part(1), blob_of(b"abcd"))
    is_up = False
    outbox.leave([2, None, True])
    (own,) = set(threading.enumerate()) - before
    own.join(60)
    assert not own.is_alive()
    with pytest.raises(Gone):
        outbox.send({"say": "done"})
