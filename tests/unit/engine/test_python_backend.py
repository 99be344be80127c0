"""Triton's Python-backend interface beyond tensors in and out: senders, calls, context, completion, cancellation."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.engine.python_process import PythonLimits
from gateway.engine.work import Work
from tests.leaks import Held, assert_none_left, held
from tests.unit.engine.making import (
    EngineUnderTest,
    new_work,
    python_step,
    run_engine,
    write_identity,
    write_python,
)

HEAD = """
import asyncio, json, os, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils
"""


def model(execute: str, more: str = "") -> str:
    """A module whose `execute(self, requests)` has the body `execute`; `more` are other methods."""
    body = "\n".join("        " + line for line in execute.strip().splitlines())
    methods = "\n".join("    " + line for line in more.strip().splitlines())
    keyword = "async def" if "await " in execute else "def"
    return f"{HEAD}\nclass TritonPythonModel:\n{methods}\n    {keyword} execute(self, requests):\n{body}\n"


def x(*values: float, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": list(values)}
    return {"inputs": [tensor], "parameters": parameters}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_large_tensors_go_and_come_through_shared_memory(tmp_path: Path) -> None:
    body = model(
        """
x = pb_utils.get_input_tensor_by_name(requests[0], "x").as_numpy()
x[0, 0] = 7
return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2)])]
"""
    )
    dims = [("x", "FP32", (-1,))]
    write_python(tmp_path, "p", body, inputs=dims, outputs=[("y", "FP32", (-1,))])

    async def test(engine: EngineUnderTest) -> None:
        given = np.arange(500_000, dtype=np.float32)
        for _ in range(5):
            head: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, given.size]}]}
            head["inputs"][0]["parameters"] = {"binary_data_size": given.nbytes}
            head["parameters"] = {"binary_data_output": True}
            text = json.dumps(head).encode()
            reply = await engine.infer(
                "p", text + given.tobytes(), [(b"inference-header-content-length", b"%d" % len(text))]
            )
            assert reply.status == 200, reply.body
            got = np.frombuffer(reply.body[int(reply.headers[b"inference-header-content-length"]) :], np.float32)
            assert got[0] == 14
            assert (got[1:] == given[1:] * 2).all()
            assert given[0] == 0

    run_engine(tmp_path, test=test)


def test_a_request_tells_what_its_caller_said(tmp_path: Path) -> None:
    body = model(
        """
r = requests[0]
said = [r.request_id(), r.correlation_id(), r.flags(), json.loads(r.parameters()), r.timeout(), r.priority(),
        r.requested_output_names(), r.model_name(), r.model_version(), r.is_cancelled()]
return [pb_utils.InferenceResponse([pb_utils.Tensor("said", np.array([[json.dumps(said)]], dtype=object))])]
"""
    )
    write_python(tmp_path, "p", body, outputs=[("said", "BYTES", (1,)), ("other", "FP32", (1,))])

    async def test(engine: EngineUnderTest) -> None:
        request = x(
            1,
            2,
            sequence_id=2**64 - 1,
            sequence_start=True,
            timeout=9_000_000,
            priority=3,
            a=1,
            b="zwei",
            c=True,
            d=0.5,
        )
        request |= {"id": "the-id", "outputs": [{"name": "said"}]}
        said = json.loads((await engine.infer("p", request)).json()["outputs"][0]["data"][0])
        own = {"a": 1, "b": "zwei", "c": True, "d": 0.5}
        assert said == ["the-id", 2**64 - 1, 1, own, 9_000_000, 3, ["said"], "p", 1, False]
        text_id = x(1, 2, sequence_id="s-1", sequence_end=True) | {"outputs": [{"name": "said"}]}
        said = json.loads((await engine.infer("p", text_id)).json()["outputs"][0]["data"][0])
        assert said[1:3] == ["s-1", 2]
        # All outputs are wanted, one is missing.
        assert (await engine.infer("p", x(1, 2))).status == 500
        for bad in ({"sequence_id": -1}, {"sequence_id": 1.5}, {"sequence_start": 1}, {"priority": -1}, {"a": [1]}):
            assert (await engine.infer("p", x(1, 2, **bad))).json()["code"] == "bad_request", bad

    run_engine(tmp_path, test=test)


_SENDER_LATER = """
def later(sender, x):
    response = pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)])
    sender.send(response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
for request in requests:
    x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
    threading.Thread(target=later, args=(request.get_response_sender(), x)).start()
return None
"""
_ASYNC = """
await asyncio.sleep(0)
return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy() + 1)]) for r in requests]
"""
_DLPACK = """
responses = []
for request in requests:
    tensor = request.inputs()[0]
    twice = pb_utils.Tensor.from_dlpack("y", tensor.to_dlpack())
    assert twice.as_numpy().ctypes.data == tensor.as_numpy().ctypes.data
    responses.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("y", tensor.as_numpy() + 1)]))
    assert tensor.is_cpu() and tensor.triton_dtype() == 11 and tensor.shape() == [1, 2]
