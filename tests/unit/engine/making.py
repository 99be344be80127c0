"""Models, works and exchanges for the engine's tests."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gateway.call import Data, Headers, RequestHead
from gateway.clock import SystemClock
from gateway.engine.admission import Rules
from gateway.engine.host import Host
from gateway.engine.offload import Coder
from gateway.engine.python_process import PythonLimits
from gateway.engine.registry import Registry
from gateway.engine.rest import RestServer
from gateway.engine.rpc import RpcServer
from gateway.engine.runner import Executed
from gateway.engine.service import BODY_BYTES_MAX, Engine
from gateway.engine.tensors import Array
from gateway.engine.threads import BatchThreads, Done, Task
from gateway.engine.work import Feeds, Work
from gateway.errors import TollwayError
from model_repo.onnx_builder import Node, Value, encode_model

_TYPES = {"BYTES": "STRING"}


def config_text(
    name: str,
    inputs: Sequence[tuple[str, str, Sequence[int]]],
    outputs: Sequence[tuple[str, str, Sequence[int]]],
    *,
    platform: str = "onnxruntime_onnx",
    rows_max: int = 0,
    extra: str = "",
) -> str:
    def tensors(field: str, specs: Sequence[tuple[str, str, Sequence[int]]]) -> str:
        return "".join(
            f'{field} {{ name: "{tensor}" data_type: TYPE_{_TYPES.get(datatype, datatype)} dims: {list(dims)} }}\n'
            for tensor, datatype, dims in specs
        )

    head = f'name: "{name}"\nplatform: "{platform}"\nmax_batch_size: {rows_max}\n'
    return head + tensors("input", inputs) + tensors("output", outputs) + extra


def write_model(root: Path, name: str, config: str, files: Mapping[str, bytes | str]) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(config)
    for file, data in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def identity_onnx(datatype: str, shape: Sequence[int | str]) -> bytes:
    """x → y, unchanged."""
    return encode_model(
        [Node(op="Identity", inputs=("x",), outputs=("y",))],
        [Value(name="x", datatype=datatype, shape=shape)],
        [Value(name="y", datatype=datatype, shape=shape)],
    )


def write_identity(root: Path, name: str, datatype: str, dims: Sequence[int], *, rows_max: int = 8) -> None:
    shape = [f"d{axis}" if size == -1 else size for axis, size in enumerate(dims)]
    full = ["batch", *shape] if rows_max else shape
    config = config_text(name, [("x", datatype, dims)], [("y", datatype, dims)], rows_max=rows_max)
    write_model(root, name, config, {"1/model.onnx": identity_onnx(datatype, full)})


def write_python(
    root: Path,
    name: str,
    body: str,
    *,
    inputs: Sequence[tuple[str, str, Sequence[int]]] = (("x", "FP32", (2,)),),
    outputs: Sequence[tuple[str, str, Sequence[int]]] = (("y", "FP32", (2,)),),
    rows_max: int = 8,
    extra: str = "",
) -> None:
    """A Python model whose module is `body`, indented or not."""
    config = config_text(name, inputs, outputs, platform="python", rows_max=rows_max, extra=extra)
    write_model(root, name, config, {"1/model.py": body})


def python_step(execute: str, initialize: str = "pass", finalize: str = "pass") -> str:
    """The text of a step: `execute` sees `x`, an array, of one request and sets `y`."""

    def indent(text: str, width: int) -> str:
        return "\n".join(" " * width + line for line in text.strip().splitlines())

    return f"""
