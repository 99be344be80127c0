"""Owns the load: HTTP lanes on one event loop in a thread, gRPC lanes in threads; each lane has one call at a time.

A lane survives everything: a refused connection, a cut reply, a 503. It notes what it saw and goes on.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from tritonclient.grpc import service_pb2

from tests.e2e.crash.truth import GRPC, HTTP, Attempt, Truth

CALL_S: Final = 20.0
#: Kept connections would all end up at the worker that lived longest: a lane connects anew from time to time.
_CALLS_PER_CONNECTION: Final = 20
_PAUSE_S: Final = 0.02
_INFER_METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_BIG_FLOATS: Final = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Who calls what, how often. `next_key` gives (tenant, key) of the next call."""

    next_key: Callable[[], tuple[str, str]]
    kind: str = "mlp"
    pause_s: float = 0.0
    #: Up to so long after sending, the caller leaves; 0: it stays.
    hang_up_s: float = 0.0


def fixed(tenant: str, key: str) -> Callable[[], tuple[str, str]]:
    return lambda: (tenant, key)


def in_turn(keys: Sequence[tuple[str, str]]) -> Callable[[], tuple[str, str]]:
    """Each key in turn. For one lane only."""
    turns = _forever(keys)
    return lambda: next(turns)


def _forever(keys: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    while True:
        yield from keys


def _mlp(rows: int) -> bytes:
    inputs = [{"name": "x", "shape": [rows, 64], "datatype": "FP32", "data": [0.25] * (64 * rows)}]
    return json.dumps({"inputs": inputs}).encode()


def _echo() -> tuple[bytes, int]:
    """A binary body whose reply is larger than what is held whole; and the length of its JSON head."""
    data = struct.pack("<f", 0.5) * _BIG_FLOATS
    spec = {"name": "x", "shape": [1, _BIG_FLOATS], "datatype": "FP32"}
    head = json.dumps(
        {
            "inputs": [{**spec, "parameters": {"binary_data_size": len(data)}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()
    return head + data, len(head)


def request_of(kind: str, key: str, host: str = "localhost") -> bytes:
    """An HTTP/1.1 request. Kinds: mlp, mlp3 (three rows), echo (large), broken, no_model, bad_key."""
    extra, model = "", "mlp"
    if kind == "echo":
        body, head_bytes = _echo()
        extra, model = f"inference-header-content-length: {head_bytes}\r\n", "echo"
    elif kind == "broken":
        body = b'{"inputs": [}'
    else:
        body = _mlp(3 if kind == "mlp3" else 1)
        model = "nothing" if kind == "no_model" else "mlp"
    secret = key[:-1] + ("a" if key[-1] != "a" else "b") if kind == "bad_key" else key
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {secret}\r\n"
        f"content-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """Runs lanes until `stop`. `address` is (host, port) of HTTP; `grpc_address` a target."""

    def __init__(self, truth: Truth, address: tuple[str, int], grpc_address: str, seed: int) -> None:
        self._truth = truth
        self._address = address
        self._grpc_address = grpc_address
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._requests: dict[tuple[str, str], bytes] = {}

    def start(self, http: Sequence[Lane], grpc_lanes: Sequence[Lane]) -> None:
        self._begin(lambda: asyncio.run(self._run_http(http)), "load-http")
        for index, lane in enumerate(grpc_lanes):
            self._begin(lambda lane=lane: self._run_grpc(lane), f"load-grpc-{index}")  # type: ignore[misc]

    def stop(self) -> None:
        """Let every lane finish its call; raises what broke a lane."""
        self._stop.set()
        for thread in self._threads:
            thread.join(CALL_S + 10)
            assert not thread.is_alive(), f"{thread.name} hangs: a call got neither an answer nor an end"
        if self._errors:
            raise self._errors[0]

    def _begin(self, run: Callable[[], None], name: str) -> None:
        def guarded() -> None:
            try:
                run()
            # Kept for `stop`, which raises it in the test's thread.
            except BaseException as error:  # noqa: BLE001
                self._errors.append(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _request(self, kind: str, key: str) -> bytes:
        known = self._requests.get((kind, key))
        if known is None:
            known = self._requests[kind, key] = request_of(kind, key)
        return known

    # -- HTTP ----------------------------------------------------------------------------------------------------------

    async def _run_http(self, lanes: Sequence[Lane]) -> None:
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(self._run_lane(lane))

    async def _run_lane(self, lane: Lane) -> None:
        writer: asyncio.StreamWriter | None = None
        reader: asyncio.StreamReader | None = None
        calls = 0
        while not self._stop.is_set():
            tenant, key = lane.next_key()
            attempt = Attempt(tenant=tenant, protocol=HTTP, kind=lane.kind)
            try:
                async with asyncio.timeout(CALL_S):
                    if writer is None or reader is None:
                        reader, writer = await asyncio.open_connection(*self._address)
                    writer.write(self._request(lane.kind, key))
                    if lane.hang_up_s:
                        await self._leave(attempt, reader, self._random.uniform(0, lane.hang_up_s))
                    else:
                        await _read_reply(attempt, reader)
                calls += 1
                is_reusable = attempt.is_complete and calls % _CALLS_PER_CONNECTION != 0
            except (OSError, asyncio.IncompleteReadError):
                is_reusable = False
            self._truth.add(attempt)
            if not is_reusable and writer is not None:
                writer.transport.abort()
                writer = reader = None
            if attempt.status != 200 or lane.pause_s:
                await asyncio.sleep(max(lane.pause_s, 0.0 if attempt.status == 200 else _PAUSE_S))
        if writer is not None:
            writer.transport.abort()

    async def _leave(self, attempt: Attempt, reader: asyncio.StreamReader, after_s: float) -> None:
        """Read for a while; gone before the reply is complete, most of the time."""
        try:
            async with asyncio.timeout(after_s):
                await _read_reply(attempt, reader)
        except TimeoutError:
            attempt.is_hung_up = True
            raise ConnectionAbortedError("the caller left") from None

    # -- gRPC ----------------------------------------------------------------------------------------------------------

    def _run_grpc(self, lane: Lane) -> None:
        options = [
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.use_local_subchannel_pool", 1),
            # One call is one attempt of the truth file: grpc must not send it again by itself.
            ("grpc.enable_retries", 0),
        ]
        request = _grpc_request()
        with grpc.insecure_channel(self._grpc_address, options=options) as channel:
            call = channel.unary_unary(_INFER_METHOD, None, None)
            while not self._stop.is_set():
                tenant, key = lane.next_key()
                attempt = Attempt(tenant=tenant, protocol=GRPC, kind=lane.kind)
                metadata = (("authorization", f"Bearer {key}"),)
                try:
                    body, outcome = call.with_call(request, timeout=CALL_S, metadata=metadata)
                except grpc.RpcError as error:
                    _note_grpc_failure(attempt, error)
                else:
                    _note_metadata(attempt, outcome.initial_metadata())
                    attempt.status, attempt.is_complete = 200, True
                    attempt.body_sha256, attempt.body_bytes = hashlib.sha256(body).hexdigest(), len(body)
                self._truth.add(attempt)
                if attempt.status != 200 or lane.pause_s:
                    self._stop.wait(max(lane.pause_s, _PAUSE_S))


async def _read_reply(attempt: Attempt, reader: asyncio.StreamReader) -> None:
    """One reply with a content-length; notes what it says as it comes in. Raises IncompleteReadError when it is cut."""
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head[:-4].decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    attempt.status = int(status.split()[1])
    attempt.call_id = fields.get("tollway-call-id", "")
    attempt.charge = fields.get("tollway-charge", "")
    attempt.retry_after = fields.get("retry-after", "")
    body = await reader.readexactly(int(fields["content-length"]))
    attempt.body_sha256, attempt.body_bytes = hashlib.sha256(body).hexdigest(), len(body)
    attempt.is_complete = True
    if fields.get("connection", "").lower() == "close":
        raise ConnectionResetError("the server closes")


def _note_metadata(attempt: Attempt, metadata: Any) -> None:
    fields = {str(name): str(value) for name, value in metadata or ()}
    attempt.call_id = fields.get("tollway-call-id", attempt.call_id)
    attempt.charge = fields.get("tollway-charge", attempt.charge)


def _note_grpc_failure(attempt: Attempt, error: Any) -> None:
    attempt.status = -int(error.code().value[0])
    with contextlib.suppress(AttributeError):
        _note_metadata(attempt, error.initial_metadata())
        _note_metadata(attempt, error.trailing_metadata())


def _grpc_request() -> bytes:
    request = service_pb2.ModelInferRequest(model_name="mlp")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    tensor.contents.fp32_contents.extend([0.25] * 64)
    return bytes(request.SerializeToString())