return responses
"""


@pytest.mark.parametrize("execute", [_SENDER_LATER, _ASYNC, _DLPACK], ids=["sender", "coroutine", "dlpack"])
def test_a_response_may_be_made_in_each_of_tritons_ways(tmp_path: Path, execute: str) -> None:
    write_python(tmp_path, "p", model(execute))

    async def test(engine: EngineUnderTest) -> None:
        for value in (1, 2):
            reply = await engine.infer("p", x(value, 5))
            assert reply.json()["outputs"][0]["data"] == [value + 1, 6], reply.body

    run_engine(tmp_path, test=test)


CALLER = """
answers = []
for request in requests:
    x = request.inputs()[0]
    call = pb_utils.InferenceRequest(model_name="{model}", requested_output_names=["y"],
                                     inputs=[pb_utils.Tensor("x", x.as_numpy() + 1)])
    answer = {call}
    if answer.has_error():
        error = answer.error()
        answers.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{{error.code()}} {{error.message()}}")))
    else:
        y = pb_utils.get_output_tensor_by_name(answer, "y").as_numpy()
        answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
return answers
"""


@pytest.mark.parametrize("call", ["call.exec()", "await call.async_exec()"])
def test_a_model_calls_another_model_of_the_engine(tmp_path: Path, call: str) -> None:
    write_identity(tmp_path, "other", "FP32", (2,))
    write_python(tmp_path, "p", model(CALLER.format(model="other", call=call)))

    async def test(engine: EngineUnderTest) -> None:
        replies = await asyncio.gather(*(engine.infer("p", x(value, 5)) for value in range(6)))
        assert [reply.json()["outputs"][0]["data"] for reply in replies] == [[value + 1, 6] for value in range(6)]
        assert engine.registry.get("other").statistics.success_count == 6

    run_engine(tmp_path, test=test)


def test_a_call_of_another_model_fails_as_a_value_with_tritons_code(tmp_path: Path) -> None:
    write_python(tmp_path, "none", model(CALLER.format(model="nothing", call="call.exec()")))
    write_identity(tmp_path, "wide", "FP32", (3,))
    write_python(tmp_path, "misfit", model(CALLER.format(model="wide", call="call.exec()")))

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.infer("none", x(1, 2))).json()["error"] == "2 model 'nothing' is not found"
        text = (await engine.infer("misfit", x(1, 2))).json()["error"]
        assert text.startswith("3 input 'x' of model 'wide' has shape [1, 2]")

    run_engine(tmp_path, test=test)


def test_a_model_that_calls_itself_meets_its_deadline_not_the_end_of_time(tmp_path: Path) -> None:
    body = model(CALLER.format(model="p", call="call.exec()"))
    write_python(tmp_path, "p", body)

    async def test(engine: EngineUnderTest) -> None:
        # One instance: the call waits in its own queue, until its time is up there.
        text = (await engine.infer("p", x(1, 2))).json()["error"]
        assert text == "4 out of time at model 'p'" or "did not answer within 0.3 s" in text
        await until(lambda: engine.registry.get("p").is_ready)

    run_engine(tmp_path, test=test, limits=PythonLimits(call_s=0.3))


def test_initialize_may_ask_whether_another_model_is_ready(tmp_path: Path) -> None:
    more = 'def initialize(self, args):\n    self.is_ready = [pb_utils.is_model_ready(n) for n in ("other", "none")]'
    body = model(
        "y = np.array([[float(v) for v in self.is_ready]], dtype=np.float32)\n"
        'return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])]',
        more,
    )
    write_python(tmp_path, "p", body)

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.infer("p", x(1, 2))).json()["outputs"][0]["data"] == [0, 0]

    run_engine(tmp_path, test=test)


def test_a_caller_that_leaves_is_seen_by_the_model(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    saw, busy = tmp_path / "saw", tmp_path / "busy"
    execute = f"""
