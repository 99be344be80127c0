"""Decoupled models: ModelStreamInfer, generate and generate_stream; order, ends, faults, slow readers, leavers."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gateway.call import Headers, RequestHead
from gateway.engine.python_instance import WINDOW
from gateway.engine.python_process import PythonLimits
from gateway.engine.streams import OPEN_MAX
from gateway.wire.grpc import MessageReader, frame
from tests.unit.engine.making import EngineUnderTest, FakeExchange, run_engine, write_identity, write_python

#: x: int32 n. n responses 0 … n-1; -n: the second is an error; 1000+n: raises after n; 2000+n: n, then no end;
#: 3000+n: dies after n; 10000+n: n from a thread of its own.
MODEL = """
import os, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

class TritonPythonModel:
    def answer(self, i):
        text = np.array([["t%d" % i]], dtype=object)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([[i]], np.int32)), pb_utils.Tensor("t", text)])

    def execute(self, requests):
        for request in requests:
            n = int(request.inputs()[0].as_numpy().ravel()[0])
            sender = request.get_response_sender()
            if n >= 10000:
                threading.Thread(target=self.many, args=(n - 10000, sender)).start()
            else:
                self.few(n, sender)

    def few(self, n, sender):
        for i in range(abs(n) % 1000):
            if n < 0 and i == 1:
                error = pb_utils.TritonError("bad one", pb_utils.TritonError.INVALID_ARG)
                sender.send(pb_utils.InferenceResponse(error=error))
            else:
                sender.send(self.answer(i))
        if n >= 3000:
            os._exit(3)
        if n >= 2000:
            self.kept = sender
        elif n >= 1000:
            raise ValueError("secret")
        else:
            sender.send(flags=FINAL)

    def many(self, n, sender):
        for i in range(n):
            if sender.is_cancelled():
                open(os.path.join(os.path.dirname(__file__), "cancelled"), "w").close()
                break
            sender.send(self.answer(i))
        sender.send(flags=FINAL)
