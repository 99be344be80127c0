"""Whoever leaves, or is cancelled, at any point of the engine's path: nothing stays behind, and the next is served.

A point is a turn of the loop: between two of them every await of the path, and every callback that stands for one, is
reached. Each scenario is left at turn 0, 1, 2 … until it ends before it is left.
"""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gateway.call import RequestHead
from gateway.engine.model import State
from gateway.engine.overrides import Override
from gateway.wire.grpc import frame
from tests.unit.engine.making import (
    EngineUnderTest,
    FakeExchange,
    config_text,
    python_step,
    running_engine,
    write_identity,
    write_model,
    write_python,
)
from tests.unit.engine.test_sequences import write_sum
from tests.unit.engine.test_streams import Stream, request, write_decoupled

#: More turns than any scenario takes; reaching it means that one never ends.
TURNS_MAX = 500


class TurningLoop(asyncio.SelectorEventLoop):
    """Tells of the end of each of its turns. Turns without an event do not happen: the loop blocks in its selector."""

    on_turn: Callable[[], None] | None = None

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]  # private to asyncio, and the only place between two turns
        if self.on_turn is not None:
            self.on_turn()


def run(test: Callable[[EngineUnderTest, TurningLoop], Awaitable[None]], *roots: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TurningLoop)
        async with running_engine(*roots) as engine:
            await test(engine, loop)

    with asyncio.Runner(loop_factory=TurningLoop) as runner:
        runner.run(main())


async def after_turns(loop: TurningLoop, turns: int, action: Callable[[], None], is_over: Callable[[], bool]) -> bool:
    """`action` at the end of the given turn (0: now). False: it was over before."""
    done = asyncio.Event()
    left = turns

    def on_turn() -> None:
        nonlocal left
        left -= 1
        if is_over() or left <= 0:
            loop.on_turn = None
            done.set()

    if turns and not is_over():
        loop.on_turn = on_turn
        await asyncio.wait_for(done.wait(), 60)
    if is_over():
        return False
    action()
    return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)  # a place of the engine that has no event of its own


def open_works(engine: EngineUnderTest) -> int:
    return sum(version.open_works for version in engine.registry.versions())


# -- calls ------------------------------------------------------------------------------------------------------------

VALUES = np.array([[1.0, 2.0]], dtype=np.float32)
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
BODY = json.dumps({"inputs": [TENSOR]}).encode()
RPC = "/inference.GRPCInferenceService/ModelInfer"
CALLER = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x")
            inner = pb_utils.InferenceRequest(model_name="wide", requested_output_names=["y"], inputs=[x])
            y = pb_utils.get_output_tensor_by_name(inner.exec(), "y")
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y.as_numpy())]))
        return answers
"""


TENSORS: dict[str, Any] = {"inputs": [("x", "FP32", (-1,))], "outputs": [("y", "FP32", (-1,))]}


def write_files(root: Path) -> None:
    """Models by the ways that a work can take. `wide` never runs on the loop's thread, as its sizes vary."""
    write_identity(root, "wide", "FP32", [-1])
    write_identity(root, "batched", "FP32", [-1])
    path = root / "batched" / "config.pbtxt"
    path.write_text(path.read_text() + "dynamic_batching { max_queue_delay_microseconds: 500 }")
    maps = 'input_map {{ key: "x" value: "{}" }} output_map {{ key: "y" value: "{}" }}'
    steps = " ".join(
        f'step {{ model_name: "{model}" model_version: -1 {maps.format(source, target)} }}'
        for model, source, target in (("wide", "x", "t"), ("batched", "t", "y"))
    )
    text = config_text("all", **TENSORS, platform="ensemble", rows_max=8, extra=f"ensemble_scheduling {{ {steps} }}")
    write_model(root, "all", text, {})
    (root / "all" / "1").mkdir()
    write_sum(root)


def write_programs(root: Path) -> None:
    write_python(root, "step", python_step("y = x"), **TENSORS)
    write_python(root, "caller", CALLER, **TENSORS)
    write_identity(root, "wide", "FP32", [-1])


def write_streams(root: Path) -> None:
    write_decoupled(root)


def grpc_infer() -> bytes:
    message = service_pb2.ModelInferRequest(model_name="wide")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    message.raw_input_contents.append(VALUES.tobytes())
    return frame(message.SerializeToString())


def rest(model: str, verb: str = "infer") -> Callable[[EngineUnderTest], FakeExchange]:
    return lambda engine: engine.begin("POST", f"/v2/models/{model}/{verb}", BODY)


def plain(model: str, verb: str, value: Any) -> Callable[[EngineUnderTest], FakeExchange]:
    return lambda engine: engine.begin("POST", f"/v2/models/{model}/{verb}", json.dumps({"x": value}).encode())


def zipped(engine: EngineUnderTest) -> FakeExchange:
    return engine.begin("POST", "/v2/models/wide/infer", gzip.compress(BODY), [(b"content-encoding", b"gzip")])


