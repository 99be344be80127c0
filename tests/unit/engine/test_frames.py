"""Frames between the engine and a Python model: small and shared, whole and hostile."""

import array
import fcntl
import json
import os
import socket
import struct
import threading

import pytest

from gateway.engine.frames import HEAD_BYTES_MAX, SHARED_BYTES_MIN, Blob, Frame, FrameError, receive_frame, send_frame

_PREFIX = struct.Struct("<IQB")


def open_fds() -> int:
    """Of the kinds that frames bring: other threads of this process have sockets of their own."""
    return sum(_target_of(name).startswith(("/memfd:", "/dev/null")) for name in os.listdir("/proc/self/fd"))


def _target_of(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:  # of the listing itself
        return ""


@pytest.mark.parametrize("size", [0, 1, SHARED_BYTES_MIN - 128, SHARED_BYTES_MIN, 3_000_000])
def test_a_frame_arrives_whole_with_its_tensors_on_boundaries(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    blob = Blob()
    first, second = blob.add(b"abc"), blob.add(memoryview(data)[:size])
    assert (first, second % 64) == (0, 0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = open_fds()
        sender = threading.Thread(target=send_frame, args=(ours, {"n": 1, "ü": [second]}, blob))
        sender.start()
        head, got = receive_frame(theirs)
        sender.join()
        assert head == {"n": 1, "ü": [second]}
        assert bytes(got[:3]) == b"abc"
        assert got[second : second + size] == data[:size]
        got[0:1] = b"x"  # The reader's own: it may be written to.
        del got  # A mapping keeps its descriptor for as long as it lives.
        assert open_fds() <= before


def test_a_frame_that_does_not_fit_the_socket_is_finished_later() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        blob = Blob()
        blob.add(bytes(SHARED_BYTES_MIN - 1))
        frame = Frame({"a": 1}, blob)
        assert not frame.write(ours, is_waiting=False)
        sender = threading.Thread(target=frame.write, args=(ours,))
        sender.start()
        head, got = receive_frame(theirs)
        sender.join()
        assert (head, len(got)) == ({"a": 1}, SHARED_BYTES_MIN - 1)


def test_a_frame_given_up_leaves_no_descriptor() -> None:
    before = open_fds()
    blob = Blob()
    blob.add(bytes(SHARED_BYTES_MIN))
    Frame({}, blob).close()
    assert open_fds() <= before
    with pytest.raises(FrameError, match="too large"):
        Frame({"a": "x" * HEAD_BYTES_MAX})


def memfd(size: int, seals: int) -> int:
    fd = os.memfd_create("t", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


_ALL = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@pytest.mark.parametrize(
    ("size", "seals", "claimed"), [(100, _ALL, 101), (100, fcntl.F_SEAL_GROW, 100), (100, 0, 100), (100, _ALL, 0)]
)
def test_shared_memory_that_could_bite_is_refused(size: int, seals: int, claimed: int) -> None:
    """A sender that shrinks its memory under the reader would kill it by SIGBUS."""
    ours, theirs = socket.socketpair()
    before = open_fds()
    fd = memfd(size, seals)
    with ours, theirs:
        before = open_fds()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        ours.sendmsg([_PREFIX.pack(2, claimed, 1) + b"{}"], rights)
        with pytest.raises(FrameError):
            receive_frame(theirs)
        assert open_fds() <= before
    os.close(fd)


def test_descriptors_that_do_not_belong_are_closed() -> None:
    with open("/dev/null", "rb") as null:
        before = open_fds()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()]))]
        for place in (0, 1, 7):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.sendmsg([_PREFIX.pack(2, 0, place) + b"{}"], rights)
                with pytest.raises(FrameError):
                    receive_frame(theirs)
        assert open_fds() <= before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        _PREFIX.pack(HEAD_BYTES_MAX + 1, 0, 0),
        _PREFIX.pack(2, 1 << 40, 0) + b"{}",
        _PREFIX.pack(2, 0, 1) + b"{}",
        _PREFIX.pack(3, 0, 0) + b"[1]",
        _PREFIX.pack(3, 0, 0) + b"\xff{}",
        _PREFIX.pack(40_000, 0, 0) + b"[" * 40_000,
        _PREFIX.pack(9, 0, 0) + json.dumps("abcdefg").encode(),
        _PREFIX.pack(10, 0, 0) + b"{}",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(data)
        ours.close()
        with pytest.raises(FrameError):
            receive_frame(theirs)
