"""Bodies of 256 MiB pass through a worker without staying in it, and a caller who leaves takes everything along."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.harness import Tollway
from tests.e2e.raw import Connection, infer_body, post
from tests.e2e.siege import MIB, memory_bytes
from tests.e2e.stage import give_key, read_gauge
from tests.e2e.streams import SIZE, StreamBackend, large_message

GROWTH_MIB = 32
INFER = "/inference.GRPCInferenceService/ModelInfer"
UNBOUNDED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class River:
    """A Tollway in front of the backend of large bodies."""

    tollway: Tollway
    key: str
    backend: StreamBackend

    @property
    def worker(self) -> int:
        return self.tollway.pids()["worker-0"]

    def connect(self, **options: Any) -> Connection:
        connection = Connection(self.tollway.ports["http_port"], **options)
        connection.sock.settimeout(60)
        return connection

    def head(self, model: str, size: int) -> bytes:
        return post(f"/v2/models/{model}/infer", self.key, b"").replace(
            b"content-length: 0", b"content-length: %d" % size
        )

    @contextmanager
    def small_worker(self) -> Iterator[None]:
        """The worker's peak in the block is at most GROWTH_MIB above what it had before."""
        worker = self.worker
        # Documented in proc(5): 5 sets the high-water mark back to what is resident now.
        Path(f"/proc/{worker}/clear_refs").write_text("5")
        before_bytes = memory_bytes(worker)
        yield
        assert self.worker == worker
        assert memory_bytes(worker, "VmHWM") - before_bytes <= GROWTH_MIB * MIB

    def wait_idle(self) -> None:
        self.tollway.wait(lambda: read_gauge(self.tollway, "tollway_calls_in_flight") == 0, "the slot to be free")
        self.tollway.wait(lambda: read_gauge(self.tollway, "tollway_buffered_bytes") == 0, "the buffers to be free")

    def wait_still(self, read: Callable[[], int]) -> int:
        """Until a counter has stopped; its value."""
        seen: list[int] = []

        def is_still() -> bool:
            seen.append(read())
            return len(seen) > 30 and len(set(seen[-30:])) == 1 and seen[-1] > 0

        self.tollway.wait(is_still, "everything to stand still")
        return seen[-1]

    def billed(self) -> int:
        self.tollway.wait_until_posted()
        return sum(int(row["calls"]) for row in self.tollway.admin("GET", "/admin/usage?by=day")["rows"])


@pytest.fixture(scope="module")
def running() -> Iterator[River]:
    with StreamBackend() as backend, Tollway(settings={"engine": "false", "backends": backend.setting}) as tollway:
        yield River(tollway=tollway, key=give_key(tollway), backend=backend)


@pytest.fixture
def river(running: River) -> River:
    running.backend.reset()
    # Warm: what a first call allocates is not what this is about.
    with running.connect() as connection:
        connection.send(post("/v2/models/sink/infer", running.key, infer_body()))
        assert connection.read().status == 200
    running.backend.reset()
    return running