def sequence(engine: EngineUnderTest) -> FakeExchange:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
    parameters = {"sequence_id": 7, "sequence_start": True, "sequence_end": True}
    return engine.begin(
        "POST", "/v2/models/sum/infer", json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    )


def stream(engine: EngineUnderTest) -> FakeExchange:
    opened = Stream(engine).send(request(3, "a"))
    opened.engine.on_end(opened.exchange)
    return opened.exchange


CALLS: dict[str, tuple[Callable[[Path], None], Callable[[EngineUnderTest], FakeExchange]]] = {
    "a model on a thread": (write_files, rest("wide")),
    "a batch that gathers": (write_files, rest("batched")),
    "an ensemble": (write_files, rest("all")),
    "a sequence": (write_files, sequence),
    "a compressed body": (write_files, zipped),
    "gRPC": (write_files, lambda engine: engine.begin("POST", RPC, grpc_infer(), is_grpc=True)),
    "a Python step": (write_programs, rest("step")),
    "a model that calls another": (write_programs, rest("caller")),
    "generate": (write_programs, plain("step", "generate", [1.0, 2.0])),
    "generate_stream": (write_streams, plain("d", "generate_stream", 3)),
    "a gRPC stream": (write_streams, stream),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_caller_may_leave_at_every_turn(tmp_path: Path, name: str) -> None:
    """Nobody answers him, nothing of his stays, and who comes next is answered as ever."""
    write, begin = CALLS[name]
    write(tmp_path)

    async def test(engine: EngineUnderTest, loop: TurningLoop) -> None:
        async def whole() -> tuple[int, bytes, dict[bytes, bytes]]:
            exchange = begin(engine)
            await asyncio.wait_for(exchange.replied.wait(), 60)
            trailers = {name: exchange.trailers.get(name, b"") for name in (b"grpc-status",)}
            return exchange.status, exchange.body, trailers

        expected = await whole()
        assert expected[0] == 200
        for turns in range(TURNS_MAX):
            exchange = begin(engine)

            def leave(exchange: FakeExchange = exchange) -> None:
                engine.engine.on_abort(exchange)

            has_left = await after_turns(loop, turns, leave, exchange.replied.is_set)
            parts = len(exchange.body)
            await until(lambda: open_works(engine) == 0)
            assert engine.engine.buffered_bytes == 0
            assert await whole() == expected
            if not has_left:
                break
            assert (exchange.replies, len(exchange.body)) == (0, parts), "he who has left is told nothing more"
        else:
            raise AssertionError("the call never ended")
        assert turns > 0, "it was over before anybody could leave"

    run(test, tmp_path)


def test_a_caller_may_leave_within_his_request(tmp_path: Path) -> None:
    """At every part of a body, over both protocols: what was held of it is held no more."""
    write_identity(tmp_path, "wide", "FP32", [-1])

    async def test(engine: EngineUnderTest, loop: TurningLoop) -> None:
        for target, body, is_grpc in (("/v2/models/wide/infer", BODY, False), (RPC, grpc_infer(), True)):
            for cut in range(0, len(body) + 1, 16):
                head = RequestHead(b"POST", target.encode(), [], content_length=len(body), is_grpc=is_grpc)
                exchange = FakeExchange(head)
                engine.engine.on_head(exchange)
                for begin in range(0, cut, 7):
                    engine.engine.on_body(exchange, body[begin : min(begin + 7, cut)])
                assert engine.engine.buffered_bytes == cut
                engine.engine.on_abort(exchange)
                assert engine.engine.buffered_bytes == 0
                assert exchange.replies == 0
        assert open_works(engine) == 0

    run(test, tmp_path)


# -- changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["wide", "all", "sum", pytest.param("step", marks=pytest.mark.long)])
@pytest.mark.parametrize("verb", ["load", "unload"])
def test_a_change_may_be_cancelled_at_every_turn(tmp_path: Path, model: str, verb: str) -> None:
    """The model serves as before, or is gone as asked for; a load afterwards ends well, and no task is left."""
    (write_programs if model == "step" else write_files)(tmp_path)

    async def test(engine: EngineUnderTest, loop: TurningLoop) -> None:
        changes = engine.registry.changes
        before = set(asyncio.all_tasks())

        async def change(what: str) -> None:
            await (changes.load(model, Override()) if what == "load" else changes.unload(model))

        for turns in range(TURNS_MAX):
            task = asyncio.ensure_future(change(verb))
            was_cancelled = await after_turns(loop, turns, lambda task=task: task.cancel() and None, task.done)  # type: ignore[misc]
            [result] = await asyncio.gather(task, return_exceptions=True)
            assert was_cancelled == isinstance(result, asyncio.CancelledError), result
            await change("load")
            await until(lambda: set(asyncio.all_tasks()) == before)
            states = [version.state for version in engine.registry.versions() if version.name == model]
            assert states == [State.READY]
            if not was_cancelled:
                break
        else:
            raise AssertionError("the change never ended")
        assert turns > 0
        assert (await engine.infer("wide", {"inputs": [TENSOR]})).status == 200

    run(test, tmp_path)