if requests[0].inputs()[0].as_numpy()[0, 0] == 1:
    open({str(busy)!r}, "w").close()
    while not requests[0].is_cancelled():
        time.sleep(0.005)
    open({str(saw)!r}, "w").close()
return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""
    write_python(tmp_path / "repo", "p", model(execute))

    async def test(engine: EngineUnderTest) -> None:
        exchange = engine.begin("POST", "/v2/models/p/infer", json.dumps(x(1, 2)).encode())
        await until(busy.exists)
        engine.engine.on_abort(exchange)
        await until(saw.exists)
        # The slot is free again.
        assert (await engine.infer("p", x(3, 4))).json()["outputs"][0]["data"] == [3, 4]

    run_engine(tmp_path / "repo", test=test)


def test_a_deadline_cancels_the_request_in_the_model(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    saw, busy = tmp_path / "saw", tmp_path / "busy"
    execute = f"""
open({str(busy)!r}, "w").close()
while not requests[0].is_cancelled():
    time.sleep(0.005)
open({str(saw)!r}, "w").close()
return [pb_utils.InferenceResponse(error=pb_utils.TritonError("late", pb_utils.TritonError.CANCELLED))]
"""
    write_python(tmp_path / "repo", "p", model(execute))

    async def test(engine: EngineUnderTest) -> None:
        timeout_us = 50_000
        while not busy.exists():  # on a busy machine the first one may be late before it is at the model
            assert (await engine.infer("p", x(1, 2, timeout=timeout_us))).status == 504
            timeout_us *= 2
        await until(saw.exists)

    run_engine(tmp_path / "repo", test=test)


COMPLETE = """
@staticmethod
def auto_complete_config(config):
    config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [2]})
    config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [2]})
    config.set_max_batch_size(8)
    config.set_dynamic_batching()
    return config
"""
_ECHO = 'return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]'


def test_a_model_completes_its_own_configuration(tmp_path: Path) -> None:
    (tmp_path / "p" / "1").mkdir(parents=True)
    (tmp_path / "p" / "config.pbtxt").write_text('backend: "python"\n')
    (tmp_path / "p" / "1" / "model.py").write_text(model(_ECHO, COMPLETE))

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.infer("p", x(3, 4))).json()["outputs"][0]["data"] == [3, 4]
        config = (await engine.get("/v2/models/p/config")).json()
        assert (config["max_batch_size"], config["input"][0]["dims"]) == (8, [2])
        assert "dynamic_batching" in config

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize(
    ("complete", "reason"),
    [
        (COMPLETE.replace('"TYPE_FP32", "dims": [2]', '"TYPE_FP99", "dims": [2]'), "not a model configuration"),
        (COMPLETE.replace("return config", "return None"), "raised TypeError while loading"),
        (COMPLETE.replace("return config", "raise ValueError('secret')"), "raised ValueError while loading"),
        (COMPLETE.replace("set_max_batch_size(8)", "as_dict()['max_batch_size'] = -1"), "max_batch_size: -1"),
        (COMPLETE.replace("return config", "pb_utils.is_model_ready('p')"), "raised TritonModelException"),
        (COMPLETE.replace('"dims": [2]', '"dims": [2], "kind": 1'), "raised ValueError while loading"),
    ],
)
def test_a_completion_that_fails_refuses_the_model_with_the_reason(tmp_path: Path, complete: str, reason: str) -> None:
    (tmp_path / "p" / "1").mkdir(parents=True)
    (tmp_path / "p" / "config.pbtxt").write_text('backend: "python"\n')
    (tmp_path / "p" / "1" / "model.py").write_text(model(_ECHO, complete))

    async def test(engine: EngineUnderTest) -> None:
        (row,) = engine.registry.index()
        assert reason in row["reason"]
        assert "secret" not in row["reason"]

    run_engine(tmp_path, test=test)