def test_256_mib_up(river: River) -> None:
    piece = bytes(MIB)
    with river.small_worker(), river.connect() as connection:
        connection.send(river.head("sink", SIZE))
        for _ in range(SIZE // MIB):
            connection.send(piece)
        assert connection.read().status == 200
    assert river.backend.received_bytes == SIZE


def test_256_mib_down(river: River) -> None:
    buffer = bytearray(MIB)
    with river.small_worker(), river.connect() as connection:
        connection.send(river.head("source", 2) + b"{}")
        status, headers = connection.read_head()
        assert (status, int(headers["content-length"])) == (200, SIZE)
        left = SIZE - connection.buffered
        while left:
            left -= (size := connection.sock.recv_into(buffer))
            assert size, "cut"
    assert river.backend.sent_bytes == SIZE


@pytest.mark.parametrize("model", ["sink", "source"])
def test_256_mib_over_grpc(river: River, model: str) -> None:
    prefix = b"\x0a%c%b" % (len(model), model.encode())
    # ModelInferRequest.raw_input_contents is field 7.
    message = large_message(prefix, 0x3A, SIZE) if model == "sink" else prefix
    with river.small_worker(), grpc.insecure_channel(river.tollway.grpc_address, options=UNBOUNDED) as channel:
        reply = channel.unary_unary(INFER)(message, metadata=[("authorization", f"Bearer {river.key}")], timeout=100)
    assert river.backend.received_bytes == len(message)
    assert len(reply) >= SIZE - 1 if model == "source" else len(reply) < 100


def test_a_slow_reader_stops_its_backend_and_leaving_cancels_it(river: River) -> None:
    before = river.billed()
    with river.small_worker():
        with river.connect(receive_bytes=1 << 16) as connection:
            connection.send(river.head("source", 2) + b"{}")
            assert connection.read_head()[0] == 200
            sent = river.wait_still(lambda: river.backend.sent_bytes)
            assert sent < SIZE // 4, "the source was not stopped"
        assert river.backend.was_cut.wait(60), "the backend was not told"
        river.wait_idle()
    assert river.billed() == before, "who left before the record was written pays nothing"


def test_a_slow_backend_stops_its_writer_and_leaving_cancels_it(river: River) -> None:
    before = river.billed()
    river.backend.may_read.clear()
    written = 0
    try:
        with river.small_worker():
            with river.connect() as connection:
                connection.send(river.head("sink", SIZE) + bytes(MIB))
                assert river.backend.is_in_call.wait(60)
                connection.sock.settimeout(2)
                piece = bytes(1 << 18)
                with pytest.raises(TimeoutError):
                    while True:
                        written += connection.sock.send(piece)
                assert written < SIZE // 4, "the writer was not stopped"
            river.backend.may_read.set()
            assert river.backend.was_cut.wait(60), "the backend was not told"
            river.wait_idle()
    finally:
        river.backend.may_read.set()
    assert river.billed() == before


def test_hanging_up_in_the_middle_of_an_upload(river: River) -> None:
    before = river.billed()
    with river.connect() as connection:
        connection.send(river.head("sink", SIZE))
        connection.send(bytes(MIB))
        assert river.backend.is_in_call.wait(60)
    assert river.backend.was_cut.wait(60)
    river.wait_idle()
    assert river.billed() == before


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
def test_leaving_a_call_that_waits(river: River, how: str) -> None:
    """A half-closed connection is a hang-up too: the two cannot be told apart in time (docs/contract.md)."""
    before = river.billed()
    with river.connect() as connection:
        connection.send(post("/v2/models/hold/infer", river.key, b"{}"))
        assert river.backend.is_in_call.wait(60)
        if how == "half-close":
            connection.sock.shutdown(socket.SHUT_WR)
            assert river.backend.was_cut.wait(60)
        elif how == "reset":
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert river.backend.was_cut.wait(60)
    river.wait_idle()
    assert river.billed() == before


@pytest.mark.parametrize("how", ["cancel", "deadline", "close"])
def test_leaving_a_grpc_call_that_waits(river: River, how: str) -> None:
    before = river.billed()
    ended = threading.Event()
    with grpc.insecure_channel(river.tollway.grpc_address) as channel:
        call = channel.unary_unary(INFER).future(
            b"\x0a\x04hold",
            metadata=[("authorization", f"Bearer {river.key}")],
            timeout=4 if how == "deadline" else 100,
        )
        call.add_done_callback(lambda _: ended.set())
        assert river.backend.is_in_call.wait(60)
        if how == "cancel":
            call.cancel()
        if how != "close":
            assert ended.wait(60)
    assert river.backend.was_cut.wait(60)
    river.wait_idle()
    assert river.billed() == before
    assert river.tollway.admin("GET", "/admin/reconcile")["is_ok"]
