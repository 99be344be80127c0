"""The meter's socket: framing, refusals, limits; work runs where it is told to."""

import asyncio
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from billing.books import Books
from billing.ledger.memory import MemoryLedger
from billing.meter_client import FRAME_BYTES_MAX, LENGTH, MeterError, ask_meter, decode_body, encode_frame
from billing.meter_socket import CONNECTIONS_MAX, MeterSocket
from billing.pump import WINDOWS_MAX, Pump
from billing.usagelog.reader import UsageReader
from tests.unit.billing.making import BOOK

Talk = Callable[[Path], Any]


def served(folder: Path, talk: Talk) -> Any:
    """The result of `talk(socket path)`, run in a thread while the socket is served."""

    async def run() -> Any:
        ledger = MemoryLedger()
        books = Books(ledger, folder / "snapshot")
        pump = Pump(ledger, UsageReader(folder / "usage"), books)

        async def on_pump(work: Callable[[], Any]) -> Any:
            return work()

        listening = MeterSocket(pump, books.add, on_pump)
        path = folder / "run" / "meter.sock"
        server = await listening.listen(path)
        try:
            return await asyncio.to_thread(talk, path)
        finally:
            server.close()
            await listening.close()
            pump.close()

    return asyncio.run(run())


def test_socket_replaces_a_stale_one_and_is_private(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "meter.sock").touch()
    assert served(tmp_path, lambda path: stat.S_IMODE(path.stat().st_mode)) == 0o600


def test_price_book_given_over_the_socket_is_known_at_once(tmp_path: Path) -> None:
    book = {"version": 4, "currency": "EUR", "default": {"per_call": "0.25"}}

    def talk(path: Path) -> list[object]:
        added = ask_meter(path, {"op": "add_prices", "book": book})
        with pytest.raises(MeterError, match="already in use"):
            ask_meter(path, {"op": "add_prices", "book": {**book, "currency": "USD"}})
        return [added, ask_meter(path, {"op": "status"})["price_versions"]]

    assert served(tmp_path, talk) == [{"version": 4}, [4]]
    assert BOOK.version == 1


def test_many_questions_on_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    def talk(path: Path) -> list[dict[str, Any]]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(encode_frame({"op": "flush"}) + encode_frame({"op": 7}) + encode_frame({"op": "flush"}))
            file = connection.makefile("rb")
            return [decode_body(file.read(LENGTH.unpack(file.read(4))[0])) for _ in range(3)]

    first, second, third = served(tmp_path, talk)
    assert first == third == {"posted": 0}
    assert second["error"]["code"] == "unknown_op"


@pytest.mark.parametrize("body", [b"\xc1", b"\x93\x01\x02\x03", b""])
def test_garbage_in_a_frame_is_refused(tmp_path: Path, body: bytes) -> None:
    def talk(path: Path) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(LENGTH.pack(len(body)) + body)
            file = connection.makefile("rb")
            return decode_body(file.read(LENGTH.unpack(file.read(4))[0]))

    assert served(tmp_path, talk)["error"]["code"] == "bad_frame"


def test_frame_over_the_limit_is_answered_and_the_connection_closed(tmp_path: Path) -> None:
    def talk(path: Path) -> tuple[dict[str, Any], bytes]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(LENGTH.pack(FRAME_BYTES_MAX + 1))
            file = connection.makefile("rb")
            return decode_body(file.read(LENGTH.unpack(file.read(4))[0])), file.read()

    answer, rest = served(tmp_path, talk)
    assert (answer["error"]["code"], rest) == ("frame_too_large", b"")


def test_too_many_windows_are_refused(tmp_path: Path) -> None:
    def talk(path: Path) -> None:
        with pytest.raises(MeterError, match="ask in parts"):
            ask_meter(path, {"op": "counts", "windows": [["t", 0]] * (WINDOWS_MAX + 1)})

    served(tmp_path, talk)


def test_connections_over_the_limit_are_closed_and_those_below_it_live(tmp_path: Path) -> None:
    def talk(path: Path) -> bytes:
        held = [socket.socket(socket.AF_UNIX) for _ in range(CONNECTIONS_MAX + 1)]
        try:
            for connection in held:
                connection.connect(str(path))
            refused = held[-1].recv(1)
            held[0].sendall(encode_frame({"op": "flush"}))
            assert held[0].recv(4)
            return refused
        finally:
            for connection in held:
                connection.close()

    assert served(tmp_path, talk) == b""


def test_asker_learns_when_there_is_no_meter_or_it_hangs_up(tmp_path: Path) -> None:
    with pytest.raises(MeterError) as nobody:
        ask_meter(tmp_path / "meter.sock", {"op": "status"})
    assert nobody.value.code == "unreachable"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "meter.sock"))
        listener.listen()

        def accept_and_hang_up() -> None:
            listener.accept()[0].close()

        rude = threading.Thread(target=accept_and_hang_up)
        rude.start()
        with pytest.raises(MeterError) as hung_up:
            ask_meter(tmp_path / "meter.sock", {"op": "status"})
        rude.join()
    assert hung_up.value.code == "unreachable"


def test_question_too_long_is_refused_by_the_asker(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match="over"):
        encode_frame({"op": "x" * FRAME_BYTES_MAX})