def test_a_completion_runs_only_where_python_may(tmp_path: Path) -> None:
    (tmp_path / "repo" / "p" / "1").mkdir(parents=True)
    (tmp_path / "repo" / "p" / "config.pbtxt").write_text('backend: "python"\n')
    marker = tmp_path / "ran"
    body = f'open({str(marker)!r}, "w").close()\n' + model(_ECHO, COMPLETE)
    (tmp_path / "repo" / "p" / "1" / "model.py").write_text(body)

    async def test(engine: EngineUnderTest) -> None:
        (row,) = engine.registry.index()
        assert "python_models_allowed" in row["reason"]
        assert not marker.exists()

    run_engine(tmp_path / "repo", test=test, python_allowed=False)


def test_a_log_line_is_one_line_with_its_level(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_python(tmp_path, "p", model('pb_utils.Logger.log_warn("a\\nb")\n' + _ECHO))

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.infer("p", x(1, 2))).status == 200

    run_engine(tmp_path, test=test)
    assert "python_model level=warning model=p a\\nb\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    "execute",
    [
        "pb_utils.load_model('q')",
        "pb_utils.MetricFamily(name='m', description='', kind=0)",
        "pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_GPU)",
        "requests[0].set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)",
        "pb_utils.InferenceRequest(inputs=[1])",
        "pb_utils.InferenceRequest(model_name='q').get_response_sender()",
    ],
)
def test_what_has_no_counterpart_here_is_refused_at_the_model(tmp_path: Path, execute: str) -> None:
    write_python(tmp_path, "p", model(execute + "\n" + _ECHO))

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.infer("p", x(1, 2))).json()["error"] == "model 'p' raised TritonModelException"

    run_engine(tmp_path, test=test)


def children() -> set[str]:
    """Processes that any of our threads started: servers that other tests keep running are among them."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update((task / "children").read_text().split())
    return found


def named_memory() -> set[str]:
    """Named shared memory, but for that of servers which other tests run meanwhile."""
    others = ("tollway-pg-", "PostgreSQL.", "triton_")
    return {name for name in os.listdir("/dev/shm") if not name.startswith(others)}


def cycle(tmp_path: Path, times: int) -> None:
    """Load, call with a tensor in shared memory, unload; nothing stays."""
    write_python(tmp_path, "p", python_step("y = x"), inputs=[("x", "FP32", (-1,))], outputs=[("y", "FP32", (-1,))])
    before: list[Held] = []
    shared, others = named_memory(), children()

    async def test(engine: EngineUnderTest) -> None:
        version = engine.registry.get("p")
        big = np.ones((1, 50_000), dtype=np.float32)
        for number in range(times):
            if number:
                await version.load(engine.host, lambda _step: version)
            work, outcome = new_work()
            work.feeds, work.nbytes = {"x": big}, big.nbytes
            version.servable().submit(work)
            async with asyncio.timeout(60):
                await outcome.done.wait()
            assert outcome.error is None
            outcome.outputs = None
            await version.unload()
            if number == 1:
                before.append(held())
        assert children() <= others
        assert_none_left(before[0], times - 2)

    run_engine(tmp_path, test=test)
    assert named_memory() <= shared


def test_30_loads_and_unloads_leave_no_process_descriptor_or_memory(tmp_path: Path) -> None:
    cycle(tmp_path, 30)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_1000_loads_and_unloads_leave_no_process_descriptor_or_memory(tmp_path: Path) -> None:
    cycle(tmp_path, 1000)


def test_a_work_taken_on_without_a_process_costs_nothing() -> None:
    work = Work({}, lambda _work, _outputs: None, lambda _work, _error: None)
    work.taken(1)
    assert work.progress is None