import os, sys, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
{indent(initialize, 8)}

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
{indent(execute, 12)}
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses

    def finalize(self):
{indent(finalize, 8)}
"""


class FakeExchange:
    """Remembers the one reply."""

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.call: Any = None
        self.is_writable = True
        self.is_h2 = head.is_grpc
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self.trailers: dict[bytes, bytes] = {}
        self.replies = 0
        self.continues = 0
        self.replied = asyncio.Event()
        #: A part of a reply in parts has come.
        self.grown = asyncio.Event()
        self.is_paused = False

    def reply(self, status: int, headers: Headers, body: Data, trailers: Headers | None = None) -> None:
        self.replies += 1
        self.status = status
        self.headers = dict(headers)
        self._parts = [bytes(body)]
        self.trailers = dict(trailers or ())
        self.replied.set()

    def send_head(self, status: int, headers: Headers) -> None:
        assert not self.status
        self.status = status
        self.headers = dict(headers)

    def send_body(self, data: Data) -> None:
        assert self.status
        self._parts.append(bytes(data))
        self.grown.set()

    def send_end(self, trailers: Headers | None = None) -> None:
        self.replies += 1
        self.trailers = dict(trailers or ())
        self.replied.set()
        self.grown.set()

    def send_continue(self) -> None:
        self.continues += 1

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def abort(self, h2_error: int = 2) -> None:
        raise AssertionError("the engine aborts nothing")

    @property
    def body(self) -> bytes:
        return b"".join(self._parts)

    def json(self) -> Any:
        return json.loads(self.body)


class EngineUnderTest:
    """An engine with its models loaded, called without a network."""

    def __init__(self, engine: Engine, registry: Registry, host: Host) -> None:
        self.engine = engine
        self.registry = registry
        self.host = host

    def begin(
        self, method: str, target: str, body: bytes = b"", headers: Headers | None = None, *, is_grpc: bool = False
    ) -> FakeExchange:
        """Send a whole request; the reply comes now or later."""
        head = RequestHead(method.encode(), target.encode(), headers or [], content_length=len(body), is_grpc=is_grpc)
        exchange = FakeExchange(head)
        self.engine.on_head(exchange)
        if exchange.replies:
            return exchange
        for begin in range(0, len(body), 50_000):
            self.engine.on_body(exchange, memoryview(body)[begin : begin + 50_000])
        self.engine.on_end(exchange)
        return exchange

    async def call(
        self, method: str, target: str, body: bytes = b"", headers: Headers | None = None, *, is_grpc: bool = False
    ) -> FakeExchange:
        exchange = self.begin(method, target, body, headers, is_grpc=is_grpc)
        await asyncio.wait_for(exchange.replied.wait(), 60)
        assert exchange.replies == 1
        return exchange

    async def get(self, target: str) -> FakeExchange:
        return await self.call("GET", target)

    async def infer(self, model: str, request: Any, headers: Headers | None = None) -> FakeExchange:
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        return await self.call("POST", f"/v2/models/{model}/infer", body, headers)


@contextlib.asynccontextmanager
async def running_engine(
    *roots: Path,
    python_allowed: bool = True,
    limits: PythonLimits | None = None,
    rules: Rules | None = None,
    **bounds: int,
) -> AsyncIterator[EngineUnderTest]:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(2) as pool, contextlib.closing(BatchThreads(1)) as batches:
        host = Host(
            loop=loop,
            pool=pool,
            batches=batches,
            threads=1,
            clock=SystemClock(),
            python_allowed=tuple(root.resolve() for root in roots) if python_allowed else (),
            python_limits=limits or PythonLimits(),
            rules=rules or Rules(),
        )
        registry = Registry(roots, host)
        coder = Coder(pool, loop)
        body_bytes_max = bounds.get("body_bytes_max", BODY_BYTES_MAX)
        engine = Engine(
            RestServer(registry, coder, version="1", body_bytes_max=body_bytes_max),
            RpcServer(registry, coder, version="1", body_bytes_max=body_bytes_max),
            host.clock.monotonic_ns,
            **bounds,
        )
        await registry.load()
        try:
            yield EngineUnderTest(engine, registry, host)
        finally:
            await registry.unload()


def run_engine(*roots: Path, test: Callable[[EngineUnderTest], Any], **options: Any) -> None:
    """Run an async test body against an engine over `roots`."""

    async def main() -> None:
        async with running_engine(*roots, **options) as engine:
            await test(engine)

    asyncio.run(main())


class Outcome:
    """What became of a work: at most one of result and error, and how often it was told."""

    def __init__(self) -> None:
        self.outputs: list[Array] | None = None
        self.error: TollwayError | None = None
        self.calls = 0
        self.done = asyncio.Event()

    def on_result(self, work: Work, outputs: list[Array]) -> None:
        self.outputs = outputs
        self.calls += 1
        self.done.set()

    def on_error(self, work: Work, error: TollwayError) -> None:
        self.error = error
        self.calls += 1
        self.done.set()


def new_work(rows: int = 1, *, fill: float = 1.0, **arguments: Any) -> tuple[Work, Outcome]:
    outcome = Outcome()
    array = np.full((rows, 2), fill, dtype=np.float32)
    work = Work({"x": array}, outcome.on_result, outcome.on_error, rows=rows, **arguments)
    return work, outcome


class EchoRunner:
    """Returns what it is fed, after `gate` opens; remembers the rows of each batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.infer_ns = 1000
        self.fault: TollwayError | None = None

    def run(self, feeds: list[Feeds], rows: list[int]) -> Executed:
        assert self.gate.wait(60)
        self.batches.append(rows)
        if self.fault is not None:
            return Executed([self.fault] * len(feeds), 0, self.infer_ns, 0)
        return Executed([[own["x"]] for own in feeds], 0, self.infer_ns, 0)

    def close(self) -> None:
        """Nothing to give back."""


class ManualExecutor(Executor):
    """Runs what is submitted when told, on the caller's thread."""

    def __init__(self) -> None:
        self.pending: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.pending.append((future, lambda: fn(*args, **kwargs)))
        return future

    def run_next(self) -> None:
        future, function = self.pending.pop(0)
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)


class FakePlace:
    """Slots and shortness by hand."""

    def __init__(self, executor: Executor, slots: int = 1, short_rows: int = 0) -> None:
        self._executor = executor
        self.free = slots
        self.short_rows = short_rows

    def slots(self) -> int:
        return self.free

    def is_short(self, rows: int) -> bool:
        return rows <= self.short_rows

    def launch(self, task: Task, done: Done) -> None:
        future = self._executor.submit(task)
        future.add_done_callback(lambda ended: done(ended.exception() or ended.result()))