"""


def write_decoupled(root: Path, body: str = MODEL, extra: str = "") -> None:
    write_python(
        root,
        "d",
        body,
        inputs=[("x", "INT32", (1,))],
        outputs=[("y", "INT32", (1,)), ("t", "BYTES", (1,))],
        extra="model_transaction_policy { decoupled: true }\n" + extra,
    )


def request(n: int, id_: str = "", model: str = "d", **parameters: Any) -> bytes:
    message = service_pb2.ModelInferRequest(model_name=model, id=id_)
    tensor = message.inputs.add()
    tensor.name, tensor.datatype = "x", "INT32"
    tensor.shape.extend([1, 1])
    message.raw_input_contents.append(np.array([n], np.int32).tobytes())
    for name, value in parameters.items():
        message.parameters[name].bool_param = value
    return frame(message.SerializeToString())


class Stream:
    """A ModelStreamInfer under way."""

    def __init__(self, engine: EngineUnderTest, headers: Headers | None = None) -> None:
        self.engine = engine.engine
        target = b"/inference.GRPCInferenceService/ModelStreamInfer"
        self.exchange = FakeExchange(RequestHead(b"POST", target, headers or [], is_grpc=True))
        self.engine.on_head(self.exchange)

    def send(self, *data: bytes) -> "Stream":
        for part in data:
            self.engine.on_body(self.exchange, part)
        return self

    async def end(self) -> list[Any]:
        self.engine.on_end(self.exchange)
        await asyncio.wait_for(self.exchange.replied.wait(), 60)
        return self.messages()

    def messages(self) -> list[Any]:
        messages = MessageReader(1 << 20).feed(self.exchange.body)
        return [service_pb2.ModelStreamInferResponse.FromString(message) for _, message in messages]

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(60):
            while len(self.messages()) < count:
                self.exchange.grown.clear()
                await self.exchange.grown.wait()
        return self.messages()

    @property
    def status(self) -> bytes:
        return self.exchange.trailers[b"grpc-status"]


def brief(message: Any) -> tuple[str, str, list[int] | None, bool | None]:
    """(error, id, y, final) of a message."""
    response = message.infer_response
    y = np.frombuffer(response.raw_output_contents[0], np.int32).tolist() if response.raw_output_contents else None
    has = "triton_final_response" in response.parameters
    return (
        message.error_message,
        response.id,
        y,
        response.parameters["triton_final_response"].bool_param if has else None,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def run(tmp_path: Path, test: Callable[[EngineUnderTest], Any], **options: Any) -> None:
    if not (tmp_path / "d").exists():
        write_decoupled(tmp_path)
    run_engine(tmp_path, test=test, **options)


def test_responses_come_in_order_with_their_id_and_the_empty_end_only_if_asked_for(tmp_path: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine).send(request(3, "a"))
        assert [brief(m) for m in await stream.end()] == [("", "a", [i], False) for i in range(3)]
        assert stream.status == b"0"
        assert stream.exchange.trailers[b"tollway-rows"] == b"3"
        assert int(stream.exchange.trailers[b"tollway-compute-ns"]) > 0
        (message,) = await Stream(engine).send(request(0, "b", triton_enable_empty_final_response=True)).end()
        assert brief(message) == ("", "b", None, True)
        assert message.infer_response.model_name == "d"
        assert await Stream(engine).send(request(0)).end() == []
        assert await Stream(engine).end() == []
        (stats,) = (await engine.get("/v2/models/d/stats")).json()["model_stats"]
        assert stats["inference_stats"]["success"]["count"] == 3

    run(tmp_path, test)


def test_many_requests_share_a_stream_and_mix_with_an_ordinary_model(tmp_path: Path) -> None:
    write_identity(tmp_path, "i", "INT32", (1,))
    config = tmp_path / "i" / "config.pbtxt"
    config.write_text(config.read_text())

    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine)
        for n in range(20):
            stream.send(request(10_000 + n, f"d{n}"), request(n, f"i{n}", "i"))
        messages = [brief(m) for m in await stream.end()]
        for n in range(20):
            assert [m for m in messages if m[1] == f"d{n}"] == [("", f"d{n}", [i], False) for i in range(n)]
            assert [m for m in messages if m[1] == f"i{n}"] == [("", f"i{n}", [n], True)]

    run(tmp_path, test)


def test_faults_stay_in_the_stream_and_it_goes_on(tmp_path: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine)
        stream.send(request(1, "1", "none"), request(-3, "2"), frame(b"\xff"), request(1, "3"))
        by_id: dict[str, list[Any]] = {}
        for message in [brief(m) for m in await stream.end()]:
            by_id.setdefault(message[1], []).append((message[0], *message[2:]))
        assert by_id["1"] == [("model 'none' is not found", None, None)]
        assert by_id["2"] == [("", [0], False), ("bad one", None, False), ("", [2], False)]
        assert by_id[""] == [("malformed ModelInferRequest", None, None)]
        assert by_id["3"] == [("", [0], False)]
        assert stream.status == b"0"

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("n", "model", "status"), [(-2, "d", b"3"), (1, "none", b"5"), (1001, "d", b"13"), (3001, "d", b"13")]
)
def test_a_caller_may_have_faults_end_the_stream_with_their_status(
    tmp_path: Path, n: int, model: str, status: bytes
) -> None:
    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine, [(b"triton_grpc_error", b"true")]).send(request(n, model=model))
        await stream.end()
        assert stream.status == status
        assert b"secret" not in stream.exchange.trailers[b"grpc-message"]
        assert all(not m.error_message for m in stream.messages())

    run(tmp_path, test)


def test_what_a_model_does_wrong_ends_its_request_and_no_other(tmp_path: Path) -> None:
    write_decoupled(tmp_path, extra="instance_group { count: 2 }")

    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine).send(request(1002, "raises"))
        assert [brief(m)[:3] for m in await stream.end()] == [
            ("", "raises", [0]),
            ("", "raises", [1]),
            ("model 'd' raised ValueError", "raises", None),
        ]
        stream = Stream(engine).send(request(3001, "dies"))
        last = brief((await stream.end())[-1])
        assert last == ("the process of model 'd' ended (exit status 3)", "dies", None, True)
        await until(lambda: len(engine.registry.get("d").pids) == 2)
        assert len(await Stream(engine).send(request(4)).end()) == 4

    run(tmp_path, test)


def test_a_request_without_an_end_ends_when_the_model_forgets_it_or_says_nothing_for_long(tmp_path: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine).send(request(2001, "kept"))
        await stream.until(1)
        # Another sender takes the place of the first one, which is thereby forgotten.
        stream.send(request(2001, "too"))
        errors = {brief(m)[1]: brief(m)[0] for m in await stream.end() if m.error_message}
        assert errors == {
            "kept": "the model forgot the request without a final response",
            "too": "model 'd' gave no response within 1 s",
        }

    run(tmp_path, test, limits=PythonLimits(call_s=1.0))


def test_a_slow_reader_makes_the_model_wait_and_loses_nothing(tmp_path: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine)
        stream.exchange.is_writable = False
        stream.send(request(10_500, "slow"))
        await stream.until(WINDOW)
        # Others are served meanwhile, by the same process.
        assert len(await Stream(engine).send(request(10_300)).end()) == 300
        assert len(stream.messages()) == WINDOW
        for _ in range(20):
            engine.engine.on_writable(stream.exchange)
            await asyncio.sleep(0.01)
        stream.exchange.is_writable = True
        engine.engine.on_writable(stream.exchange)
        messages = await stream.end()
        assert [brief(m)[2] for m in messages] == [[i] for i in range(500)]

    run(tmp_path, test)


def test_a_caller_that_leaves_frees_everything(tmp_path: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine)
        stream.exchange.is_writable = False
        stream.send(request(100_000, "gone"))
        await stream.until(WINDOW)
        python = engine.registry.get("d")._loaded.python  # type: ignore[union-attr]
        assert python is not None
        assert python.open_requests == 1
        engine.engine.on_abort(stream.exchange)
        assert python.open_requests == 0
        await until((tmp_path / "d" / "1" / "cancelled").exists)
        assert len(await Stream(engine).send(request(4)).end()) == 4

    run(tmp_path, test)


def test_a_deadline_ends_a_request_that_is_streaming(tmp_path: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine, [(b"grpc-timeout", b"200m")]).send(request(2002, "late"))
        last = brief((await stream.end())[-1])
        assert last == ("out of time at model 'd'", "late", None, True)

    run(tmp_path, test)


def test_a_stream_with_too_many_open_requests_is_not_read_on(tmp_path: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine)
        stream.exchange.is_writable = False
        for n in range(OPEN_MAX):
            assert not stream.exchange.is_paused
            stream.send(request(10_000 + WINDOW + 1, str(n)))
        assert stream.exchange.is_paused
        stream.exchange.is_writable = True
        async with asyncio.timeout(60):
            while stream.exchange.is_paused:
                engine.engine.on_writable(stream.exchange)
                await asyncio.sleep(0.01)
        messages = await stream.end()
        assert len(messages) == OPEN_MAX * (WINDOW + 1)

    run(tmp_path, test)


def test_a_body_that_is_no_stream_of_messages_ends_with_a_status(tmp_path: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine).send(request(1)[:-3])
        await stream.end()
        assert stream.status == b"13"
        stream = Stream(engine).send(b"\x07\0\0\0\0")
        assert stream.status == b"13"
        stream = Stream(engine).send(b"\0\xff\xff\xff\xff")
        assert stream.status == b"8"

    run(tmp_path, test)


async def generate(engine: EngineUnderTest, body: Any, verb: str = "generate", model: str = "d") -> FakeExchange:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await engine.call("POST", f"/v2/models/{model}/{verb}", data)


def events(reply: FakeExchange) -> list[Any]:
    assert reply.body.endswith(b"\n\n") or not reply.body
    return [json.loads(event.removeprefix(b"data: ")) for event in reply.body.split(b"\n\n")[:-1]]


def test_generate_answers_in_plain_json(tmp_path: Path) -> None:
    write_identity(tmp_path, "i", "INT32", (1,))

    async def test(engine: EngineUnderTest) -> None:
        reply = await generate(engine, {"x": 3, "id": "q", "temperature": 0.5}, model="i")
        assert reply.json() == {"id": "q", "model_name": "i", "model_version": "1", "y": 3}
        assert reply.headers[b"tollway-rows"] == b"1"
        assert (await generate(engine, {"x": [[3], [4]]}, model="i")).json()["y"] == [3, 4]
        reply = await generate(engine, {"x": 1})
        assert reply.json() == {"model_name": "d", "model_version": "1", "y": 0, "t": "t0"}
        for n in (0, 2):
            reply = await generate(engine, {"x": n})
            assert (reply.status, reply.json()["code"]) == (501, "not_implemented")
        assert (await generate(engine, {"x": -2})).status == 400
        reply = await engine.infer("d", {"inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [1]}]})
        assert reply.status == 501

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "bad_request"),
        (b"[1]", 400, "bad_request"),
        (b'{"x": "s"}', 400, "invalid_tensor"),
        (b'{"x": true}', 400, "invalid_tensor"),
        (b'{"x": 1.5}', 400, "invalid_tensor"),
        (b'{"x": 3000000000}', 400, "invalid_tensor"),
        (b'{"x": []}', 400, "invalid_tensor"),
        (b'{"x": null}', 400, "invalid_tensor"),
        (b'{"x": [1,2,3,4,5,6,7,8,9]}', 400, "invalid_tensor"),
        (b"{}", 400, "invalid_tensor"),
        (b'{"x": 1, "id": 4}', 400, "bad_request"),
        (b'{"x": 1, "a": [1, 2]}', 400, "bad_request"),
        (b'{"x": 1, "timeout": -1}', 400, "bad_request"),
        (b'{"x": 1, "parameters": {"sequence_start": 1}}', 400, "bad_request"),
        (b'{"x": ' + b"[" * 40 + b"1" + b"]" * 40 + b"}", 400, "invalid_tensor"),
    ],
)
def test_what_is_no_generate_request_is_refused(tmp_path: Path, body: bytes, status: int, code: str) -> None:
    async def test(engine: EngineUnderTest) -> None:
        for verb in ("generate", "generate_stream"):
            reply = await generate(engine, body, verb)
            assert (reply.status, reply.json()["code"]) == (status, code), reply.body

    run(tmp_path, test)


def test_generate_stream_sends_events(tmp_path: Path) -> None:
    write_identity(tmp_path, "i", "INT32", (1,))

    async def test(engine: EngineUnderTest) -> None:
        reply = await generate(engine, {"x": 3, "id": "q"}, "generate_stream")
        assert reply.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
        name = {"id": "q", "model_name": "d", "model_version": "1"}
        assert events(reply) == [name | {"y": i, "t": f"t{i}"} for i in range(3)]
        assert int(reply.trailers[b"tollway-compute-ns"]) > 0
        assert events(await generate(engine, {"x": 0}, "generate_stream")) == []
        assert [e.get("y") for e in events(await generate(engine, {"x": 7}, "generate_stream", "i"))] == [7]
        got = events(await generate(engine, {"x": -3}, "generate_stream"))
        assert [e.get("error", e.get("y")) for e in got] == [0, "bad one", 2]
        got = events(await generate(engine, {"x": 1001}, "generate_stream"))
        assert [e.get("error", e.get("y")) for e in got] == [0, "model 'd' raised ValueError"]
        # Before the first event a fault has a status.
        assert (await generate(engine, {"x": 1000}, "generate_stream")).status == 500
        assert (await generate(engine, {"x": 1}, "generate_stream", "none")).status == 404

    run(tmp_path, test)


def test_a_slow_or_leaving_reader_of_events_holds_up_nobody(tmp_path: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        head = RequestHead(b"POST", b"/v2/models/d/generate_stream", [], content_length=14)
        slow, gone = FakeExchange(head), FakeExchange(head)
        for exchange in (slow, gone):
            exchange.is_writable = False
            engine.engine.on_head(exchange)
            engine.engine.on_body(exchange, b'{"x":   10500}')
            engine.engine.on_end(exchange)
            async with asyncio.timeout(60):
                while exchange.body.count(b"\n\n") < WINDOW:
                    exchange.grown.clear()
                    await exchange.grown.wait()
        engine.engine.on_abort(gone)
        await until((tmp_path / "d" / "1" / "cancelled").exists)
        assert gone.body.count(b"\n\n") == slow.body.count(b"\n\n") == WINDOW
        slow.is_writable = True
        engine.engine.on_writable(slow)
        await asyncio.wait_for(slow.replied.wait(), 60)
        assert [event["y"] for event in events(slow)] == list(range(500))

    run(tmp_path, test)


def test_a_model_iterates_over_the_responses_of_another(tmp_path: Path) -> None:
    body = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        out = []
        for request in requests:
            call = pb_utils.InferenceRequest(model_name="d", inputs=[request.inputs()[0]])
            answers = call.exec(decoupled=True)
            values = []
            for answer in answers:
                values.append(-1 if answer.has_error() else int(answer.output_tensors()[0].as_numpy()[0, 0]))
                if len(values) == 100:
                    answers.cancel()
            plain = pb_utils.InferenceRequest(model_name="d", inputs=[request.inputs()[0]]).exec()
            assert plain.has_error() and plain.error().code() == pb_utils.TritonError.UNSUPPORTED
            out.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([values], np.int32))]))
        return out
"""
    write_python(tmp_path, "b", body, inputs=[("x", "INT32", (1,))], outputs=[("y", "INT32", (-1,))])

    async def test(engine: EngineUnderTest) -> None:
        for n, expected in ((3, [0, 1, 2]), (-3, [0, -1, 2]), (0, []), (11_000, list(range(100)))):
            tensor = {"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [n]}
            reply = await engine.infer("b", {"inputs": [tensor]})
            assert reply.json()["outputs"][0]["data"] == expected, reply.body
        await until((tmp_path / "d" / "1" / "cancelled").exists)

    run(tmp_path, test)


def test_a_coroutine_streams_while_others_are_executed(tmp_path: Path) -> None:
    body = """
import asyncio
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.both = asyncio.Event()
        self.count = 0

    async def execute(self, requests):
        for request in requests:
            self.count += 1
            if self.count == 2:
                self.both.set()
            await self.both.wait()
            y = pb_utils.Tensor("y", request.inputs()[0].as_numpy())
            request.get_response_sender().send(pb_utils.InferenceResponse([y]), 1)
        if self.count > 2:
            raise ValueError("after the end")
"""
    write_decoupled(tmp_path, body)

    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine).send(request(1, "a"), request(2, "b"))
        assert sorted(brief(m)[:3] for m in await stream.end()) == [("", "a", [1]), ("", "b", [2])]
        assert [brief(m)[2] for m in await Stream(engine).send(request(3)).end()] == [[3]]

    run(tmp_path, test)


def test_a_decoupled_model_is_warmed_up_and_is_no_step_of_an_ensemble(tmp_path: Path) -> None:
    sample = 'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_INT32 dims: 1 zero_data: true } } }'
    write_decoupled(tmp_path, extra=sample)
    (tmp_path / "e" / "1").mkdir(parents=True)
    (tmp_path / "e" / "config.pbtxt").write_text(
        'platform: "ensemble" max_batch_size: 8\n'
        'input { name: "a" data_type: TYPE_INT32 dims: 1 } output { name: "b" data_type: TYPE_INT32 dims: 1 }\n'
        'ensemble_scheduling { step { model_name: "d" model_version: -1 input_map { key: "x" value: "a" }'
        ' output_map { key: "y" value: "b" } } }'
    )

    async def test(engine: EngineUnderTest) -> None:
        rows = {row["name"]: (row["state"], row["reason"]) for row in engine.registry.index()}
        assert rows["d"] == ("READY", "")
        assert rows["e"] == ("UNAVAILABLE", "ensemble step 'd': a decoupled model cannot be a step")

    run(tmp_path, test)
