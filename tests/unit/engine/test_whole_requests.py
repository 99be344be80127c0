"""Requests that come in one read: the same answers as step by step, over the listener that the process has."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.engine.body import IN_PLACE_BYTES
from gateway.net.listener import Listener
from gateway.settings import Limits
from tests.unit.engine.making import EngineUnderTest, run_engine, write_identity

IGNORED = (b"x-request-id", b"traceparent")
#: What differs from call to call.
TIMES = re.compile(rb"tollway-(compute|queue)-ns: \d+")

Test = Callable[["Caller"], Coroutine[Any, Any, None]]


class Caller:
    """One kept-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> tuple[int, bytes, bytes]:
        """(status, head, body) of the reply to a request that is sent in these pieces."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            # The other side reads before the next piece is written.
            await asyncio.sleep(0)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        assert length is not None
        body = await self._reader.readexactly(int(length[1]))
        return int(head.split(b" ")[1]), TIMES.sub(rb"tollway-\1-ns: -", head), body


@asynccontextmanager
async def listening(engine: EngineUnderTest, socket: Path) -> AsyncIterator[Caller]:
    listener = Listener(engine.engine, Limits(), asyncio.get_running_loop(), ignored_fields=IGNORED)
    await listener.listen_unix(socket)
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()
        listener.cut_all()


def run(tmp_path: Path, test: Test, **options: Any) -> None:
    """An engine with `m` (FP32, two a row) and `bulk` (FP32, any length) and a connection to it."""
    models = tmp_path / "models"
    write_identity(models, "m", "FP32", (2,))
    write_identity(models, "bulk", "FP32", (-1,), rows_max=0)

    async def body(engine: EngineUnderTest) -> None:
        async with listening(engine, tmp_path / "engine.sock") as caller:
            await test(caller)
        assert engine.engine.buffered_bytes == 0

    run_engine(models, test=body, **options)


def request(number: int, body: bytes, *more: bytes, model: bytes = b"m") -> bytes:
    """As the gateway writes them: what differs from call to call stands behind what does not."""
    fields = (
        b"host: localhost",
        b"content-type: application/json",
        *more,
        b"x-request-id: %d" % number,
        b"traceparent: 00-%032d-%016d-01" % (number, number),
        b"content-length: %d" % len(body),
    )
    return b"POST /v2/models/%b/infer HTTP/1.1\r\n" % model + b"".join(b"%b\r\n" % field for field in fields) + b"\r\n"


def row(*values: float) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": list(values)}
    return json.dumps({"inputs": [tensor]}).encode()


def test_a_request_in_one_read_is_answered_as_one_in_pieces(tmp_path: Path) -> None:
    async def test(caller: Caller) -> None:
        body = row(1.5, 2.5)
        # The first brings the head into the memo, the next comes whole, the last in pieces.
        first = await caller.send(request(1, body) + body)
        whole = await caller.send(request(2, body) + body)
        pieces = await caller.send(request(3, body), body[:10], body[10:])
        assert first == whole == pieces
        assert whole[0] == 200
        assert json.loads(whole[2])["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}
        ]
        assert b"\r\ntollway-rows: 1\r\ntollway-compute-ns: -\r\ntollway-queue-ns: -\r\n" in whole[1]

    run(tmp_path, test)


def test_each_request_has_its_own_answer(tmp_path: Path) -> None:
    async def test(caller: Caller) -> None:
        for number in range(5):
            body = row(number, 7.0)
            _, _, reply = await caller.send(request(number, body) + body)
            assert json.loads(reply)["outputs"][0]["data"] == [number, 7.0]

    run(tmp_path, test)


def test_shapes_that_differ_are_told_as_they_are(tmp_path: Path) -> None:
    async def test(caller: Caller) -> None:
        for count in (1, 2, 1, 0, 70):
            tensor = {"name": "x", "datatype": "FP32", "shape": [count], "data": [0.5] * count}
            body = json.dumps({"inputs": [tensor]}).encode()
            status, _, reply = await caller.send(request(1, body, model=b"bulk") + body)
            assert status == 200
            assert json.loads(reply)["outputs"][0]["shape"] == [count]

    run(tmp_path, test)


def test_a_refusal_leaves_the_connection_as_it_was(tmp_path: Path) -> None:
    async def test(caller: Caller) -> None:
        good = row(1.0, 2.0)
        bad = good.replace(b"FP32", b"FP31")
        await caller.send(request(1, good) + good)
        status, _, reply = await caller.send(request(2, bad) + bad)
        assert status == 400
        assert b"FP31" in reply
        assert (await caller.send(request(3, good) + good))[0] == 200

    run(tmp_path, test)


@pytest.mark.parametrize("extra", [0, 4])
def test_a_body_on_both_sides_of_what_is_gathered_in_place(tmp_path: Path, extra: int) -> None:
    async def test(caller: Caller) -> None:
        count = 4096
        for _ in range(3):
            tensor = {"name": "x", "datatype": "FP32", "shape": [count], "parameters": {"binary_data_size": 4 * count}}
            head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
            head += b" " * (IN_PLACE_BYTES + extra - len(head) - 4 * count)
            values = np.arange(count, dtype=np.float32).tobytes()
            length = b"inference-header-content-length: %d" % len(head)
            status, answer, reply = await caller.send(request(1, head + values, length, model=b"bulk") + head + values)
            assert status == 200
            assert reply.endswith(values)
            assert b"\r\ncontent-type: application/octet-stream\r\n" in answer

    run(tmp_path, test)


def test_a_compressed_request_in_one_read_is_inflated(tmp_path: Path) -> None:
    async def test(caller: Caller) -> None:
        body = gzip.compress(row(3.0, 4.0))
        for number in range(2):
            status, _, reply = await caller.send(request(number, body, b"content-encoding: gzip") + body)
            assert status == 200
            assert json.loads(reply)["outputs"][0]["data"] == [3.0, 4.0]

    run(tmp_path, test)


def test_a_head_that_is_refused_is_refused_each_time(tmp_path: Path) -> None:
    async def test(caller: Caller) -> None:
        body = row(1.0, 2.0)
        replies = [
            await caller.send(request(number, body, b"inference-header-content-length: x") + body) for number in (1, 2)
        ]
        assert replies[0] == replies[1]
        assert replies[0][0] == 400

    run(tmp_path, test)


def test_too_many_held_bytes_refuse_a_whole_request_as_well(tmp_path: Path) -> None:
    async def test(caller: Caller) -> None:
        body = row(1.0, 2.0)
        statuses = [(await caller.send(request(number, body) + body))[0] for number in (1, 2)]
        assert statuses == [503, 503]

    run(tmp_path, test, buffered_bytes_max=-1)
